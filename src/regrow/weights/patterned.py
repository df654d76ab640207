"""Weights with a pattern, as methods see them: what they drop and grow keeps to it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from regrow.errors import RegrowRuntimeError, RegrowValueError
from regrow.growth.among import Among
from regrow.growth.gradient import TILE, DenseGradient, Reduce
from regrow.growth.groups import Noise
from regrow.growth.scores import Score, ScoreFunction, as_score
from regrow.growth.search import best_of_groups
from regrow.weights.base import SparseWeight
from regrow.weights.part import Part
from regrow.weights.patterns import AS_IT_IS, Blocks, Grouping
from regrow.weights.reading import as_matrix


class Grouped(Part):
    """A weight whose groups keep their connections: each gets back as many as it loses.

    Args:
        whole: the weight.
        pattern: that it has.
    """

    def __init__(self, whole: SparseWeight, pattern: Grouping) -> None:
        super().__init__(whole)
        self._pattern, self._groups = pattern, pattern.groups(whole.shape)

    @property
    def nnz(self) -> int:
        return self.whole.nnz

    def positions(self) -> Tensor:
        return self._all

    def survivors(self, drop: Tensor) -> Tensor:
        return self.whole.survivors(drop)

    def take(self, tensor: Tensor) -> Tensor:
        return self.whole.take(tensor)

    def magnitudes(self) -> Tensor:
        return self.whole.magnitudes()

    def dense_gradient(self, reduce: Reduce | None = None, given: Tensor | None = None) -> DenseGradient:
        return self.whole.dense_gradient(reduce, given)

    @cached_property
    def _counts(self) -> Tensor:
        return self._count(self._all)

    def _count(self, positions: Tensor) -> Tensor:
        return self._groups.counts(positions, self.shape[0])

    def _lost(self, count: int, survivors: Tensor) -> Tensor:
        """Return how many connections each group has lost, `count` together, int64 [groups]."""
        lost = self._counts - self._count(survivors)
        if int(lost.sum()) != count:
            raise RegrowValueError(
                f"`{self.name}` has the pattern {self._pattern}, which keeps its number of connections: "
                f"{int(lost.sum())} go, and {count} were to come"
            )
        return lost

    def best(
        self,
        count: int,
        survivors: Tensor,
        score: Score | ScoreFunction,
        reduce: Reduce | None = None,
        gradient: Tensor | None = None,
        among: Among | None = None,
    ) -> Tensor:
        if among is not None:
            raise RegrowValueError(
                f"`among` must be None for `{self.name}`, got some columns: groups of its pattern {self._pattern} may "
                "lie outside them"
            )
        lost, found = self._lost(count, survivors), self.dense_gradient(reduce, gradient)
        return best_of_groups(found, lost, survivors, as_score(score), self._groups)

    def draw(self, count: int, survivors: Tensor, generator: torch.Generator) -> Tensor:
        noise = Noise(*as_matrix(self.shape), generator, survivors.device)
        return best_of_groups(noise, self._lost(count, survivors), survivors, AS_IT_IS, self._groups)

    def in_whole(self, drop: Tensor, grow: Tensor) -> tuple[Tensor, Tensor]:
        if not self._pattern.allows(self._counts - self._count(self._all[drop]) + self._count(grow)):
            raise RegrowValueError(
                f"`{self.name}` has the pattern {self._pattern}, and would lose it by what is dropped and grown.\n"
                "Choose what grows with best or draw of the weight, or make it sparse without `pattern`."
            )
        return drop, grow


class Blocked(Part):
    """A weight whose connections are blocks: to a method each is one connection, of the mean magnitude in it.

    Args:
        whole: the weight.
        pattern: that it has.
    """

    def __init__(self, whole: SparseWeight, pattern: Blocks) -> None:
        super().__init__(whole)
        self._pattern = pattern

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in blocks."""
        return self._pattern.units(self.whole.shape)

    @cached_property
    def _blocks(self) -> Tensor:
        found: Tensor = self._pattern.of(self.whole.shape, self._all).unique()
        if len(found) * self._pattern.size != len(self._all):
            raise RegrowRuntimeError(f"`{self.name}` has lost its pattern {self._pattern}")
        return found

    @cached_property
    def _members(self) -> Tensor:
        """The weight's connections in each block, as indices [n, size]."""
        return torch.searchsorted(self._all, self._pattern.positions(self.whole.shape, self._blocks))

    @property
    def nnz(self) -> int:
        return len(self._blocks)

    def positions(self) -> Tensor:
        return self._blocks

    def take(self, tensor: Tensor) -> Tensor:
        """Return the mean magnitude in each block [n] of a tensor of the parameter's shape."""
        return self.whole.take(tensor)[self._members].abs().mean(1)

    def dense_gradient(self, reduce: Reduce | None = None, given: Tensor | None = None) -> DenseGradient:
        return Pooled(self.whole.dense_gradient(reduce, given), self._pattern, self.whole.shape)

    def in_whole(self, drop: Tensor, grow: Tensor) -> tuple[Tensor, Tensor]:
        come = self._pattern.positions(self.whole.shape, grow)
        return self._members[drop].view(-1).sort().values, come.view(-1).sort().values


class Pooled(DenseGradient):
    """The mean magnitude of a dense gradient in each block.

    Args:
        source: the dense gradient.
        pattern: the blocks.
        shape: of the weight.
        chosen: the columns of blocks, int64 [c]; None is all.
    """

    def __init__(
        self, source: DenseGradient, pattern: Blocks, shape: tuple[int, ...], chosen: Tensor | None = None
    ) -> None:
        columns = torch.arange(as_matrix(pattern.units(shape))[1], device=source.columns.device)
        super().__init__(source.rows // pattern.rows, columns if chosen is None else chosen)
        self._source, self._pattern, self._shape = source, pattern, shape

    def _pool(self, rows: Tensor) -> Tensor:
        """Return the blocks of whole rows of the dense gradient's magnitude."""
        return self._pattern.pool(rows.view(-1, *self._shape[1:])).flatten(1)[:, self.columns]

    def tiles(self) -> Iterator[tuple[int, Tensor]]:
        side = self._pattern.rows
        height = max(1, TILE // (side * len(self._source.columns)))
        for start in range(0, self.rows, height):
            some = self._source.between(start * side, min(start + height, self.rows) * side)
            yield start, self._pool(torch.cat([tile.abs() for _, tile in some.tiles()]))

    def at(self, rows: Tensor) -> Tensor:
        side = torch.arange(self._pattern.rows, device=rows.device)
        return self._pool(self._source.at((rows[:, None] * len(side) + side).view(-1)).abs())

    def among(self, columns: Tensor) -> Pooled:
        return Pooled(self._source, self._pattern, self._shape, self.columns[columns])

    def between(self, first: int, end: int) -> Pooled:
        side = self._pattern.rows
        source = self._source.between(first * side, end * side)
        return Pooled(source, self._pattern, (end - first, *self._shape[1:]), self.columns)


def patterned(weight: SparseWeight) -> Part:
    """Show `weight`, whose record has a pattern, so that what methods choose keeps to it."""
    pattern = weight.record.pattern
    return (
        Blocked(weight, pattern) if isinstance(pattern, Blocks) else Grouped(weight, cast(Grouping, pattern))
    )
