"""Recurrent layers on plain torch operators, time step by time step: what the kernels are checked against.

Runs on any device, in float32 or better. `forward` is differentiable as often as its operands are; `backward` is its
first derivative, written out, for where autograd does not look: inside operators.

T time steps, B sequences, H units, G gates: torch's own, in its order.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from regrow.ops.reference import THROUGH

GATES = {"gru": 3, "lstm": 4, "rnn_tanh": 1, "rnn_relu": 1}
"""Kinds of recurrent layers with their number of gates, in the order of the kernels' numbers."""

State = tuple[Tensor, ...]
"""Of all sequences between two time steps, each [B, H]: ``(h,)``, or ``(h, c)`` of an LSTM."""


def _activated(kind: str, gates: Tensor, hidden: Tensor) -> State:
    """Return the gates [..., B, H] after their activations, from what input and state give them, [..., B, G * H]."""
    if kind == "gru":
        (r, z, n), (hidden_r, hidden_z, hidden_n) = gates.chunk(3, -1), hidden.chunk(3, -1)
        r = (r + hidden_r).sigmoid()
        return r, (z + hidden_z).sigmoid(), (n + r * hidden_n).tanh()
    if kind == "lstm":
        i, f, g, o = (gates + hidden).chunk(4, -1)
        return i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    return ((gates + hidden).tanh() if kind == "rnn_tanh" else (gates + hidden).relu(),)


def _step(kind: str, activated: State, state: State) -> State:
    if kind == "gru":
        _, z, n = activated
        return (n + z * (state[0] - n),)
    if kind == "lstm":
        i, f, g, o = activated
        c = f * state[1] + i * g
        return o * c.tanh(), c
    return activated


def _live(lengths: Tensor | None, time: int) -> Tensor | None:
    """Tell which sequences have not ended, [B, 1]; None: all."""
    return None if lengths is None else (time < lengths)[:, None]


def _choose(live: Tensor | None, some: State, others: State) -> State:
    if live is None:
        return some
    return tuple(a.where(live, b) for a, b in zip(some, others, strict=True))


def forward(
    kind: str,
    gates: Tensor,
    initial: State,
    product: Callable[[Tensor], Tensor],
    lengths: Tensor | None = None,
) -> tuple[Tensor, State]:
    """Return the output [T, B, H] and the final state.

    Args:
        kind: one of `GATES`.
        gates: what the input gives the gates, [T, B, G * H].
        initial: state before the first time step.
        product: maps a state [B, H] to what it gives the gates, [B, G * H].
        lengths: of the sequences, int64 [B]; the state of one that has ended stays as it is.
    """
    state, outputs = initial, []
    for time, given in enumerate(gates):
        found = _step(kind, _activated(kind, given, product(state[0])), state)
        state = _choose(_live(lengths, time), found, state)
        outputs.append(state[0])
    return torch.stack(outputs), state


def _cells(activated: State, initial: Tensor, lengths: Tensor | None) -> Tensor:
    """Return the cells of an LSTM before each time step and after the last, [T + 1, B, H]."""
    i, f, g, _ = activated
    cells = [initial]
    for time in range(len(i)):
        found = (f[time] * cells[-1] + i[time] * g[time],)
        cells += _choose(_live(lengths, time), found, (cells[-1],))
    return torch.stack(cells)


def backward(
    kind: str,
    gradient: Tensor,
    cell_gradient: Tensor | None,
    gates: Tensor,
    hidden: Tensor,
    before: Tensor,
    initial: State,
    product: Callable[[Tensor], Tensor],
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor, State]:
    """Return the gradients of `gates`, of `hidden` and of the initial state.

    Args:
        kind: one of `GATES`.
        gradient: of the output, [T, B, H].
        cell_gradient: of an LSTM's final cell, [B, H]; None: zero.
        gates: what the input gave the gates, [T, B, G * H].
        hidden: what the state gave them, likewise.
        before: states h before each time step, [T, B, H].
        initial: state before the first time step.
        product: maps the gradient of what a state gave the gates, [B, G * H], to that of the state, [B, H].
        lengths: as in `forward`.
    """
    activated = _activated(kind, gates, hidden)
    cells = _cells(activated, initial[1], lengths) if kind == "lstm" else gates
    of_gates, of_hidden = torch.empty_like(gates), torch.empty_like(hidden)
    after = torch.zeros_like(initial[0])
    of_cell = torch.zeros_like(after) if cell_gradient is None else cell_gradient
    for time in reversed(range(len(gates))):
        above = gradient[time] + after
        now = tuple(gate[time] for gate in activated)
        passed = torch.zeros_like(above)
        cell_before = of_cell
        found: State
        to_hidden: State
        if kind == "gru":
            r, z, n = now
            of_n = above * (1 - z) * (1 - n * n)
            of_r = of_n * hidden[time].chunk(3, -1)[2] * r * (1 - r)
            of_z = above * (before[time] - n) * z * (1 - z)
            found, to_hidden = (of_r, of_z, of_n), (of_r, of_z, of_n * r)
            passed = above * z
        elif kind == "lstm":
            i, f, g, o = now
            squashed = cells[time + 1].tanh()
            of_c = of_cell + above * o * (1 - squashed * squashed)
            of_i, of_f = of_c * g * i * (1 - i), of_c * cells[time] * f * (1 - f)
            found = (of_i, of_f, of_c * i * (1 - g * g), above * squashed * o * (1 - o))
            to_hidden, cell_before = found, of_c * f
        else:
            (h,) = now
            found = (above * (1 - h * h) if kind == "rnn_tanh" else THROUGH["relu"](above, h),)
            to_hidden = found
        live = _live(lengths, time)
        none = torch.zeros_like(above)
        of_gates[time] = torch.cat(_choose(live, found, (none,) * len(found)), -1)
        of_hidden[time] = torch.cat(_choose(live, to_hidden, (none,) * len(found)), -1)
        passed = passed + product(of_hidden[time])
        after, of_cell = _choose(live, (passed, cell_before), (above, of_cell))
    return of_gates, of_hidden, (after, of_cell)[: len(initial)]
