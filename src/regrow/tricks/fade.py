"""How strong a trick is at each step of a run: all of it at first, nothing in the end."""

from __future__ import annotations

import math
from collections.abc import Callable

from regrow.arguments import require_choice, require_count, require_fraction
from regrow.errors import RegrowValueError

SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    "constant": lambda progress: 1.0,
}
"""From the progress between start and stop, in [0, 1), to the strength."""


class Fade:
    """A strength that is 1 up to a start, falls, and is exactly 0 from a stop on: a pure function of the step.

    ToST (arXiv 2206.12755) has its ghosts in the early stage of training; no values of its schedules are known, so
    these are regrow's.

    Args:
        total_steps: optimizer steps of the whole run.
        start_fraction: share of the run after which the strength falls.
        stop_fraction: share of the run after which it is 0.
        shape: of the fall: ``"linear"``, ``"cosine"`` (half a period), or ``"constant"``, 1 up to the stop.

    Raises:
        RegrowValueError: an argument that is not allowed, a start behind the stop, or a stop at step 0.

    Example:
        >>> fade = Fade(100, start_fraction=0.2, stop_fraction=0.6)
        >>> [fade(step) for step in (0, 20, 30, 59, 60, 99)]
        [1.0, 1.0, 0.75, 0.025000000000000022, 0.0, 0.0]
    """

    def __init__(
        self,
        total_steps: int,
        *,
        start_fraction: float = 0.0,
        stop_fraction: float = 0.5,
        shape: str = "linear",
    ) -> None:
        total = require_count("total_steps", total_steps)
        first = require_fraction("start_fraction", start_fraction, one=True)
        last = require_fraction("stop_fraction", stop_fraction, one=True)
        if first > last:
            raise RegrowValueError(f"`start_fraction` must be at most `stop_fraction` {last}, got {first}")
        self.start, self.stop = round(first * total), round(last * total)
        """The step from which the strength falls, and the first at which it is 0."""
        if not self.stop:
            raise RegrowValueError(
                f"`stop_fraction` {last} of `total_steps` {total} is before the first step"
            )
        self.shape = require_choice("shape", shape, SHAPES)

    def __call__(self, step: int) -> float:
        """Return the strength at optimizer step `step`, counted from 0."""
        if step >= self.stop:
            return 0.0
        return SHAPES[self.shape](max(0, step - self.start) / max(1, self.stop - self.start))
