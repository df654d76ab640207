"""Exact selection of the best, with ties by index."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from regrow.errors import RegrowRuntimeError
from regrow.ops.backends import SCAN, SELECT, use_kernel

ROOM = 1 << 18
"""Candidates that may wait beside the best, before the worst of all are dropped."""


def top(scores: Tensor, count: int, what: str = "a score", *, lowest: bool = False) -> Tensor:
    """Find the `count` highest of `scores` [n]: indices, ascending, int64 [count]; ties go to the lower index.

    The same as a stable descending sort, in linear time. `what` is what messages call a score; `lowest` asks for the
    lowest instead.

    Raises:
        RegrowRuntimeError: a score is nan.
    """
    if count == 0:
        return torch.empty(0, dtype=torch.int64, device=scores.device)
    if use_kernel(SELECT, scores):
        chosen: Tensor = torch.ops.regrow_native.top.default(scores.contiguous(), count, lowest, None)
        if len(chosen) < count:
            raise _nan(what)
        return chosen
    scores = -scores if lowest else scores
    threshold = torch.topk(scores, count, sorted=False).values.min()
    if threshold.isnan():
        raise _nan(what)
    above = (scores > threshold).nonzero().view(-1)
    tied = (scores == threshold).nonzero().view(-1)[: count - len(above)]
    return torch.cat([above, tied]).sort().values


def top_of_rows(scores: Tensor, counts: Tensor, free: Tensor) -> Tensor:
    """Find the `counts[i]` highest of each row i of `scores` [r, c]; ties go to the lower index.

    Args:
        scores: [r, c].
        counts: how many of each row, int64 [r].
        free: which may be chosen, boolean [r, c].

    Returns:
        Flat indices, ascending, int64 [counts.sum()].

    Raises:
        RegrowRuntimeError: a score that may be chosen is nan, or a row has too few.
    """
    if scores[free].isnan().any():
        raise _nan("a score")
    order = scores.sort(dim=1, descending=True, stable=True).indices
    ranked = free.gather(1, order)
    ranked &= ranked.cumsum(1) <= counts[:, None]
    chosen = torch.zeros_like(free).scatter_(1, order, ranked)
    if not torch.equal(chosen.sum(1), counts):
        row = int((chosen.sum(1) != counts).nonzero()[0])
        raise RegrowRuntimeError(
            f"a row must have as many free positions as it grows connections: {int(counts[row])} are to come where "
            f"{int(free[row].sum())} are free"
        )
    return chosen.view(-1).nonzero().view(-1)


def _nan(what: str) -> RegrowRuntimeError:
    return RegrowRuntimeError(
        f"{what} is nan, allowed are numbers and inf.\nThe weights have diverged? Train with a lower learning rate."
    )


def floor_of(sample: Tensor, rows: Tensor, excluded: Tensor, share: float) -> float:
    """Find a magnitude that somewhat more than `share` of all free positions are likely to reach, or -inf.

    Args:
        sample: some rows of the scores [n, columns], which is used up.
        rows: their numbers, int64 [n].
        excluded: positions in the whole matrix that are not free, ascending, int64.
        share: in [0, 1].
    """
    if not use_kernel(SELECT, sample):
        return -math.inf
    excluded = excluded.contiguous()
    return float(torch.ops.regrow_native.floor.default(sample.contiguous(), rows, excluded, share))


class Best:
    """The `count` best of scores that come in tiles of ascending positions; ties go to the lower position.

    Exactly what `top` would choose from all of them at once, in memory of `count` and a tile.

    Args:
        count: how many.
        device: of the scores.
        floor: scores below it are left out, which is faster where `filled` turns out to be `count` after all.
    """

    def __init__(self, count: int, device: torch.device, floor: float = -math.inf) -> None:
        self.count = count
        self._floor = floor
        self._native = use_kernel(SELECT, torch.empty(0, dtype=torch.float64, device=device))
        self._scores: Tensor | None = None
        self._positions = torch.empty(
            2 * count + ROOM if self._native else 0, dtype=torch.int64, device=device
        )
        self._filled = 0

    @property
    def filled(self) -> int:
        """How many have been found, at most `count`."""
        return min(self._filled, self.count)

    def add(self, scores: Tensor, excluded: Tensor, offset: int) -> None:
        """Take in a tile.

        Args:
            scores: of any shape; their positions are `offset` and on.
            excluded: positions of the tile that may not be chosen, ascending, int64.
            offset: the position of the first score.

        Raises:
            RegrowRuntimeError: a score is nan.
        """
        if (
            self._native
            and (self._scores is None or scores.dtype == self._scores.dtype)
            and use_kernel(SELECT, scores)
        ):
            # what is not free may be nan
            free = scores.reshape(-1).index_fill(0, excluded - offset, -math.inf) if len(excluded) else scores
            if not self._scan(free.contiguous(), excluded, offset, False):
                raise _nan("a score")
            return
        scores = scores.reshape(-1)
        free = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
        free[excluded - offset] = False
        positions = free.nonzero().view(-1)
        scores, positions = scores[positions], positions + offset
        if self._scores is not None:
            scores = torch.cat([self._scores[: self._filled], scores])
            positions = torch.cat([self._positions[: self._filled], positions])
        chosen = top(scores, min(self.count, len(scores)))
        self._native, self._scores, self._positions = False, scores[chosen], positions[chosen]
        self._filled = len(chosen)

    def add_magnitude(self, tile: Tensor, excluded: Tensor, offset: int) -> bool:
        """Take in the magnitudes of a tile; return whether all of it is finite, otherwise take nothing."""
        if self._native and use_kernel(SCAN, tile):
            return self._scan(tile, excluded, offset, True)
        if not tile.isfinite().all():
            return False
        self.add(tile.abs(), excluded, offset)
        return True

    def _scan(self, tile: Tensor, excluded: Tensor, offset: int, magnitude: bool) -> bool:
        if self._scores is None:
            self._scores = tile.new_empty(len(self._positions))
        filled: int = torch.ops.regrow_native.scan.default(
            tile,
            excluded.contiguous(),
            offset,
            magnitude,
            max(self.count, 1),
            self._floor,
            self._scores,
            self._positions,
            self._filled,
        )
        if filled < 0:
            return False
        self._filled = filled
        return True

    def positions(self) -> Tensor:
        """Return the chosen ones, ascending, int64 [filled]."""
        positions = self._positions[: self._filled]
        if self._scores is None or self._filled <= self.count:
            return positions.clone()
        if self.count == 0:
            return positions[:0]
        scores = self._scores[: self._filled]
        chosen: Tensor = torch.ops.regrow_native.top.default(scores, self.count, False, positions)
        return chosen
