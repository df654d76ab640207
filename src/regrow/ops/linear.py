"""Linear layers with a compressed weight, as torch operators.

Activations run in the layout (features, batch): outputs and input gradients have the shape that a dense layer gives
them, and the batch is innermost in memory, each feature beginning a line of the cache (`stride_of`). The kernels
(`regrow.ops.native`) do the work where there are some; elsewhere the reference on plain torch operators does, a CSR
product each way and `torch.sparse.sampled_addmm` for the gradient of the values.

A weight of shape [rows, columns] is given by its `values` [capacity, 1] and their index (`regrow.ops.csr.Csr`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regrow._torch import apply, dispatch_modes
from regrow.errors import RegrowRuntimeError, RegrowValueError
from regrow.ops import flops, reference, twice
from regrow.ops.backends import LINEAR, use_kernel
from regrow.ops.checks import check_weight
from regrow.ops.csr import Csr
from regrow.ops.listener import Listener, listener_of, settle, tell
from regrow.ops.products import Products
from regrow.ops.reference import ACTIVATIONS, ROUND, THROUGH
from regrow.ops.schema import CSR, unflatten


def _flat(x: Tensor) -> Tensor:
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


_NUMBERS = {activation: number for number, activation in enumerate(ACTIVATIONS)}
"""What the kernels call them."""


def _keeps_input(activation: str) -> bool:
    """Check whether the backward pass needs what went into the activation; that of a ReLU needs its output."""
    return activation not in ("none", "relu")


def _forward(
    input: Tensor, values: Tensor, bias: Tensor | None, index: Csr, activation: str, keep: bool
) -> tuple[Tensor, Tensor]:
    """Map an input [batch, columns] to [batch, rows], with what went into the activation, empty unless to `keep`."""
    if use_kernel(LINEAR, values):
        found: tuple[Tensor, Tensor] = torch.ops.regrow_native.linear_forward.default(
            input, values, bias, index.crow, index.col, _NUMBERS[activation], keep
        )
        return found
    return reference.forward(input, values, bias, index, activation, keep)


def backward(
    gradient: Tensor,
    input: Tensor,
    kept: Tensor | None,
    values: Tensor,
    index: Csr,
    activation: str,
    needs: Sequence[bool],
    listener: Listener | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of input, values and bias, empty where `needs` is False; the operands go to `listener`."""
    if needs[1]:
        tell(listener, lambda: _products(gradient, input, kept, activation))
    if use_kernel(LINEAR, values):
        found: tuple[Tensor, Tensor, Tensor] = torch.ops.regrow_native.linear_backward.default(
            gradient,
            input,
            kept,
            values,
            index.crow_t,
            index.row_t,
            index.order,
            _NUMBERS[activation],
            *needs,
        )
        return found
    return reference.backward(gradient, input, kept, values, index, activation, needs)


def _differentiable_gradients(
    gradient: Tensor,
    input: Tensor,
    output: Tensor | None,
    values: Tensor,
    bias: Tensor | None,
    index: Csr,
    activation: str,
    needs: Sequence[bool],
    listener: Listener | None,
) -> tuple[Tensor | None, ...]:
    """Return what `backward` does, but differentiable; `output` is needed for a ReLU."""
    flops.count_linear_kernels()

    layer = twice.Bilinear(
        lambda x, v: _forward(x, v, None, index, "none", False)[0],
        lambda g, v: backward(g, input.detach(), None, v, index, "none", (True, False, False), None)[0],
        lambda g, x: backward(g, x, None, values.detach(), index, "none", (False, True, False), listener)[1],
        index,
    )
    if _keeps_input(activation):
        before = twice.output(layer, input, values)
        before = before if bias is None else before + bias
        (gradient,) = twice.gradients_of(ACTIVATIONS[activation], [before], gradient)
    elif output is not None:
        gradient = THROUGH[activation](gradient, output)
    return (
        twice.of_input(layer, gradient, values) if needs[0] else None,
        twice.of_values(layer, gradient, input) if needs[1] else None,
        gradient.sum(0) if needs[2] else None,
    )


def _products(gradient: Tensor, input: Tensor, kept: Tensor | None, activation: str) -> Products:
    before = gradient.clone() if kept is None else THROUGH[activation](gradient, kept)
    return Products(input.clone(), before)


