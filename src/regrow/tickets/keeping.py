"""Which connections are kept: exactly so many of the best, of all weights together or of each."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from regrow.errors import RegrowValueError
from regrow.ops.select import top

Budget = int | dict[str, int]
"""Connections to keep: of all sparse weights together, or of each."""


def best(scores: Mapping[str, Tensor], budget: Budget, what: str = "a score") -> dict[str, Tensor]:
    """Find the connections of each weight that `budget` keeps: those of the highest scores.

    Ties go to the earlier weight, then to the lower index.

    Args:
        scores: of the connections that each weight has, [n], by its name.
        budget: how many, of all together or of each.
        what: what messages call a score.

    Returns:
        Indices into each weight's scores, ascending, int64.

    Raises:
        RegrowValueError: more than there are.
        RegrowRuntimeError: a score is nan.
    """
    sizes = {name: len(own) for name, own in scores.items()}
    if not isinstance(budget, int):
        for name, count in budget.items():
            _check_reachable(f"connections[{name!r}]", count, sizes[name])
        return {name: top(own, budget[name], f"`{name}`") for name, own in scores.items()}
    _check_reachable("connections", budget, sum(sizes.values()))
    chosen = top(torch.cat(list(scores.values())), budget, what)
    kept, start = {}, 0
    for name, size in sizes.items():
        first, last = torch.searchsorted(chosen, torch.tensor([start, start + size], device=chosen.device))
        kept[name], start = chosen[first:last] - start, start + size
    return kept


def _check_reachable(argument: str, count: int, available: int) -> None:
    if not 0 <= count <= available:
        raise RegrowValueError(
            f"`{argument}` must be in [0, {available}], the connections there are, got {count}"
        )
