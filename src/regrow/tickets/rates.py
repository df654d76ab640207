"""Learning rates within a cycle: a triangle, or steps one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from regrow.arguments import require_fraction, require_numbers, require_positive

Rate = Callable[[float], float]
"""The learning rate as a function of the progress within a cycle, in [0, 1)."""


def triangular(progress: float, low: float, high: float) -> float:
    """Rise from `low` to `high` in the middle of the cycle and fall back (Sup-tickets, arXiv 2205.15322).

    ``low (1 - 2t) + 2t high`` in the first half, ``low (2t - 1) + (2 - 2t) high`` in the second.

    Args:
        progress: t, the share of the cycle that is done, in [0, 1).
        low, high: learning rates.
    """
    progress = require_fraction("progress", progress)
    low, high = require_positive("low", low, zero=True), require_positive("high", high, zero=True)
    if progress < 0.5:
        return low * (1 - 2 * progress) + high * 2 * progress
    return low * (2 * progress - 1) + high * (2 - 2 * progress)


def steps(progress: float, rates: Sequence[float]) -> float:
    """Return each of `rates` for an equal part of the cycle (FreeTickets, arXiv 2106.14568: 0.01, then 0.001).

    Args:
        progress: the share of the cycle that is done, in [0, 1).
        rates: one after the other. A rate that holds longer than others stands there several times: ImageNet's 30, 30
            and 10 of 70 epochs are ``3 * [0.01] + 3 * [0.001] + [0.0001]``.
    """
    progress, rates = require_fraction("progress", progress), require_numbers("rates", rates, zero=True)
    return rates[int(round(progress * len(rates), 9))]  # 1 / 49 * 49 is 0.9999999999999999
