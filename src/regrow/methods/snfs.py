"""SNFS: grow where the gradient's running average is largest, and where a layer makes best use of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow import criteria
from regrow.errors import require_fraction
from regrow.methods.dynamic import Dynamic
from regrow.methods.registry import register
from regrow.methods.state import PREFIX
from regrow.weights import SparseWeight

AVERAGE = f"{PREFIX}average"
FULL = 0.99  # no layer is grown beyond this share of its free positions


@register(
    name="snfs",
    paper="arXiv 1907.04840",
    line="grows by momentum, across layers",
    drop="magnitude",
    grow="momentum",
    redistribute="momentum",
    cost="snfs",
)
class SNFS(Dynamic):
    """Sparse Networks from Scratch, or Sparse Momentum (arXiv 1907.04840).

    A running average of the dense gradient decides where connections come, in which layer (by its mean magnitude
    over the layer's connections) and at which positions. It is the method's own, in ``optimizer.state[p]``, apart
    from the optimizer's momentum, and needs the dense gradient at every step: masked storage only.

    Differs from the original, as the RigL paper's version does: updates every `update_every` steps on RigL's
    schedule; counts are exact.

    Args:
        model: a model that `sparsify` has made sparse, in masked storage.
        optimizer: the torch optimizer that trains it.
        momentum: decay of the running average, in [0, 1).
        redistribution: move connections across layers, as the original does; the RigL paper's SNFS does not.
        options: those of `Dynamic`.
    """

    needs_gradient = "always"

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        momentum: float = 0.9,
        redistribution: bool = True,
        **options: Any,
    ) -> None:
        self.momentum = require_fraction("momentum", momentum)
        self.redistribution = redistribution
        super().__init__(model, optimizer, **options)

    def observe(self, weight: SparseWeight, gradient: Tensor) -> None:
        before = self.remembered(weight, AVERAGE)
        gradient = self.average(gradient)
        if gradient.isfinite().all():
            average = gradient if before is None else before.to(gradient).lerp_(gradient, 1 - self.momentum)
            self.remember(weight, AVERAGE, average.clone() if before is None else average)

    def _goes_by(self, weight: SparseWeight) -> bool:
        average = self.remembered(weight, AVERAGE)
        return super()._goes_by(weight) if average is None else bool(average.any())

    def grow(self, weight: SparseWeight, count: int, survivors: Tensor, generator: torch.Generator) -> Tensor:
        return weight.best(count, survivors, criteria.gradient_magnitude, gradient=self._average(weight))

    def redistribute(self, weights: list[SparseWeight], dropped: list[int]) -> list[int]:
        if not self.redistribution:
            return dropped
        shares = torch.stack([weight.take(self._average(weight)).abs().mean() for weight in weights]).double()
        room = torch.tensor(
            [FULL * (w.numel - w.nnz + d) for w, d in zip(weights, dropped, strict=True)],
            dtype=torch.float64,
            device="cpu",
        ).floor()
        return apportion(sum(dropped), shares.cpu(), room)

    def _average(self, weight: SparseWeight) -> Tensor:
        average = self.remembered(weight, AVERAGE)
        if average is None:  # nothing has been remembered yet: the gradient of this step is all there is
            return self.average(weight.stashed)
        return average


def apportion(total: int, shares: Tensor, room: Tensor) -> list[int]:
    """Whole numbers that add up to `total`, in proportion to `shares` [n], none above `room` [n].

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
