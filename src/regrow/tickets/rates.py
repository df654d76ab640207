"""Learning rates of cycles: triangular within each, and steps that restart with each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from regrow.arguments import (
    require_count,
    require_fraction,
    require_numbers,
    require_optimizer,
    require_positive,
)

Rate = Callable[[float], float]
"""The learning rate as a function of the progress within a cycle, in [0, 1)."""


def triangular(progress: float, low: float, high: float) -> float:
    """From `low` to `high` in the middle of the cycle and back (Sup-tickets, arXiv 2205.15322).

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
    """Each of `rates` for an equal part of the cycle (FreeTickets, arXiv 2106.14568: 0.01, then 0.001).

    Args:
        progress: the share of the cycle that is done, in [0, 1).
        rates: one after the other. A rate that holds longer than others stands there several times: ImageNet's 30, 30
            and 10 of 70 epochs are ``3 * [0.01] + 3 * [0.001] + [0.0001]``.
    """
    progress, rates = require_fraction("progress", progress), require_numbers("rates", rates, zero=True)
    return rates[int(round(progress * len(rates), 9))]  # 1 / 49 * 49 is 0.9999999999999999


class _Cyclic(LRScheduler):
    """A scheduler that gives every group the rate of the present step, as a pure function of it."""

    def __init__(self, optimizer: Optimizer, cycle_steps: int, last_epoch: int) -> None:
        self.cycle_steps = require_count("cycle_steps", cycle_steps)
        last_epoch = require_count("last_epoch", last_epoch, least=-1)
        super().__init__(require_optimizer("optimizer", optimizer), last_epoch)

    def rate(self, progress: float) -> float:
        """The learning rate at `progress`, in [0, 1), of a cycle."""
        raise NotImplementedError

    def get_lr(self) -> list[float | Tensor]:
        lr = self.rate(self.last_epoch % self.cycle_steps / self.cycle_steps)
        return [lr for _ in self.optimizer.param_groups]


class Triangular(_Cyclic):
    """`triangular` cycles without end, one scheduler step an optimizer step; the last stage of a `SequentialLR`.

    Args:
        optimizer: the optimizer.
        cycle_steps: optimizer steps of a cycle.
        low, high: learning rates at the ends and in the middle of a cycle.
        last_epoch: the step to go on from, as in torch.

    Raises:
        RegrowValueError: a rate that is not positive, a cycle without steps.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        cycle_steps: int,
        low: float = 0.001,
        high: float = 0.005,
        last_epoch: int = -1,
    ) -> None:
        self.low, self.high = require_positive("low", low), require_positive("high", high)
        super().__init__(optimizer, cycle_steps, last_epoch)

    def rate(self, progress: float) -> float:
        return triangular(progress, self.low, self.high)


class StepRestarts(_Cyclic):
    """`steps` that restart with each cycle, one scheduler step an optimizer step.

    Args:
        optimizer: the optimizer.
        cycle_steps: optimizer steps of a cycle.
        rates: learning rates, each for an equal part of the cycle.
        last_epoch: the step to go on from, as in torch.

    Raises:
        RegrowValueError: a rate that is not positive, a cycle without steps.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        cycle_steps: int,
        rates: Sequence[float] = (0.01, 0.001),
        last_epoch: int = -1,
    ) -> None:
        self.rates = require_numbers("rates", rates)
        super().__init__(optimizer, cycle_steps, last_epoch)

    def rate(self, progress: float) -> float:
        return steps(progress, self.rates)
