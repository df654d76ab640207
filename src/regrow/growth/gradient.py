"""`DenseGradient`: what the growth search reads, some rows at a time; whole, or computed as it is read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from regrow.ops.listener import Operands

TILE = 1 << 19
"""Elements of a dense gradient that exist at a time; four times as many where rows are long."""

Reduce = Callable[[Tensor], Tensor]
"""Averages a tensor over processes, in place."""


class DenseGradient(ABC):
    """The dense gradient of a weight, as a matrix.

    Args:
        rows: how many.
        columns: numbers of the columns in the weight, int64 [c].
    """

    def __init__(self, rows: int, columns: Tensor) -> None:
        self.rows, self.columns = rows, columns

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.rows * len(self.columns)

    @property
    def is_large(self) -> bool:
        """Whether it takes more than a tile."""
        return self.numel > TILE

    @abstractmethod
    def tiles(self) -> Iterator[tuple[int, Tensor]]:
        """Go through the rows: the number of the first and a tile [r, c], float32 or better, until the next one."""

    @abstractmethod
    def at(self, rows: Tensor) -> Tensor:
        """Copy the rows with these numbers, int64 [n]."""

    @abstractmethod
    def among(self, columns: Tensor) -> DenseGradient:
        """Choose columns by their place, int64 [n], ascending."""

    @abstractmethod
    def between(self, first: int, end: int) -> DenseGradient:
        """Choose the rows from `first` on, up to `end`, which are numbered from 0 then."""

    def sample(self) -> tuple[Tensor, Tensor]:
        """Copy a few of the rows; returns them and their numbers, int64 [n]."""
        number = max(1, min(max(16, self.rows // 32), 64, self.rows, 8 * TILE // len(self.columns)))
        chosen = (torch.arange(number, device=self.columns.device) * self.rows + self.rows // 2) // number
        return self.at(chosen), chosen


class Whole(DenseGradient):
    """A dense gradient that is there.

    Args:
        matrix: [rows, columns].
        columns: their numbers in the weight; None is all.
    """

    def __init__(self, matrix: Tensor, columns: Tensor | None = None) -> None:
        super().__init__(
            len(matrix), torch.arange(matrix.shape[1], device=matrix.device) if columns is None else columns
        )
        self._matrix = matrix

    def tiles(self) -> Iterator[tuple[int, Tensor]]:
        yield 0, self._matrix

    def at(self, rows: Tensor) -> Tensor:
        return self._matrix[rows]

    def among(self, columns: Tensor) -> Whole:
        return Whole(self._matrix[:, columns], self.columns[columns])

    def between(self, first: int, end: int) -> Whole:
        return Whole(self._matrix[first:end], self.columns)


class Computed(DenseGradient):
    """The sum of what several operands give, computed a tile at a time.

    Args:
        operands: of backward passes; none give zero.
        rows: of the weight.
        columns: numbers of those that the operands give.
        dtype: what to compute in.
        reduce: averages a tile over processes.
        first: the number of the first row in what the operands give.
    """

    def __init__(
        self,
        operands: Sequence[Operands],
        rows: int,
        columns: Tensor,
        dtype: torch.dtype,
        reduce: Reduce | None = None,
        first: int = 0,
    ) -> None:
        super().__init__(rows, columns)
        self._operands, self._dtype, self._reduce, self._first = operands, dtype, reduce, first

    def tiles(self) -> Iterator[tuple[int, Tensor]]:
        columns = len(self.columns)
        height = max(1, TILE // columns, min(512, 4 * TILE // columns))  # few rows make a slow product
        memory = self._empty(min(height, self.rows))
        for start in range(0, self.rows, height):
            yield start, self._put(self._operands, self._first + start, memory[: self.rows - start])

    def at(self, rows: Tensor) -> Tensor:
        chosen = [each.in_rows(rows + self._first) for each in self._operands]
        return self._put(chosen, 0, self._empty(len(rows)))

    def among(self, columns: Tensor) -> Computed:
        operands = [each.among(columns) for each in self._operands]
        return Computed(operands, self.rows, self.columns[columns], self._dtype, self._reduce, self._first)

    def between(self, first: int, end: int) -> Computed:
        start = self._first + first
        return Computed(self._operands, end - first, self.columns, self._dtype, self._reduce, start)

    def is_zero(self) -> bool:
        """Return whether all of it is zero, in this process."""
        found = [(each, reached) for each in self._operands if len(reached := each.rows())]
        if not found:
            return True
        here = Computed([each for each, _ in found], self.rows, self.columns, self._dtype)
        if here.at(found[0][1][:16]).any():  # nearly always enough
            return False
        return not any(bool(tile.any()) for _, tile in here.tiles())

    def _empty(self, rows: int) -> Tensor:
        return torch.empty(rows, len(self.columns), dtype=self._dtype, device=self.columns.device)

    def _put(self, operands: Sequence[Operands], start: int, tile: Tensor) -> Tensor:
        """Put the rows from `start` on into `tile`."""
        if not operands:
            tile.zero_()
        for i, each in enumerate(operands):
            each.put_rows(tile, start, add=i > 0)
        return self._reduce(tile) if self._reduce else tile
