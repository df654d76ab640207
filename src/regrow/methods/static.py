"""Static: a fixed sparse topology, the baseline of all others."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from regrow.methods.base import Method
from regrow.methods.registry import register


@register(
    name="static",
    paper="arXiv 1911.11134",
    line="a fixed topology",
    drop="none",
    grow="none",
)
class Static(Method):
    """The topology that `sparsify` gave, unchanged (the baseline "Static" of RigL, arXiv 1911.11134).

    Args:
        model: a model that `sparsify` has made sparse.
        optimizer: the torch optimizer that trains it.
        total_steps: optimizer steps of the whole run; not needed.
        seed: not needed, there is nothing random.
        process_group: processes that train one model together.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        total_steps: int | None = None,
        seed: int = 0,
        process_group: Any = None,
    ) -> None:
        super().__init__(model, optimizer, total_steps=total_steps, seed=seed, process_group=process_group)
