"""SNFS: grow where the gradient's running average is largest, and where a layer makes best use of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.arguments import require_flag, require_fraction
from regrow.methods import criteria
from regrow.methods.dynamic import Dynamic
from regrow.methods.registry import register
from regrow.methods.schedules import DropSchedule
from regrow.methods.state import PREFIX
from regrow.sparsity.distributions import whole_share
from regrow.weights import SparseWeight
from regrow.weights.patterns import Pattern

AVERAGE = f"{PREFIX}average"
FULL = 0.99
"""No layer is grown beyond this share of its free positions, unless to get back what it has dropped."""
DENSE = 0.2
"""Below this sparsity a layer that grows drops at most its sparsity, where that is asked for."""


@register(
    name="snfs",
    paper="arXiv 1907.04840",
    line="grows by momentum, across layers",
    drop="magnitude",
    grow="momentum",
    redistribute="momentum",
)
class SNFS(Dynamic):
    """Sparse Networks from Scratch, or Sparse Momentum (arXiv 1907.04840).

    A running average of the dense gradient, from 0, decides where connections come, in which layer (by its mean
    magnitude over the layer's connections; over all positions of a layer that has none left) and at which positions.
    It is the method's own, in ``optimizer.state[p]``, apart from the optimizer's momentum, and needs the dense
    gradient at every step: masked storage only.

    Differs from the original, as the RigL paper's version does: updates every `update_every` steps on RigL's
    schedule. Counts are exact: what is dropped comes back in the same update, where the original corrects later ones
    by what it missed.

    Args:
        model: a model that `sparsify` has made sparse, in masked storage.
        optimizer: the torch optimizer that trains it.
        momentum: decay of the running average, in [0, 1).
        redistribution: move connections across layers, as the original does; the RigL paper's SNFS does not.
        adjust_prune_rate: as the original does, lower the drop fraction of a layer of sparsity below 0.2 to that
            sparsity, where the layer's share of what is grown is above the average of all.
        total_steps, drop_fraction, update_every, stop_fraction, schedule, grow_init, grow_scale, skip_step, seed,
            process_group: as for `Dynamic`.
    """

    needs_gradient = "always"

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        momentum: float = 0.9,
        redistribution: bool = True,
        adjust_prune_rate: bool = False,
        total_steps: int,
        drop_fraction: float = 0.3,
        update_every: int = 100,
        stop_fraction: float = 0.75,
        schedule: str | DropSchedule = "cosine",
        grow_init: str = "zeros",
        grow_scale: float = 1.0,
        skip_step: bool | None = None,
        seed: int = 0,
        process_group: Any = None,
    ) -> None:
        self.momentum = require_fraction("momentum", momentum)
        self.redistribution = require_flag("redistribution", redistribution)
        self.adjust_prune_rate = require_flag("adjust_prune_rate", adjust_prune_rate)
        super().__init__(
            model,
            optimizer,
            total_steps=total_steps,
            drop_fraction=drop_fraction,
            update_every=update_every,
            stop_fraction=stop_fraction,
            schedule=schedule,
            grow_init=grow_init,
            grow_scale=grow_scale,
            skip_step=skip_step,
            seed=seed,
            process_group=process_group,
        )

    def observe(self, weight: SparseWeight, gradient: Tensor) -> None:
        gradient = self.average(gradient)
        if gradient.isfinite().all():
            self.remember(weight, AVERAGE, self._averaged(self.remembered(weight, AVERAGE), gradient))

    def _averaged(self, before: Tensor | None, gradient: Tensor) -> Tensor:
        """Take one more gradient into the running average."""
        before = torch.zeros_like(gradient) if before is None else before.to(gradient)
        return before.lerp_(gradient, 1 - self.momentum)

    def _average(self, weight: SparseWeight) -> Tensor:
        average = self.remembered(weight, AVERAGE)
        if average is None:  # nothing has been remembered yet: the gradient of this step is all there is
            return self._averaged(None, self.average(weight.stashed))
        return average

    def _goes_by(self, weight: SparseWeight) -> bool:
        average = self.remembered(weight, AVERAGE)
        return super()._goes_by(weight) if average is None else bool(average.any())

    def grow(self, weight: SparseWeight, count: int, survivors: Tensor, generator: torch.Generator) -> Tensor:
        return weight.best(count, survivors, criteria.gradient_magnitude, gradient=self._average(weight))

    def fractions(self, step: int, weights: list[SparseWeight]) -> list[float]:
        fractions = super().fractions(step, weights)
        if not self.adjust_prune_rate:
            return fractions
        shares = self._shares(weights)
        sparsities = [(weight.numel - weight.nnz) / weight.numel for weight in weights]
        return [
            min(sparsity, fraction) if sparsity < DENSE and grows else fraction
            for sparsity, fraction, grows in zip(sparsities, fractions, shares > shares.mean(), strict=True)
        ]

    def redistribute(self, weights: list[SparseWeight], dropped: list[int]) -> list[int]:
        if not self.redistribution:
            return dropped
        room = [
            max(count, whole_share(FULL, weight.numel - weight.nnz + count))
            for weight, count in zip(weights, dropped, strict=True)
        ]
        return apportion(
            sum(dropped), self._shares(weights), torch.tensor(room, dtype=torch.float64, device="cpu")
        )

    def cannot_keep(self, pattern: Pattern) -> str | None:
        if self.redistribution or not pattern.keeps_counts:
            return super().cannot_keep(pattern)
        return None

    def _shares(self, weights: list[SparseWeight]) -> Tensor:
        """Compute the mean magnitude [n] of each layer's average."""
        averages = [self._average(weight) for weight in weights]
        means = [
            float((weight.take(average) if weight.nnz else weight.rows_of(average)).abs().mean())
            for weight, average in zip(weights, averages, strict=True)
        ]
        return torch.tensor(means, dtype=torch.float64, device="cpu")


def apportion(total: int, shares: Tensor, room: Tensor) -> list[int]:
    """Apportion `total` in whole numbers, in proportion to `shares` [n], none above `room` [n].

    What does not fit is spread over the others; the remainder of rounding goes to the largest fractions, the
    lower index first. (The original rounds up and spreads the excess evenly.)
    """
    counts = torch.zeros_like(room)
    open_ = room > 0
    while (left := min(float(total), float(room.sum())) - float(counts.sum())) >= 1 and open_.any():
        weights = torch.where(open_, shares, 0.0)
        weights = weights / weights.sum() if weights.sum() > 0 else open_ / open_.sum()
        wanted = weights * left
        given = wanted.floor()
        rest = int(left - float(given.sum()))
        order = (wanted - given).masked_fill(~open_, -1.0).sort(descending=True, stable=True).indices
        given[order[:rest]] += 1
        counts = torch.minimum(counts + given, room)
        open_ = counts < room
    return [int(count) for count in counts]
