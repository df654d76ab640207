"""RigL: drop the smallest weights, grow where the gradient is largest."""

from __future__ import annotations

import torch
from torch import Tensor

from regrow import criteria
from regrow.methods.dynamic import Dynamic
from regrow.methods.registry import register
from regrow.weights import SparseWeight


@register(
    name="rigl",
    paper="arXiv 1911.11134",
    line="grows where the gradient is largest",
    drop="magnitude",
    grow="gradient",
    cost="rigl",
)
class RigL(Dynamic):
    """Rigging the Lottery (arXiv 1911.11134, Algorithm 1).

    The gradient is that of the loss with respect to the masked weight, before clipping, summed over the step's
    micro-batches and averaged over processes. At an update step the weights rest.
    """

    needs_gradient = "update"
    skips_step = True

    def grow(self, weight: SparseWeight, count: int, survivors: Tensor, generator: torch.Generator) -> Tensor:
        return weight.best(count, survivors, criteria.gradient_magnitude, self.average)
