"""Growth scores: what each position is worth, given the dense gradient there."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, final

from torch import Tensor

from regrow.arguments import require_function
from regrow.ops.select import Best, floor_of

ScoreFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Growth score as a plain function ``(gradient, rows, columns) -> scores``; see `Score.__call__`."""


class Score(ABC):
    """Rank growth candidates: those with the highest score come.

    `__call__` is all that a score needs. One with a kernel overrides `offer`, and `floor` where it can tell from a few
    rows what is worth looking at: both must come to what `__call__` says.
    """

    has_floor: ClassVar[bool] = False
    """Whether `floor` can say something, so that a sample of the gradient is worth computing."""

    @abstractmethod
    def __call__(self, gradient: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Score a tile of the dense gradient, element by element.

        Args:
            gradient: the tile [r, c], float32 or better, to be left as it is.
            rows: numbers of its rows, int64 [r, 1].
            columns: numbers of its columns, int64 [1, c].

        Returns:
            Scores [r, c], or what broadcasts to them.
        """

    def offer(
        self, best: Best, tile: Tensor, rows: Tensor, columns: Tensor, excluded: Tensor, offset: int
    ) -> bool:
        """Offer the scores of a tile to `best`.

        Args:
            best: takes them in.
            tile, rows, columns: as for `__call__`.
            excluded: positions of the tile that are not free, ascending, int64.
            offset: the position of the tile's first element.

        Returns:
            Whether the tile is finite; else nothing has been offered.
        """
        if not tile.isfinite().all():
            return False
        best.add(self(tile, rows, columns).expand(tile.shape), excluded, offset)
        return True

    def floor(self, sample: Tensor, rows: Tensor, excluded: Tensor, share: float) -> float:
        """Find a score that somewhat more than `share` of all free positions are likely to reach.

        Args:
            sample: some rows of the dense gradient [n, c], which may be used up.
            rows: their numbers, int64 [n].
            excluded: positions of the whole gradient that are not free, ascending, int64.
            share: in [0, 1].

        Returns:
            The score; -inf where none is known.
        """
        return -math.inf


@final
class GradientMagnitude(Score):
    """Score by |dL/dw|: the largest come (RigL). A kernel scores and selects in one pass over each tile."""

    has_floor = True

    def __init_subclass__(cls, **options: Any) -> None:
        raise TypeError("GradientMagnitude has a kernel, which a subclass would inherit: subclass Score")

    def __call__(self, gradient: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        return gradient.abs()

    def offer(
        self, best: Best, tile: Tensor, rows: Tensor, columns: Tensor, excluded: Tensor, offset: int
    ) -> bool:
        return best.add_magnitude(tile, excluded, offset)

    def floor(self, sample: Tensor, rows: Tensor, excluded: Tensor, share: float) -> float:
        return floor_of(sample, rows, excluded, share)


gradient_magnitude = GradientMagnitude()


class FunctionScore(Score):
    """Score by a plain function.

    All scores are computed and compared, which takes several times as long as a score with a kernel: ``lambda
    gradient, *_: gradient.abs()`` finds what `gradient_magnitude` finds, in about four times its time.
    """

    def __init__(self, function: ScoreFunction) -> None:
        self._function: ScoreFunction = require_function("score", function, "gradient", "rows", "columns")

    def __call__(self, gradient: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        return self._function(gradient, rows, columns)


def as_score(score: Score | ScoreFunction) -> Score:
    """Make a score of a plain function; a score stays what it is.

    Raises:
        RegrowValueError: something that cannot be called with a gradient, rows and columns.
    """
    return score if isinstance(score, Score) else FunctionScore(score)
