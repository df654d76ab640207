"""What is dropped and what is grown: scores, and random draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regrow.growth.scores import gradient_magnitude as gradient_magnitude

if TYPE_CHECKING:
    from regrow.weights.base import SparseWeight


def magnitude(weight: SparseWeight) -> Tensor:
    """Drop score |w| of the active connections [nnz]: the smallest go (RigL, SET, SNFS)."""
    return weight.magnitudes()


def magnitude_and_gradient(
    weight: SparseWeight, gradient_weight: float, average: Callable[[Tensor], Tensor]
) -> Tensor:
    """Drop score |w| + lambda |dL/dw| of the active connections [nnz]: the smallest go (MEST).

    The gradient is what the optimizer has in ``.grad``; of a weight without one, zero. `average` averages it over
    processes, before its magnitude is taken.
    """
    score, gradient = weight.magnitudes(), weight.parameter.grad
    taken = torch.zeros_like(score) if gradient is None else weight.take(gradient.detach()).to(score)
    return score.add_(average(taken).abs(), alpha=gradient_weight)


INITIAL = ("zeros", "normal", "uniform")


def initial_values(kind: str, weight: SparseWeight, count: int, generator: torch.Generator) -> Tensor:
    """Return the values [count] that new connections start at, by the reference code's rules.

    ``normal`` has the standard deviation of the layer's active weights, ``uniform`` reaches up to their mean magnitude.
    """
    values = weight.values().double()
    exact: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}  # as `generator`
    if kind == "normal":
        drawn = torch.randn(count, generator=generator, **exact) * float(values.std(correction=0))
    else:
        drawn = (torch.rand(count, generator=generator, **exact) * 2 - 1) * float(values.abs().mean())
    return drawn.to(weight.parameter)


def random_positions(
    weight: SparseWeight, count: int, survivors: Tensor, generator: torch.Generator
) -> Tensor:
    """Draw `count` positions uniformly from all but `survivors` (SET), which ascend: ascending, int64 [count]."""
    return weight.draw(count, survivors, generator)


def within(weight: SparseWeight, mask: Tensor | None) -> Tensor:
    """Return which connections lie within `mask`, None for all: indices into the positions, ascending, int64."""
    device = weight.parameter.device
    if mask is None:
        return torch.arange(weight.nnz, device=device)
    return weight.take(mask.to(device)).nonzero().view(-1)
