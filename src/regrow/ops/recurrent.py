"""Recurrent layers with a compressed weight, a whole sequence at a time, as torch operators.

`scan` is what runs in time order: the state's share of the gates, by the weight W_hh [G * H, H], and the gates. The
input's share of all time steps is one product before it (`regrow.ops.linear`). Its backward pass computes the gates'
gradients in time order; those of W_hh are then a linear layer's with T * B examples.

T time steps, B sequences, H units, G gates: torch's own, in its order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regrow._torch import apply, dispatch_modes
from regrow.errors import RegrowRuntimeError, RegrowValueError
from regrow.ops import flops, linear, twice
from regrow.ops import scan as scans
from regrow.ops.checks import check_weight
from regrow.ops.csr import Csr
from regrow.ops.listener import Listener, listener_of, settle
from regrow.ops.schema import CSR, unflatten
from regrow.ops.unrolled import GATES, State


def _check(
    gates: Tensor,
    initial: State,
    values: Tensor,
    bias: Tensor | None,
    index: Csr,
    kind: str,
    lengths: Tensor | None,
) -> None:
    """Refuse operands whose shapes or types do not fit.

    Raises:
        RegrowRuntimeError: naming the operand, what it is and what is allowed.
        RegrowValueError: there is no such kind.
    """
    if kind not in GATES:
        raise RegrowValueError(f"`kind` must be one of {', '.join(GATES)}, got {kind!r}")
    rows, units = len(index.crow) - 1, len(index.crow_t) - 1
    if rows != GATES[kind] * units:
        raise RegrowRuntimeError(
            f"the weight of {kind} must have {GATES[kind]} rows for each column, got {rows} and {units}"
        )
    if gates.dim() != 3 or gates.shape[2] != rows or gates.shape[0] == 0:
        raise RegrowRuntimeError(
            f"`gates` must have shape [time, batch, {rows}] with at least one time step, got {tuple(gates.shape)}"
        )
    check_weight(gates, values, bias, index)
    if len(initial) != 1 + (kind == "lstm"):
        raise RegrowRuntimeError(
            f"`initial` of {kind} must be {'(h, c)' if kind == 'lstm' else '(h,)'}, got {len(initial)} tensors"
        )
    batch = gates.shape[1]
    for part in initial:
        if part.shape != (batch, units):
            raise RegrowRuntimeError(
                f"`initial` must have shape [{batch}, {units}], a row for each sequence, got {tuple(part.shape)}"
            )
        if part.dtype != gates.dtype or part.device != gates.device:
            raise RegrowRuntimeError(
                f"`initial` must be {gates.dtype} on {gates.device}, got {part.dtype} on {part.device}"
            )
    if lengths is not None and (lengths.shape != (batch,) or lengths.dtype != torch.int64):
        raise RegrowRuntimeError(
            f"`lengths` must be int64 of shape [{batch}], got {lengths.dtype} of {tuple(lengths.shape)}"
        )


def _differentiable_gradients(
    gradients: tuple[Tensor, Tensor | None],
    operands: tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor | None],
    index: Csr,
    kind: str,
    lengths: Tensor | None,
    needs: Sequence[bool],
    listener: Listener | None,
) -> tuple[Tensor | None, ...]:
    """Return what `regrow.ops.scan.backward` does, but differentiable. `operands` are gates, h, c, values and bias."""
    given = [part for part, need in zip(operands, needs, strict=True) if need and part is not None]

    def again(*wanted: Tensor) -> Tensor:
        own = iter(wanted)
        gates, h, c, values, bias = (
            next(own) if need and part is not None else part
            for part, need in zip(operands, needs, strict=True)
        )
        assert gates is not None
        assert h is not None
        assert values is not None
        initial = (h,) if c is None else (h, c)
        found = scans.differentiable(gates, initial, values, bias, index, kind, lengths, listener)
        return torch.cat([part.flatten() for part in found])

    output, cell = gradients
    if operands[2] is not None and cell is None:
        cell = torch.zeros_like(operands[2])
    whole = torch.cat([output.flatten(), *([] if cell is None else [cell.flatten()])])
    found = iter(twice.gradients_of(again, given, whole))
    return tuple(
        next(found) if need and part is not None else None for part, need in zip(operands, needs, strict=True)
    )


def _state(h: Tensor, c: Tensor | None) -> State:
    return (h,) if c is None else (h, c)


@torch.library.custom_op(
    "regrow::sparse_scan",
    mutates_args=(),
    schema=f"(Tensor gates, Tensor h, Tensor? c, Tensor values, Tensor? bias, {CSR}, str kind, "
    "Tensor? lengths=None) -> (Tensor, Tensor, Tensor)",
)
@unflatten(5, Csr)
def sparse_scan(
    gates: Tensor,
    h: Tensor,
    c: Tensor | None,
    values: Tensor,
    bias: Tensor | None,
    index: Csr,
    kind: str,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run a recurrent layer over gates [T, B, G * H] from the state h, c [B, H]: return the output [T, B, H].

    Returns also an LSTM's final cell [B, H], else an empty tensor, and what the backward pass needs (not
    differentiable).
    """
    settle(index.crow)
    _check(gates, _state(h, c), values, bias, index, kind, lengths)
    return scans.forward(gates, _state(h, c), values, bias, index, kind, lengths, True)


