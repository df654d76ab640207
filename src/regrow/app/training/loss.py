"""The one loss of the command line."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def cross_entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0, reduction: str = "mean") -> Tensor:
    """Of `logits` [N, C] and class numbers `targets` [N], or of [N, T, C] and [N, T], over all N T places."""
    return F.cross_entropy(
        logits.flatten(0, -2), targets.flatten(), reduction=reduction, label_smoothing=smoothing
    )
