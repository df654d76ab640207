"""The passes of a recurrent layer over a sequence: by the kernels, else unrolled on plain torch operators.

T time steps, B sequences, H units, G gates: torch's own, in its order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regrow.ops import linear, reference, twice, unrolled
from regrow.ops.backends import RECURRENT, use_kernel
from regrow.ops.csr import Csr
from regrow.ops.listener import Listener, tell
from regrow.ops.products import Products
from regrow.ops.reference import ROUND
from regrow.ops.unrolled import GATES, State

_NUMBERS = {kind: number for number, kind in enumerate(GATES)}
"""What the kernels call the kinds."""
_KEPT = {"gru": 4, "lstm": 5, "rnn_tanh": 0, "rnn_relu": 0}
"""What the kernels keep of a unit at each time step."""


def _exact(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)


def _contiguous(part: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if part is None else part.to(dtype).contiguous()


def _laid_out(sequence: Tensor, dtype: torch.dtype) -> Tensor:
    """Return [T, B, features] with the batch innermost: itself, or a copy."""
    time, batch, _ = sequence.shape
    if sequence.dtype == dtype and (batch <= 1 or sequence.stride(1) == 1):
        return sequence
    found: Tensor = torch.ops.regrow_native.lay_out.default(sequence.flatten(0, 1))
    return found.view(time, batch, -1)


def empty_kept(gates: Tensor, values: Tensor, kind: str) -> Tensor:
    """Allocate what `forward` keeps, [slices, T, H, parts, 16]; without kernels it keeps nothing: of one dimension."""
    if not use_kernel(RECURRENT, values):
        return gates.new_empty(0)
    time, batch, rows = gates.shape
    shape = ((batch + ROUND - 1) // ROUND, time, rows // GATES[kind], _KEPT[kind], ROUND)
    return gates.new_empty(shape, dtype=_exact(values))


def forward(
    gates: Tensor,
    initial: State,
    values: Tensor,
    bias: Tensor | None,
    index: Csr,
    kind: str,
    lengths: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output [T, B, H], an LSTM's final cell [B, H], else empty, and what the backward pass is given."""
    exact, shape = _exact(values), gates.shape[:2]
    if use_kernel(RECURRENT, values):
        output, cell, kept = torch.ops.regrow_native.scan_forward.default(
            _laid_out(gates, exact),
            *_state(initial, exact),
            _contiguous(values, exact),
            _contiguous(bias, exact),
            index.crow,
            index.col,
            _NUMBERS[kind],
            None if lengths is None else lengths.cpu().contiguous(),
            keep,
        )
        output = output.unflatten(0, shape)
    else:
        weight, offset = values.to(exact), None if bias is None else bias.to(exact)
        output, state = unrolled.forward(
            kind,
            gates.to(exact),
            tuple(part.to(exact) for part in initial),
            lambda h: reference.forward(h, weight, offset, index, "none", False)[0],
            lengths,
        )
        cell, kept = state[-1], gates.new_empty(0)
        output = reference.empty(gates, output.shape[2]).copy_(output)
    if output.dtype != gates.dtype:
        output = reference.empty(gates, output.shape[2]).copy_(output)
    return output, cell.to(gates.dtype) if kind == "lstm" else gates.new_empty(0), kept


def _state(initial: State, dtype: torch.dtype) -> tuple[Tensor | None, ...]:
    """Return h and c for the kernels, c None where there is none."""
    return (*(_contiguous(part, dtype) for part in initial), None)[:2]


def _before(output: Tensor, hidden: Tensor) -> Tensor:
    """Return the states before each time step, [T * B, H], laid out for kernels."""
    batch = len(hidden)
    flat = output.flatten(0, 1)
    before = reference.empty(flat, flat.shape[1])
    before[:batch] = hidden
    before[batch:] = flat[: len(flat) - batch]
    return before


def backward(
    gradients: tuple[Tensor, Tensor | None],
    gates: Tensor,
    initial: State,
    values: Tensor,
    bias: Tensor | None,
    index: Csr,
    kind: str,
    lengths: Tensor | None,
    output: Tensor,
    kept: Tensor,
    needs: Sequence[bool],
    listener: Listener | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of gates, h, c, values and bias, empty where `needs` is False.

    `gradients` are those of output and final cell; the operands of W_hh's product go to `listener`.
    """
    gradient, cell_gradient = gradients
    exact, dtype = _exact(values), gates.dtype
    weight, states = values.to(exact), output.to(exact) if output.dtype != exact else output
    before = _before(states, initial[0])
    if kept.dim() == 5 and use_kernel(RECURRENT, values):
        of_gates, of_hidden, *of_initial = torch.ops.regrow_native.scan_backward.default(
            _laid_out(gradient, exact),
            _contiguous(cell_gradient, exact),
            _laid_out(states, exact),
            *_state(initial, exact),
            kept,
            weight.contiguous(),
            index.crow_t,
            index.row_t,
            index.order,
            _NUMBERS[kind],
            None if lengths is None else lengths.cpu().contiguous(),
        )
        of_hidden = of_hidden if kind == "gru" else of_gates
        of_gates = of_gates.unflatten(0, gates.shape[:2])
    else:
        offset = None if bias is None else bias.to(exact)
        share = reference.forward(before, weight, offset, index, "none", False)[0]
        of_gates, of_hidden, of_initial = unrolled.backward(
            kind,
            gradient.to(exact),
            None if cell_gradient is None else cell_gradient.to(exact),
            gates.to(exact),
            share.view_as(gates),
            before.view_as(output),
            tuple(part.to(exact) for part in initial),
            lambda g: reference.backward(g, states[0], None, weight, index, "none", (True, False, False))[0],
            lengths,
        )
        of_hidden = reference.empty(of_hidden, gates.shape[2]).copy_(of_hidden).flatten(0, 1)
        of_gates = reference.empty(of_gates, gates.shape[2]).copy_(of_gates)
    _, of_values, of_bias = linear.backward(
        of_hidden, before, None, weight, index, "none", (False, needs[3], needs[4]), listener
    )
    if of_gates.dtype != dtype:
        of_gates = reference.empty(gates, gates.shape[2]).copy_(of_gates)
    of_h, of_c = (*of_initial, None)[:2]
    return (
        of_gates if needs[0] else gates.new_empty(0),
        of_h.to(dtype) if needs[1] else gates.new_empty(0),
        of_c.to(dtype) if needs[2] and of_c is not None else gates.new_empty(0),
        of_values.to(dtype),
        of_bias.to(dtype),
    )


def differentiable(
    gates: Tensor,
    initial: State,
    values: Tensor,
    bias: Tensor | None,
    index: Csr,
    kind: str,
    lengths: Tensor | None,
    listener: Listener | None,
) -> tuple[Tensor, ...]:
    """Return what `forward` does, as often differentiable as is asked for: output, and an LSTM's final cell."""
    some, shape = values.detach(), initial[0].detach()

    def of_values(gradient: Tensor, h: Tensor) -> Tensor:
        tell(listener, lambda: Products(h.clone(), gradient.clone()))
        return reference.backward(gradient, h, None, some, index, "none", (False, True, False))[1]

    layer = twice.Bilinear(
        lambda h, v: reference.forward(h, v, None, index, "none", False)[0],
        lambda g, v: reference.backward(g, shape, None, v, index, "none", (True, False, False))[0],
        of_values,
        index,
    )

    def product(h: Tensor) -> Tensor:
        share = twice.output(layer, h, values)
        return share if bias is None else share + bias

    output, state = unrolled.forward(kind, gates, initial, product, lengths)
    return output, *state[1:]
