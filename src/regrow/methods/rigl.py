"""RigL: drop the smallest weights, grow where the gradient is largest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.arguments import number, said
from regrow.errors import RegrowValueError
from regrow.growth.among import Among
from regrow.methods import criteria
from regrow.methods.dynamic import Dynamic
from regrow.methods.registry import register
from regrow.methods.schedules import DropSchedule
from regrow.sparsity.distributions import whole_share
from regrow.weights import SparseWeight
from regrow.weights.patterns import Pattern
from regrow.weights.reading import as_matrix


@register(
    name="rigl",
    paper="arXiv 1911.11134",
    line="grows where the gradient is largest",
    drop="magnitude",
    grow="gradient",
)
class RigL(Dynamic):
    """Rigging the Lottery (arXiv 1911.11134, Algorithm 1).

    The gradient is that of the loss with respect to the masked weight, before clipping, summed over the step's
    micro-batches and averaged over processes. At an update step the weights rest.

    `grow_columns` is an addition of ours, for layers so large that the exact search over all positions takes too
    long: an update costs 2 x rows x columns x batch operations in a layer, and with it only those columns' share.

    Args:
        model: a model that `sparsify` has made sparse.
        optimizer: the torch optimizer that trains it.
        grow_columns: of each layer's columns (inputs), how many are searched for the connections that come: a number
            (int) or a share (float), drawn again at each update from the method's seed. Within them the choice is
            exact. Where they have fewer free positions than connections are to come, twice as many are drawn. None, as
            published: all.
        total_steps, drop_fraction, update_every, stop_fraction, schedule, grow_init, grow_scale, skip_step, seed,
            process_group: as for `Dynamic`.
    """

    needs_gradient = "update"
    skips_step = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        grow_columns: int | float | None = None,
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
        self.grow_columns = _require_columns(grow_columns)
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

    def grow(self, weight: SparseWeight, count: int, survivors: Tensor, generator: torch.Generator) -> Tensor:
        among = self.among(weight, count, survivors, generator)
        return weight.best(count, survivors, criteria.gradient_magnitude, self.average, among=among)

    def cannot_keep(self, pattern: Pattern) -> str | None:
        if self.grow_columns is not None:
            return "`grow_columns` searches some columns, and a group or a block may lie outside them"
        return super().cannot_keep(pattern)

    def searched(self, columns: int) -> int:
        """Return how many of a layer's `columns` are searched for candidates."""
        if self.grow_columns is None:
            return columns
        wanted = self.grow_columns
        return min(columns, wanted if isinstance(wanted, int) else whole_share(wanted, columns, up=True))

    def among(
        self, weight: SparseWeight, count: int, survivors: Tensor, generator: torch.Generator
    ) -> Among | None:
        """Return the columns to search, more where those drawn have fewer than `count` free positions; None for all."""
        rows, columns = as_matrix(weight.shape)
        number = self.searched(columns)
        order = torch.randperm(columns if number < columns else 0, generator=generator, device="cpu")
        while number < columns:
            among = Among(order[:number].sort().values.to(survivors.device), columns)
            if rows * number - len(among.narrow(survivors)) >= count:
                return among
            number *= 2
        return None


def _require_columns(value: object) -> int | float | None:
    found = number(value)
    if (
        value is None
        or (isinstance(found, int) and found > 0)
        or (isinstance(found, float) and 0 < found <= 1)
    ):
        return found
    raise RegrowValueError(
        f"`grow_columns` must be None, a number of columns above 0 or a share of them in (0, 1], got {said(value)}"
    )
