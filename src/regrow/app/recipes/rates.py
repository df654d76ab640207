"""Learning-rate schedules, each a pure function of the step, so that a resumed run needs no state of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from regrow.arguments import require_count, require_numbers, require_positive, require_sequence, said
from regrow.errors import RegrowValueError

Rate = Callable[[int], float]
"""step -> factor of the optimizer's learning rate."""


def constant(total_steps: int, *, warmup_steps: int = 0) -> Rate:
    """Return 1 throughout."""
    require_count("schedule.total_steps", total_steps)
    return _warm_up(lambda step: 1.0, warmup_steps)


def cosine(total_steps: int, *, warmup_steps: int = 0) -> Rate:
    """Return (1 + cos(pi t / T)) / 2: from 1 after the warm-up to 0 at the end."""
    total_steps, warmup_steps = (
        require_count("schedule.total_steps", total_steps),
        _warm_up_steps(warmup_steps),
    )
    length = max(1, total_steps - warmup_steps)
    return _warm_up(lambda step: (1 + math.cos(math.pi * (step - warmup_steps) / length)) / 2, warmup_steps)


def step(
    total_steps: int,
    *,
    milestones: Sequence[int],
    factor: float | Sequence[float] = 0.1,
    warmup_steps: int = 0,
) -> Rate:
    """Return `factor` to the power of how many `milestones` (in steps) have passed; of a list, what stands at the last
    of them, and 1 before the first.
    """
    listed = require_sequence("schedule.milestones", milestones, "a list of steps")
    steps = [require_count("schedule.milestones", at, least=0) for at in listed]
    if any(later < earlier for earlier, later in pairwise(steps)):
        raise RegrowValueError(f"`schedule.milestones` must be ascending steps, got {said(milestones)}")
    require_count("schedule.total_steps", total_steps)
    if isinstance(factor, Sequence):
        factors = (1.0, *require_numbers("schedule.factor", factor, count=len(steps)))
        return _warm_up(lambda now: factors[sum(now >= at for at in steps)], warmup_steps)
    factor = require_positive("schedule.factor", factor)
    return _warm_up(lambda now: factor ** sum(now >= at for at in steps), warmup_steps)


def _warm_up_steps(steps: object) -> int:
    return require_count("schedule.warmup_steps", steps, least=0)


def _warm_up(rate: Rate, steps: int) -> Rate:
    """Return `rate`, but rising in equal steps to 1 over the first `steps` steps."""
    steps = _warm_up_steps(steps)
    return lambda step: (step + 1) / steps if step < steps else rate(step)


RATES: dict[str, Callable[..., Rate]] = {"constant": constant, "cosine": cosine, "step": step}
