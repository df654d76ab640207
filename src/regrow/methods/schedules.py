"""When a topology is updated, and what fraction of the connections is then dropped."""

from __future__ import annotations

import math
from collections.abc import Callable

from regrow.arguments import require_fraction, require_function, require_positive
from regrow.errors import RegrowValueError, closest
from regrow.sparsity.distributions import whole_share

DropSchedule = Callable[[float], float]


def constant(progress: float) -> float:
    """Return f = 1."""
    return 1.0


def linear(progress: float) -> float:
    """Return f = 1 - t / T_end (RigL's inverse power schedule with k = 1, arXiv 1911.11134, appendix)."""
    return 1.0 - progress


def cosine(progress: float) -> float:
    """Return f = (1 + cos(pi t / T_end)) / 2 (RigL, arXiv 1911.11134, section 3)."""
    return (1 + math.cos(math.pi * progress)) / 2


def inverse_power(k: float) -> DropSchedule:
    """Return f = (1 - t / T_end)^k (RigL, arXiv 1911.11134, appendix G); k = 1 is `linear`."""
    power = require_positive("k", k, zero=True)
    return lambda progress: (1.0 - progress) ** power


def cosine_to(k: float) -> DropSchedule:
    """Return f = k + (1 - k) (1 + cos(pi t / T_end)) / 2: `cosine`, down to the share k of its start (arXiv
    2102.02887).
    """
    k = require_fraction("k", k, one=True)
    return lambda progress: k + (1 - k) * cosine(progress)


def halved_at(k: float) -> DropSchedule:
    """Return f = 1 before the share k of T_end, 0.5 from there on (MEST's code, arXiv 2110.14032)."""
    k = require_fraction("k", k, one=True)
    return lambda progress: 1.0 if progress < k else 0.5


def cubic(progress: float) -> float:
    """Return the share of the way to the final sparsity, 1 - (1 - p)^3 (Zhu and Gupta, arXiv 1710.01878)."""
    return 1.0 - (1.0 - progress) ** 3


SCHEDULES: dict[str, DropSchedule] = {"cosine": cosine, "linear": linear, "constant": constant}
FAMILIES = {
    "inverse-power-": (inverse_power, "inverse-power-3"),
    "cosine-to-": (cosine_to, "cosine-to-0.01"),
    "halved-at-": (halved_at, "halved-at-0.75"),
}
"""Prefixes of names that end in a number k: the function of k, and an example."""


def drop_schedule(schedule: str | DropSchedule) -> DropSchedule:
    """Return the function ``t / T_end -> factor of the drop fraction`` named `schedule`, or itself.

    Raises:
        RegrowValueError: for an unknown name.
    """
    if not isinstance(schedule, str):
        require_function("schedule", schedule, "progress", others="a name or ")
        for progress in (0.0, 0.25, 0.5, 0.75, 1.0):
            require_fraction(f"schedule({progress})", schedule(progress), one=True)
        return schedule
    for prefix, (family, example) in FAMILIES.items():
        if schedule.startswith(prefix):
            try:
                k = float(schedule.removeprefix(prefix))
            except ValueError as error:
                raise RegrowValueError(
                    f"`schedule` must be {prefix}k with a number k, such as {example}, got {schedule!r}"
                ) from error
            try:
                return family(k)
            except RegrowValueError as error:
                raise RegrowValueError(f"`schedule` {schedule!r}: {error}") from error
    if schedule not in SCHEDULES:
        raise RegrowValueError(
            f"`schedule` must be one of {', '.join(SCHEDULES)}, inverse-power-k, cosine-to-k, halved-at-k or a "
            f"function of t / T_end, got {schedule!r}{closest(schedule, SCHEDULES)}"
        )
    return SCHEDULES[schedule]


def first_step(fraction: float, total_steps: int, every: int = 1) -> int:
    """Find the first multiple of `every` at or after ``fraction * total_steps``."""
    return -(-whole_share(fraction, total_steps, up=True) // every) * every


def last_step(fraction: float, total_steps: int, every: int = 1) -> int:
    """Find the last multiple of `every` up to ``fraction * total_steps``."""
    return whole_share(fraction, total_steps) // every * every


def is_update_step(step: int, every: int, end: int) -> bool:
    """Apply RigL's rule: ``step mod every == 0 and 0 < step < end``, steps counted from 0."""
    return step % every == 0 and 0 < step < end


def next_update(step: int, every: int, end: int) -> int | None:
    """Return the first update step at or after `step`, or None."""
    due = max(every, -(-step // every) * every)
    return due if due < end else None


def last_update(every: int, end: int) -> int | None:
    """Return the last update step there will be, or None."""
    due = (end - 1) // every * every
    return due if due > 0 else None
