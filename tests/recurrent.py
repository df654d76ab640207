"""Recurrent networks in training, and a compressed cell as a user would write it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Optimizer

import regrow
from regrow.methods.registry import parameters_of
from regrow.nn import CompressedModule
from regrow.ops.linear import linear
from regrow.weights import CompressedWeight, SparseWeight
from regrow.weights.storages import STORAGES, Form

LAYERS: dict[str, type[nn.Module]] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
CELLS: dict[str, type[nn.Module]] = {"rnn-cell": nn.RNNCell, "gru-cell": nn.GRUCell, "lstm-cell": nn.LSTMCell}
KINDS = {**LAYERS, **CELLS}
EVERY = 4


def stored(kind: str) -> list[str]:
    """The storages that a recurrent module of this kind can have."""
    return [name for name, one in STORAGES.items() if one.forms is None or KINDS[kind] in one.forms]


class Recurrent(nn.Module):
    """A layer or a cell that reads a sequence, and what reads its last output."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.is_cell = kind in CELLS
        self.cell = KINDS[kind](6, 10, **options)
        size = (options.get("proj_size") or 10) * (2 if options.get("bidirectional") else 1)
        self.head = nn.Linear(size, 5)

    def forward(self, x: Tensor) -> Tensor:
        if self.is_cell:
            state = None
            for each in x.unbind(1):
                state = self.cell(each, state)
            last = state[0] if isinstance(state, tuple) else state
        else:
            last = self.cell(x.transpose(0, 1))[0][-1]
        found: Tensor = self.head(last)
        return found


def network(
    kind: str,
    storage: str = "masked",
    *,
    gates: str = "together",
    pattern: str | None = None,
    **options: Any,
) -> Any:
    """A network in float64 whose recurrent weights alone are sparse, at 70%."""
    torch.manual_seed(0)
    made = Recurrent(kind, **options).double()
    return regrow.sparsify(
        made, 0.7, "uniform", include="cell", storage=storage, gates=gates, pattern=pattern
    )


def batch(step: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Sequences [8, 7, 6] and classes [8]."""
    own = torch.Generator().manual_seed(step)
    x = torch.randn(8, 7, 6, generator=own, dtype=torch.float64)
    return x.to(dtype), (x[:, -1].sum(1) * 0.6).round().long().clamp(-2, 2) + 2


def train(
    model: nn.Module,
    optimizer: Optimizer,
    start: int,
    stop: int,
    seen: Callable[[int], object] = lambda _: None,
) -> None:
    """Ordinary steps from `start` to `stop`; `seen` is called after each."""
    for step in range(start, stop):
        torch.manual_seed(step)  # of dropout
        optimizer.zero_grad()
        x, y = batch(step, next(model.parameters()).dtype)
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        seen(step)


def driven(
    model: nn.Module, method: type[regrow.Method], steps: int = 60, **options: Any
) -> tuple[regrow.Method, Optimizer]:
    """A method and the optimizer, with an update every `EVERY` steps."""
    optimizer = SGD(model.parameters(), lr=0.2, momentum=0.9)
    usual = {"total_steps": steps, "update_every": EVERY, "final_sparsity": 0.9}
    common = {name: value for name, value in usual.items() if name in parameters_of(method)}
    return method(model, optimizer, **{**common, **options}), optimizer


def counts(weight: SparseWeight, gates: int) -> list[int]:
    """Connections of each gate."""
    return [int(n) for n in weight.mask().reshape(gates, -1).sum(1)]


class SparseGRUCell(CompressedModule):
    """A GRU cell with compressed weights."""

    bias_ih: nn.Parameter
    bias_hh: nn.Parameter

    @classmethod
    def of(cls, dense: nn.GRUCell, positions: dict[str, Tensor], values: dict[str, Tensor]) -> SparseGRUCell:
        made = cls()
        made.input_size, made.hidden_size = dense.input_size, dense.hidden_size
        for name, at in positions.items():
            own = dense.get_parameter(name)
            made.own(name, own.shape, at, values.get(name, own.detach().reshape(-1)[at]))
        made.bias_ih, made.bias_hh = dense.bias_ih, dense.bias_hh
        return made

    def dense(self, weights: dict[str, Tensor]) -> nn.GRUCell:
        made = nn.GRUCell(self.input_size, self.hidden_size)  # type: ignore[arg-type]
        for name, weight in weights.items():
            setattr(made, name, nn.Parameter(weight))
        made.bias_ih, made.bias_hh = self.bias_ih, self.bias_hh
        return made

    def product(self, name: str, input: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        operands = self.operands(name, input, bias)
        return linear(*operands, self.index_of(name), "none", self.listener_of(name)).chunk(3, -1)

    def forward(self, x: Tensor, h: Tensor | None) -> Tensor:
        h = x.new_zeros(len(x), 10) if h is None else h
        reset, update, new = self.product("weight_ih", x, self.bias_ih)
        own_reset, own_update, own_new = self.product("weight_hh", h, self.bias_hh)
        keep = (update + own_update).sigmoid()
        new = (new + (reset + own_reset).sigmoid() * own_new).tanh()
        return (1 - keep) * new + keep * h


@contextmanager
def gru_cells_are_stored() -> Iterator[None]:
    """Let compressed storage know the cell for this long."""
    forms = CompressedWeight.forms
    assert forms is not None
    forms[nn.GRUCell] = Form(SparseGRUCell, SparseGRUCell.of, SparseGRUCell.dense, ("weight_ih", "weight_hh"))
    try:
        yield
    finally:
        del forms[nn.GRUCell]