def _check(input: Tensor, values: Tensor, bias: Tensor | None, index: Csr, activation: str) -> None:
    """Refuse operands whose shapes or types do not fit.

    Raises:
        RegrowRuntimeError: naming the operand, what it is and what is allowed.
    """
    columns = len(index.crow_t) - 1
    if input.dim() == 0 or input.shape[-1] != columns:
        raise RegrowRuntimeError(
            f"`input` must have {columns} as its last dimension, got shape {tuple(input.shape)}"
        )
    check_weight(input, values, bias, index)
    if activation not in ACTIVATIONS:
        raise RegrowValueError(f"`activation` must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")


@torch.library.custom_op(
    "regrow::sparse_linear",
    mutates_args=(),
    schema=f'(Tensor input, Tensor values, Tensor? bias, {CSR}, str activation="none") -> (Tensor, Tensor)',
)
@unflatten(3, Csr)
def sparse_linear(
    input: Tensor, values: Tensor, bias: Tensor | None, index: Csr, activation: str = "none"
) -> tuple[Tensor, Tensor]:
    """Compute ``activation(input @ W.T + bias)``: input [..., columns] -> [..., rows].

    Returns also what went into the activation, [..., rows], where its backward pass needs that (GELU, SiLU; not
    differentiable), else an empty tensor.
    """
    settle(index.crow)
    _check(input, values, bias, index, activation)
    keep = _keeps_input(activation)
    output, kept = _forward(_flat(input), values, bias, index, activation, keep)
    shape = (*input.shape[:-1], len(index.crow) - 1)
    return output.reshape(shape), kept.reshape(shape) if keep else kept


def symbolic(like: Tensor, features: int) -> Tensor:
    """Make what `reference.empty` does for a compiler, asking nothing that would hold for some batches only."""
    *lead, _ = like.shape
    strides = [math.prod(lead[i + 1 :]) for i in range(len(lead))]
    batch = math.prod(lead)
    lines = (batch + ROUND - 1) // ROUND * ROUND
    return like.new_empty_strided((*lead, features), (*strides, torch.sym_ite(batch < ROUND, batch, lines)))


@sparse_linear.register_fake
@unflatten(3, Csr)
def _(
    input: Tensor, values: Tensor, bias: Tensor | None, index: Csr, activation: str = "none"
) -> tuple[Tensor, Tensor]:
    _check(input, values, bias, index, activation)
    rows = len(index.crow) - 1
    return symbolic(input, rows), symbolic(input, rows) if _keeps_input(activation) else input.new_empty(0)


