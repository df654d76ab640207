"""Gates apart: the blocks of rows of one weight, each of which keeps as many connections as it has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from regrow.growth.gradient import DenseGradient, Reduce
from regrow.weights.base import SparseWeight
from regrow.weights.reading import ReadWeight, as_matrix
from regrow.weights.record import Record

Move = tuple[SparseWeight, Tensor, Tensor]
"""A weight, which of its connections go (as for `SparseWeight.update`), and the positions that come."""


class Gate(ReadWeight):
    """One gate of a weight whose gates are apart, as it is now: to a method it is a weight by itself.

    Args:
        whole: the weight of the cell.
        index: the number of the gate, of as many as the weight's record says.
    """

    def __init__(self, whole: SparseWeight, index: int) -> None:
        rows, columns = as_matrix(whole.shape)
        self.whole, self.index, self._rows = whole, index, rows // whole.record.gates
        self._first = index * self._rows
        self.start = self._first * columns
        """Its first position in the weight."""

    @property
    def record(self) -> Record:
        return self.whole.record

    @property
    def name(self) -> str:
        return f"{self.whole.name}[{self.index}]"

    @property
    def shape(self) -> tuple[int, ...]:
        return (self._rows, *self.whole.shape[1:])

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter of the whole weight."""
        return self.whole.parameter

    @cached_property
    def _all(self) -> Tensor:
        return self.whole.positions()

    @cached_property
    def inside(self) -> slice:
        """Which of the weight's connections are its own."""
        ends = torch.tensor([self.start, self.start + self.numel], device=self._all.device)
        return slice(*torch.searchsorted(self._all, ends).tolist())

    @property
    def nnz(self) -> int:
        return int(self.inside.stop - self.inside.start)

    def positions(self) -> Tensor:
        return self._all[self.inside] - self.start

    def take(self, tensor: Tensor) -> Tensor:
        return self.whole.take(tensor)[self.inside]

    def rows_of(self, tensor: Tensor) -> Tensor:
        return tensor[self._first : self._first + self._rows]

    def is_zero(self, noted: Any) -> bool:
        return self.whole.is_zero(noted)

    def note(self, gradient: Tensor, left: list[Any]) -> Any:
        return self.whole.note(gradient, left)

    def add(self, before: Any, noted: Any) -> Any:
        return self.whole.add(before, noted)

    def nothing(self) -> Any:
        return self.whole.nothing()

    def dense_gradient(self, reduce: Reduce | None = None, given: Tensor | None = None) -> DenseGradient:
        return self.whole.dense_gradient(reduce, given).between(self._first, self._first + self._rows)


def is_gate(weight: ReadWeight) -> bool:
    """Return whether `weight` is a gate that is apart, which has no parameter of its own."""
    return isinstance(weight, Gate)


def parts(weights: Iterable[SparseWeight]) -> list[SparseWeight]:
    """Return `weights`, but the gates of each whose gates are apart in its place, as methods choose moves of them."""
    found: list[SparseWeight] = []
    for weight in weights:
        if weight.record.gates == 1:
            found.append(weight)
        else:  # methods read weights, and move them whole
            found += [cast(SparseWeight, Gate(weight, index)) for index in range(weight.record.gates)]
    return found


def wholes(moves: Sequence[Move]) -> list[Move]:
    """Put the moves of the gates of one weight together into one move of the weight."""
    together: dict[int, list[tuple[Gate, Tensor, Tensor]]] = {}
    found: list[Move] = []
    for weight, drop, grow in moves:
        part: ReadWeight = weight
        if not isinstance(part, Gate):
            found.append((weight, drop, grow))
            continue
        own = together.setdefault(id(part.parameter), [])
        own.append((part, drop + part.inside.start, grow + part.start))
    for own in together.values():
        own.sort(key=lambda move: move[0].index)
        found.append(
            (own[0][0].whole, torch.cat([drop for _, drop, _ in own]), torch.cat([grow for *_, grow in own]))
        )
    return found
