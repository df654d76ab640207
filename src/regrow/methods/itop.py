"""ITOP: RigL or SET that explores more of the network, by long intervals and through the whole run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.errors import RegrowValueError
from regrow.methods import criteria
from regrow.methods.registry import register
from regrow.methods.rigl import RigL
from regrow.methods.schedules import DropSchedule
from regrow.weights import SparseWeight


@register(
    name="itop",
    paper="arXiv 2102.02887",
    line="RigL with long intervals, through the whole run",
    drop="magnitude",
    grow="gradient",
)
class ITOP(RigL):
    """In-Time Over-Parameterization with RigL's growth (arXiv 2102.02887); `SetITOP` grows at random.

    What counts is the share of all weights that training has ever tried, R_s: `explored`, and ``"explored"`` in each
    update's record. So the intervals are long enough for a new connection to grow, the drop fraction large, and
    updates go on to the end of the run. The weights take their step first. Differs from the original code: counts
    are rounded down and exact, not by threshold.

    Args:
        model: a model that `sparsify` has made sparse.
        optimizer: the torch optimizer that trains it.
        drop_fraction: the initial share of a layer's connections that is dropped.
        update_every: Delta T, in optimizer steps; the default is the paper's for RigL and batches of 128.
        stop_fraction: T_end / T; the paper has no T_end.
        schedule: as for `Dynamic`; the default falls from `drop_fraction` 0.5 to 0.005.
        grow_columns: as for `RigL`.
        total_steps, grow_init, grow_scale, skip_step, seed, process_group: as for `Dynamic`.
    """

    skips_step = False

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        drop_fraction: float = 0.5,
        update_every: int = 4000,
        stop_fraction: float = 1.0,
        schedule: str | DropSchedule = "cosine-to-0.01",
        grow_columns: int | float | None = None,
        total_steps: int,
        grow_init: str = "zeros",
        grow_scale: float = 1.0,
        skip_step: bool | None = None,
        seed: int = 0,
        process_group: Any = None,
    ) -> None:
        super().__init__(
            model,
            optimizer,
            grow_columns=grow_columns,
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


@register(
    name="itop-set",
    paper="arXiv 2102.02887",
    line="SET with long intervals, through the whole run",
    drop="magnitude",
    grow="random",
)
class SetITOP(ITOP):
    """In-Time Over-Parameterization with SET's random growth; else as `ITOP`.

    Args:
        model: a model that `sparsify` has made sparse.
        optimizer: the torch optimizer that trains it.
        update_every: Delta T, in optimizer steps; the default is the paper's for SET and batches of 128.
        drop_fraction, stop_fraction, schedule: as for `ITOP`.
        grow_columns: None, because random growth searches nothing.
        total_steps, grow_init, grow_scale, skip_step, seed, process_group: as for `Dynamic`.
    """

    needs_gradient = "never"

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        update_every: int = 1500,
        drop_fraction: float = 0.5,
        stop_fraction: float = 1.0,
        schedule: str | DropSchedule = "cosine-to-0.01",
        grow_columns: None = None,
        total_steps: int,
        grow_init: str = "zeros",
        grow_scale: float = 1.0,
        skip_step: bool | None = None,
        seed: int = 0,
        process_group: Any = None,
    ) -> None:
        if grow_columns is not None:
            raise RegrowValueError(
                f"`grow_columns` must be None, got {grow_columns!r}: {type(self).__name__} searches nothing"
            )
        super().__init__(
            model,
            optimizer,
            update_every=update_every,
            drop_fraction=drop_fraction,
            stop_fraction=stop_fraction,
            schedule=schedule,
            grow_columns=grow_columns,
            total_steps=total_steps,
            grow_init=grow_init,
            grow_scale=grow_scale,
            skip_step=skip_step,
            seed=seed,
            process_group=process_group,
        )

    def grow(self, weight: SparseWeight, count: int, survivors: Tensor, generator: torch.Generator) -> Tensor:
        return criteria.random_positions(weight, count, survivors, generator)