@torch.library.custom_op(
    "regrow::sparse_linear_backward",
    mutates_args=(),
    schema=f"(Tensor gradient, Tensor input, Tensor? kept, Tensor values, {CSR}, str activation, bool[3] needs)"
    " -> (Tensor, Tensor, Tensor)",
)
@unflatten(4, Csr)
def sparse_linear_backward(
    gradient: Tensor,
    input: Tensor,
    kept: Tensor | None,
    values: Tensor,
    index: Csr,
    activation: str,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of input [..., columns], values [capacity, 1] and bias [rows]; empty where `needs` is False.

    `kept` is the output of a fused ReLU, or what went into another activation. Opaque to compilers, so that it can hand
    its operands to a listener.
    """
    _check(input, values, None, index, activation)
    flat_kept = None if kept is None else _flat(kept)
    listener = listener_of(index.crow)
    input_gradient, *rest = backward(
        _flat(gradient), _flat(input), flat_kept, values, index, activation, needs, listener
    )
    return (input_gradient.reshape(input.shape) if needs[0] else input_gradient, *rest)  # type: ignore[return-value]


@sparse_linear_backward.register_fake
def _(gradient: Tensor, input: Tensor, kept: Tensor | None, values: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    need_input, need_values, need_bias = rest[-1]
    return (
        symbolic(input, input.shape[-1]) if need_input else input.new_empty(0),
        torch.empty_like(values) if need_values else values.new_empty(0),
        input.new_empty(gradient.shape[-1] if need_bias else 0),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, values, bias, *index, activation = inputs
    result, before = output
    ctx.mark_non_differentiable(before)
    kept = before if _keeps_input(activation) else result if activation == "relu" else None
    ctx.save_for_backward(input, kept, values, *index, bias)
    ctx.activation = activation


def _gradients(ctx: Any, gradient: Tensor, _before: Tensor | None) -> tuple[Tensor | None, ...]:
    input, kept, values, *index, bias = ctx.saved_tensors
    need_input, need_values, need_bias, *_ = ctx.needs_input_grad
    needed = (need_input, need_values, need_bias and bias is not None)
    if torch.is_grad_enabled():
        operands = (_flat(gradient), _flat(input), None if kept is None else _flat(kept))
        matrix = Csr(*index)
        listener = listener_of(matrix.crow)
        again = _differentiable_gradients(*operands, values, bias, matrix, ctx.activation, needed, listener)
        of_input = None if again[0] is None else again[0].reshape(input.shape)
        return (of_input, *again[1:], *[None] * 6)
    found = sparse_linear_backward(gradient, input, kept, values, *index, ctx.activation, needed)
    return (*[g if need else None for g, need in zip(found, needed, strict=True)], *[None] * 6)


sparse_linear.register_autograd(_gradients, setup_context=_save)
flops.count_linear_operators()


class _Direct(torch.autograd.Function):
    """`sparse_linear` by the kernels on an input [batch, columns], with less on the way to them.

    The index comes as one argument; saved is `crow` alone, by which autograd sees that the topology has changed. For
    the others it would take four times as long as to look at their versions here.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        values: Tensor,
        bias: Tensor | None,
        index: Csr,
        activation: str,
        listener: Listener | None,
    ) -> Tensor:
        needed = any(ctx.needs_input_grad)
        keep = _keeps_input(activation) and needed
        output, before = _forward(input, values, bias, index, activation, keep)
        kept = before if keep else output if activation == "relu" else None
        ctx.save_for_backward(input, kept, values, index.crow, bias if keep else None)
        ctx.index, ctx.activation, ctx.listener = index, activation, listener
        ctx.written = written(index) if needed else 0
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        needs: tuple[bool, bool, bool] = ctx.needs_input_grad[:3]
        input, kept, values, _, bias = ctx.saved_tensors
        check_unwritten(ctx.index, ctx.written)
        how = (ctx.index, ctx.activation, needs, ctx.listener)
        if torch.is_grad_enabled():
            return (
                *_differentiable_gradients(gradient, input, kept, values, bias, *how),
                *[None] * 3,
            )
        of_input, of_values, of_bias = backward(gradient, input, kept, values, *how)
        return (
            of_input if needs[0] else None,
            of_values if needs[1] else None,
            of_bias if needs[2] else None,
            None,
            None,
            None,
        )


def written(index: Csr) -> int:
    """Count how often columns and mirrored index have been written to."""
    _, col, crow_t, row_t, order = index
    return col._version + crow_t._version + row_t._version + order._version


def check_unwritten(index: Csr, count: int) -> None:
    """Refuse an index that has been written to since `written` gave `count`.

    Raises:
        RegrowRuntimeError: it has been.
    """
    if written(index) != count:
        raise RegrowRuntimeError(
            "the index of a compressed weight was overwritten between the forward and the backward pass.\n"
            "Call backward before anything writes to weight_col, weight_crow_t, weight_row_t or weight_order."
        )


class _LaidOut(torch.autograd.Function):
    """An input [batch, columns] as the kernels read it: once for both passes of the layer."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        found: Tensor = torch.ops.regrow_native.lay_out.default(input)
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def is_laid_out(input: Tensor) -> bool:
    """Check whether the kernels read an input [batch, columns] where it is."""
    return (input.stride(0) == 1 and input.stride(1) % ROUND == 0) or input.dtype == torch.bfloat16


def linear(
    input: Tensor,
    values: Tensor,
    bias: Tensor | None,
    index: Csr,
    activation: str = "none",
    listener: Listener | None = None,
) -> Tensor:
    """Apply `sparse_linear`, the shortest way: dispatching an operator of Python's takes longer than a small layer.

    The backward pass leaves its operands with `listener`; the operator finds it by itself.
    """
    watched = torch.compiler.is_compiling() or dispatch_modes() > 0
    if watched or not use_kernel(LINEAR, values):
        output: Tensor = sparse_linear(input, values, bias, *index, activation)[0]
        # where the batch is innermost, a program that is exported for any batch could not be run on one of 1
        return output.contiguous() if torch.compiler.is_exporting() else output
    is_flat = input.dim() == 2
    rows = input if is_flat else _flat(input)
    if values.requires_grad and not is_laid_out(rows):
        rows = apply(_LaidOut, rows) if rows.requires_grad else torch.ops.regrow_native.lay_out.default(rows)
    found: Tensor = apply(_Direct, rows, values, bias, index, activation, listener)
    return found if is_flat else found.reshape(*input.shape[:-1], len(index.crow) - 1)