@sparse_scan.register_fake
@unflatten(5, Csr)
def _(
    gates: Tensor,
    h: Tensor,
    c: Tensor | None,
    values: Tensor,
    bias: Tensor | None,
    index: Csr,
    kind: str,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    _check(gates, _state(h, c), values, bias, index, kind, lengths)
    cell = gates.new_empty(0) if c is None else gates.new_empty(c.shape)
    return linear.symbolic(gates, h.shape[1]), cell, scans.empty_kept(gates, values, kind)


@torch.library.custom_op(
    "regrow::sparse_scan_backward",
    mutates_args=(),
    schema="(Tensor gradient, Tensor? cell_gradient, Tensor gates, Tensor h, Tensor? c, Tensor values, Tensor? bias, "
    f"{CSR}, str kind, Tensor? lengths, Tensor output, Tensor kept, bool[5] needs) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
@unflatten(7, Csr)
def sparse_scan_backward(
    gradient: Tensor,
    cell_gradient: Tensor | None,
    gates: Tensor,
    h: Tensor,
    c: Tensor | None,
    values: Tensor,
    bias: Tensor | None,
    index: Csr,
    kind: str,
    lengths: Tensor | None,
    output: Tensor,
    kept: Tensor,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of gates, h, c, values and bias, with the shapes of these; empty where `needs` is False.

    Opaque to compilers, so that it can hand its operands to a listener.
    """
    _check(gates, _state(h, c), values, bias, index, kind, lengths)
    how = (index, kind, lengths, output, kept, needs, listener_of(index.crow))
    return scans.backward((gradient, cell_gradient), gates, _state(h, c), values, bias, *how)


@sparse_scan_backward.register_fake
def _(
    gradient: Tensor, cell_gradient: Any, gates: Tensor, h: Tensor, c: Any, values: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    need_gates, need_h, need_c, need_values, need_bias = rest[-1]
    none = gates.new_empty(0)
    return (
        linear.symbolic(gates, gates.shape[2]) if need_gates else none,
        gates.new_empty(h.shape) if need_h else gates.new_empty(0),
        gates.new_empty(h.shape) if need_c else gates.new_empty(0),
        torch.empty_like(values) if need_values else values.new_empty(0),
        gates.new_empty(gates.shape[2] if need_bias else 0),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    gates, h, c, values, bias, *index, kind, lengths = inputs
    result, _, kept = output
    ctx.mark_non_differentiable(kept)
    ctx.save_for_backward(gates, h, c, values, bias, *index, lengths, result, kept)
    ctx.kind = kind


def _gradients(ctx: Any, gradient: Tensor, cell: Tensor, _kept: Tensor | None) -> tuple[Tensor | None, ...]:
    gates, h, c, values, bias, *index, lengths, output, kept = ctx.saved_tensors
    operands = (gates, h, c, values, bias)
    needs = [need and part is not None for need, part in zip(ctx.needs_input_grad[:5], operands, strict=True)]
    of_cell = None if c is None else cell
    rest = [None] * 7
    if torch.is_grad_enabled():
        matrix = Csr(*index)
        how = (matrix, ctx.kind, lengths, needs, listener_of(matrix.crow))
        return *_differentiable_gradients((gradient, of_cell), operands, *how), *rest
    found = sparse_scan_backward(gradient, of_cell, *operands, *index, ctx.kind, lengths, output, kept, needs)
    return *[g if need else None for g, need in zip(found, needs, strict=True)], *rest


sparse_scan.register_autograd(_gradients, setup_context=_save)


class _Direct(torch.autograd.Function):
    """`sparse_scan` with its listener, and with nothing kept where no gradient is wanted.

    The index comes as one argument; saved is `crow` alone, as by `regrow.ops.linear`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        gates: Tensor,
        h: Tensor,
        c: Tensor | None,
        values: Tensor,
        bias: Tensor | None,
        index: Csr,
        kind: str,
        lengths: Tensor | None,
        listener: Listener | None,
    ) -> tuple[Tensor, Tensor]:
        needed = any(ctx.needs_input_grad)
        output, cell, kept = scans.forward(gates, _state(h, c), values, bias, index, kind, lengths, needed)
        ctx.save_for_backward(gates, h, c, values, bias, index.crow, lengths, output, kept)
        ctx.index, ctx.kind, ctx.listener = index, kind, listener
        ctx.written = linear.written(index) if needed else 0
        return output, cell

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gates, h, c, values, bias, _, lengths, output, kept = ctx.saved_tensors
        linear.check_unwritten(ctx.index, ctx.written)
        operands = (gates, h, c, values, bias)
        needs = [
            need and part is not None for need, part in zip(ctx.needs_input_grad[:5], operands, strict=True)
        ]
        gradient, cell = gradients
        above = (gradient, None if c is None else cell)
        if torch.is_grad_enabled():
            how = (ctx.index, ctx.kind, lengths, needs, ctx.listener)
            return *_differentiable_gradients(above, operands, *how), *[None] * 4
        found = scans.backward(
            above,
            gates,
            _state(h, c),
            values,
            bias,
            ctx.index,
            ctx.kind,
            lengths,
            output,
            kept,
            needs,
            ctx.listener,
        )
        return *[g if need else None for g, need in zip(found, needs, strict=True)], *[None] * 4


def scan(
    kind: str,
    gates: Tensor,
    initial: Sequence[Tensor],
    values: Tensor,
    bias: Tensor | None,
    index: Csr,
    listener: Listener | None = None,
    *,
    lengths: Tensor | None = None,
) -> tuple[Tensor, State]:
    """Run a recurrent layer over a whole sequence.

    Args:
        kind: "gru", "lstm", "rnn_tanh" or "rnn_relu".
        gates: what the input gives the gates, [T, B, G * H]: its product with W_ih, and b_ih.
        initial: state before the first time step, ``(h,)`` or ``(h, c)``, each [B, H].
        values: of W_hh, [capacity, 1].
        bias: b_hh, [G * H].
        index: of W_hh, [G * H, H].
        listener: is left the operands of W_hh in the backward pass; the operator finds it by itself.
        lengths: of the sequences, int64 [B]: past its end a sequence keeps its state, which is its output there.

    Returns:
        The output [T, B, H], and the final state as `initial`.
    """
    h, c = (*initial, None, None)[:2]
    if torch.compiler.is_compiling() or dispatch_modes() > 0:
        output, cell, _ = sparse_scan(gates, h, c, values, bias, *index, kind, lengths)
    else:
        _check(gates, tuple(initial), values, bias, index, kind, lengths)
        output, cell = apply(_Direct, gates, h, c, values, bias, index, kind, lengths, listener)
    return output, _state(output[-1], None if c is None else cell)


flops.count_scan_operators()
