"""Gates apart: the blocks of rows of one weight, each of which keeps as many connections as it has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from regrow.growth.gradient import DenseGradient, Reduce
from regrow.weights.base import SparseWeight
from regrow.weights.part import Part
from regrow.weights.patterned import patterned
from regrow.weights.reading import ReadWeight, as_matrix

Move = tuple[SparseWeight, Tensor, Tensor]
"""A weight, which of its connections go (as for `SparseWeight.update`), and the positions that come."""


class Gate(Part):
    """One gate of a weight whose gates are apart, as it is now: to a method it is a weight by itself.

    Args:
        whole: the weight of the cell.
        index: the number of the gate, of as many as the weight's record says.
    """

    def __init__(self, whole: SparseWeight, index: int) -> None:
        super().__init__(whole)
        rows, columns = as_matrix(whole.shape)
        self.index, self._rows = index, rows // whole.record.gates
        self._first = index * self._rows
        self.start = self._first * columns

    @property
    def name(self) -> str:
        return f"{self.whole.name}[{self.index}]"

    @property
    def shape(self) -> tuple[int, ...]:
        return (self._rows, *self.whole.shape[1:])

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

    def dense_gradient(self, reduce: Reduce | None = None, given: Tensor | None = None) -> DenseGradient:
        return self.whole.dense_gradient(reduce, given).between(self._first, self._first + self._rows)

    def in_whole(self, drop: Tensor, grow: Tensor) -> tuple[Tensor, Tensor]:
        return drop + self.inside.start, grow + self.start


def is_gate(weight: ReadWeight) -> bool:
    """Return whether `weight` is a gate that is apart, which has no parameter of its own."""
    return isinstance(weight, Gate)


def parts(weights: Iterable[SparseWeight]) -> list[SparseWeight]:
    """Return `weights` as methods choose moves of them: gates that are apart, and weights with a pattern, by views."""
    found: list[ReadWeight] = []
    for weight in weights:
        if weight.record.pattern is not None:
            found.append(patterned(weight))
        elif weight.record.gates > 1:
            found += [Gate(weight, index) for index in range(weight.record.gates)]
        else:
            found.append(weight)
    return cast(list[SparseWeight], found)  # methods read weights, and move them whole


def wholes(moves: Sequence[Move]) -> list[Move]:
    """Put the moves of the parts of one weight together into one move of the weight."""
    together: dict[int, list[tuple[Part, Tensor, Tensor]]] = {}
    found: list[Move] = []
    for weight, drop, grow in moves:
        part: ReadWeight = weight
        if not isinstance(part, Part):
            found.append((weight, drop, grow))
            continue
        together.setdefault(id(part.parameter), []).append((part, *part.in_whole(drop, grow)))
    for own in together.values():
        own.sort(key=lambda move: move[0].start)
        found.append(
            (own[0][0].whole, torch.cat([drop for _, drop, _ in own]), torch.cat([grow for *_, grow in own]))
        )
    return found
