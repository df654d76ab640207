"""Exact selection of the best, with ties by index."""

from __future__ import annotations

import torch
from torch import Tensor

from regrow.errors import RegrowRuntimeError


def top(scores: Tensor, count: int, what: str = "a score") -> Tensor:
    """Indices of the `count` highest of `scores` [n], ascending, int64 [count]; ties go to the lower index.

    The same as a stable descending sort, in linear time. `what` is what messages call a score.

    Raises:
        RegrowRuntimeError: a score is nan.
    """
    if count == 0:
        return torch.empty(0, dtype=torch.int64, device=scores.device)
    threshold = torch.topk(scores, count, sorted=False).values.min()
    if threshold.isnan():
        raise RegrowRuntimeError(
            f"{what} is nan, allowed are numbers and inf.\nThe weights have diverged? Train with a lower learning rate."
        )
    above = (scores > threshold).nonzero().view(-1)
    tied = (scores == threshold).nonzero().view(-1)[: count - len(above)]
    return torch.cat([above, tied]).sort().values
