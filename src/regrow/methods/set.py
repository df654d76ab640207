"""SET: drop the smallest weights, grow at random."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.arguments import require_count, require_flag
from regrow.methods import criteria
from regrow.methods.dynamic import Dynamic
from regrow.methods.registry import register
from regrow.methods.schedules import DropSchedule
from regrow.ops.select import top
from regrow.sparsity.distributions import whole_share
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
    instead of at the end of each epoch; new connections start at 0. `original` gives the original.

    Args:
        model: a model that `sparsify` has made sparse.
        optimizer: the torch optimizer that trains it.
        per_sign: drop the fraction of the positive and of the negative weights separately.
        epoch_end: update at the last step of each `update_every` steps, once the weights have taken it, instead of at
            the first of the next ones: after each epoch, where that is the length of an epoch.
        total_steps, drop_fraction, update_every, stop_fraction, schedule, grow_init, grow_scale, skip_step, seed,
            process_group: as for `Dynamic`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        per_sign: bool = False,
        epoch_end: bool = False,
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
        self.per_sign = require_flag("per_sign", per_sign)
        self.ahead = int(require_flag("epoch_end", epoch_end))
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

    @classmethod
    def original(
        cls,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        total_steps: int,
        steps_per_epoch: int,
        drop_fraction: float = 0.3,
        stop_fraction: float = 1.0,
        schedule: str | DropSchedule = "constant",
        per_sign: bool = True,
        epoch_end: bool = True,
        grow_init: str = "normal",
        grow_scale: float = 1.0,
        skip_step: bool | None = None,
        seed: int = 0,
        process_group: Any = None,
    ) -> SET:
        """Return SET as published: at the end of each epoch but the last, 0.3 of each sign; new connections start
        at random.

        An update is part of the epoch's last step: an evaluation between two epochs sees the new topology. At the
        start that is Erdos-Renyi with a dense output layer: ``sparsify(model, ..., "er", exclude="last")``.

        Args:
            model: a model that `sparsify` has made sparse.
            optimizer: the torch optimizer that trains it.
            total_steps: optimizer steps of the whole run.
            steps_per_epoch: optimizer steps of an epoch.
            drop_fraction, stop_fraction, schedule, per_sign, epoch_end, grow_init, grow_scale, skip_step, seed,
                process_group: as for `SET`, with the published defaults.
        """
        return cls(
            model,
            optimizer,
            total_steps=total_steps,
            update_every=require_count("steps_per_epoch", steps_per_epoch),
            drop_fraction=drop_fraction,
            stop_fraction=stop_fraction,
            schedule=schedule,
            per_sign=per_sign,
            epoch_end=epoch_end,
            grow_init=grow_init,
            grow_scale=grow_scale,
            skip_step=skip_step,
            seed=seed,
            process_group=process_group,
        )

    def drop(self, weight: SparseWeight, fraction: float) -> Tensor:
        if not self.per_sign:
            return super().drop(weight, fraction)
        values = weight.values()
        signs = [(values >= 0).nonzero().view(-1), (values < 0).nonzero().view(-1)]
        gone = [own[top(-values[own].abs(), whole_share(fraction, len(own)))] for own in signs]
        return torch.cat(gone).sort().values

    def grow(self, weight: SparseWeight, count: int, survivors: Tensor, generator: torch.Generator) -> Tensor:
        return criteria.random_positions(weight, count, survivors, generator)
