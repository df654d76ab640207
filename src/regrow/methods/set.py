"""SET: drop the smallest weights, grow at random."""

from __future__ import annotations

import torch
from torch import Tensor

from regrow import criteria
from regrow.methods.dynamic import Dynamic
from regrow.methods.registry import register
from regrow.weights import SparseWeight


@register(
    name="set",
    paper="arXiv 1707.04780",
    line="grows at random",
    drop="magnitude",
    grow="random",
)
class SET(Dynamic):
    """Sparse Evolutionary Training (arXiv 1707.04780), in the form of the RigL paper's comparison.

    Differs from the original: smallest |w| of both signs together, every `update_every` steps on RigL's schedule
    instead of after each epoch; new connections start at 0.
    """

    def grow(self, weight: SparseWeight, count: int, survivors: Tensor, generator: torch.Generator) -> Tensor:
        return criteria.random_positions(weight, count, survivors, generator)
