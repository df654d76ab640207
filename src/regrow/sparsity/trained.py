"""Whether a network has been trained: its norms have moved, or its weights do not look drawn.

Initialisers draw the entries of a weight independently, of one scale. Training gives some inputs and outputs
more weight than others, shifts whole rows and columns, and adds a few strong directions: each is measured against what
independent entries would give by chance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

LEAST = 256
"""Entries below which a weight says nothing."""
ROWS, COLUMNS = 512, 1024
"""Of a larger weight so many are looked at."""
CHANCE = 8.0
"""Standard deviations: fresh weights of any initialiser reached 5.5 in 200 draws each, after one epoch 10 to 1000."""
RARE = 10.0
"""Variance of the squares from which on a few entries decide, where chance is not a guide: most of them are zero."""
EDGE = 1.25
"""Largest singular value over that of independent entries: fresh 0.5 to 1.17, after one epoch 1.2 to 4."""


def looks_trained(model: nn.Module, weights: Sequence[Tensor]) -> bool:
    """Return whether norms of `model` have seen batches or learned, or most of `weights` [rows, ...] do not look
    drawn.
    """
    if any(_norm_has_learned(module) for module in model.modules()):
        return True
    drawn = trained = 0
    for weight in weights:
        looks = None if weight.is_meta or weight.numel() < LEAST else looks_drawn(weight)
        drawn += weight.numel() if looks is True else 0
        trained += weight.numel() if looks is False else 0
    return trained > drawn


def _norm_has_learned(module: nn.Module) -> bool:
    batches = getattr(module, "num_batches_tracked", None)
    if isinstance(batches, Tensor) and not batches.is_meta and int(batches) > 0:
        return True
    if "Norm" not in type(module).__name__ or any(p.dim() != 1 for p in module.parameters()):
        return False
    # a scale may be drawn (DCGAN), so it counts only where there is no bias (RMSNorm)
    own = getattr(module, "bias", None)
    own = getattr(module, "weight", None) if own is None else own
    if not isinstance(own, Tensor) or own.numel() < 2 or own.is_meta:
        return False
    return bool(own.min() != own.max())


def looks_drawn(weight: Tensor) -> bool | None:
    """Return whether the entries of `weight` [rows, ...] look independent and of one scale; None where too few vary."""
    some = weight.detach()[:: -(-len(weight) // ROWS)].flatten(1)
    some = some[:, :: -(-some.shape[1] // COLUMNS)].float()
    some = some - some.mean()
    variance = some.square().mean()
    if min(some.shape) < 2 or not variance > 0 or weight.detach().min() == weight.detach().max():
        return None
    some = some / variance.sqrt()
    spread = some.square().square().mean() - 1  # of a square, 2 for a normal distribution
    if spread > RARE:
        return None
    for along, (groups, size) in ((1, some.shape), (0, some.shape[::-1])):
        scales = (some.square().mean(along) - 1).square().sum() * size / spread.clamp(min=1e-6)
        shifts = some.mean(along).square().sum() * size
        # both are sums of about `groups` squares of standard normal numbers
        if max(float(scales), float(shifts)) > groups + CHANCE * math.sqrt(2 * groups):
            return False
    edge = math.sqrt(some.shape[0]) + math.sqrt(some.shape[1])
    return _largest_singular_value(some) < EDGE * edge


def _largest_singular_value(matrix: Tensor, rounds: int = 12) -> float:
    """Estimate the largest singular value from below, by power iteration."""
    vector = torch.linspace(1, 2, matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
    for _ in range(rounds):
        vector = nn.functional.normalize(matrix.T @ (matrix @ vector), dim=0)
    return float((matrix @ vector).norm())
