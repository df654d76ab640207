"""The search for growth candidates: exact, tile by tile, with ties to the lower position."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from regrow.errors import RegrowRuntimeError
from regrow.growth.among import Among
from regrow.growth.gradient import DenseGradient
from regrow.growth.groups import Groups
from regrow.growth.scores import Score
from regrow.ops.select import Best, top_of_rows


class NonFiniteGradientError(RegrowRuntimeError):
    """A dense gradient holds inf or nan: nothing may be grown by it."""

    def __init__(self) -> None:
        super().__init__("the dense gradient is not finite")


def best(
    gradient: DenseGradient, count: int, survivors: Tensor, score: Score, among: Among | None = None
) -> Tensor:
    """Find the positions with the highest scores.

    Args:
        gradient: the dense gradient.
        count: how many positions, at most as many as are free.
        survivors: positions that are not free, ascending, int64.
        score: what a position is worth.
        among: the columns to search; None is all.

    Returns:
        Positions, ascending, int64 [count].

    Raises:
        NonFiniteGradientError: the dense gradient holds inf or nan.
        RegrowRuntimeError: a score is nan.
    """
    if among is not None:
        return among.widen(best(gradient.among(among.chosen), count, among.narrow(survivors), score))
    floor = -math.inf
    if count and score.has_floor and gradient.is_large:
        sample, rows = gradient.sample()
        floor = score.floor(sample, rows, survivors, count / (gradient.numel - len(survivors)))
    found = _scan(gradient, count, survivors, score, floor)
    if found.filled < count and floor > -math.inf:  # the sample was no good guide
        found = _scan(gradient, count, survivors, score, -math.inf)
    return found.positions()


def best_of_rows(
    gradient: DenseGradient, counts: Tensor, survivors: Tensor, score: Score, among: Among | None = None
) -> Tensor:
    """Find the positions with the highest scores of each row.

    Args:
        gradient: the dense gradient.
        counts: how many positions of each row, at most as many as are free in it, int64 [rows].
        survivors, score, among: as for `best`.

    Returns:
        Positions, ascending, int64 [counts.sum()].

    Raises:
        NonFiniteGradientError: the dense gradient holds inf or nan.
        RegrowRuntimeError: a score is nan, or a row has fewer free positions than are to come.
    """
    if among is not None:
        inside = gradient.among(among.chosen)
        return among.widen(best_of_rows(inside, counts, among.narrow(survivors), score))
    columns = len(gradient.columns)
    return best_of_groups(gradient, counts, survivors, score, Groups(columns, columns))


def best_of_groups(
    gradient: DenseGradient, counts: Tensor, survivors: Tensor, score: Score, groups: Groups
) -> Tensor:
    """Find the positions with the highest scores of each group: as `best_of_rows`, which has a group for each row."""
    found, first = [], 0
    for tile, rows, excluded, offset in _tiles(gradient, survivors):
        if not tile.isfinite().all():
            raise NonFiniteGradientError
        scores = score(tile, rows, gradient.columns[None, :]).expand(tile.shape)
        free = torch.ones(tile.numel(), dtype=torch.bool, device=tile.device)
        free[excluded - offset] = False
        split = groups.split(free.view(tile.shape))
        some = counts[first : first + len(split)].to(tile.device)
        found.append(groups.join(top_of_rows(groups.split(scores), some, split)) + offset)
        first += len(split)
    return torch.cat(found)


def _scan(gradient: DenseGradient, count: int, survivors: Tensor, score: Score, floor: float) -> Best:
    """Choose the best of what reaches `floor`."""
    found = Best(count, gradient.columns.device, floor)
    for tile, rows, excluded, offset in _tiles(gradient, survivors):
        if not score.offer(found, tile, rows, gradient.columns[None, :], excluded, offset):
            raise NonFiniteGradientError
    return found


def _tiles(gradient: DenseGradient, survivors: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, int]]:
    """Go through the tiles, with the numbers of their rows [r, 1], what is not free in them and the first position."""
    columns = len(gradient.columns)
    for start, tile in gradient.tiles():
        stop = start + len(tile)
        rows = torch.arange(start, stop, device=tile.device)[:, None]
        yield tile, rows, _between(survivors, start * columns, stop * columns), start * columns


def _between(positions: Tensor, first: int, end: int) -> Tensor:
    """Return those of the ascending `positions` that are in [first, end)."""
    low, high = torch.searchsorted(positions, torch.tensor([first, end], device=positions.device)).tolist()
    return positions[low:high]
