"""MEST: drop by magnitude and gradient, grow at random; with a soft memory bound, grow first and drop later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.arguments import require_fraction, require_positive
from regrow.errors import RegrowValueError
from regrow.methods import criteria
from regrow.methods.dynamic import Dynamic
from regrow.methods.gradual import INITIAL, Descent, Final
from regrow.methods.periodic import Periodic
from regrow.methods.registry import parameters_of, register
from regrow.methods.schedules import DropSchedule, drop_schedule
from regrow.ops.select import top
from regrow.sparsity import distributions
from regrow.sparsity.distributions import whole_share
from regrow.weights import SparseWeight
from regrow.weights.gates import Move, parts

EVERY = 3910
"""Steps of five epochs of CIFAR-10 in batches of 64."""
BOUND = 0.05
"""Density that the published soft bound allows beyond the final one, at 90% and at 95%."""
INTERVALS = 64
"""Of a run that is priced."""


@register(
    name="mest",
    paper="arXiv 2110.14032",
    line="drops by magnitude and gradient, grows at random",
    drop="|w|+|grad|",
    grow="random",
)
class MEST(Dynamic):
    """Memory-Economic Sparse Training with Elastic Mutation, MEST+EM (arXiv 2110.14032).

    Of each layer the connections with the smallest ``|w| + lambda |dL/dw|`` go, and as many come at random. The
    gradient is that of the connections, as the optimizer has it in ``.grad`` (after clipping, the sum of
    micro-batches), averaged over processes; no dense gradient is ever needed. `SoftMEST` is MEST+EM&S.

    Differs from the original code: counts are exact and rounded down, not by percentile; no update at step 0; what is
    dropped and drawn again at once counts as kept, where it starts at 0 there.

    Args:
        model: a model that `sparsify` has made sparse.
        optimizer: the torch optimizer that trains it.
        gradient_weight: lambda, of at least 0; 0 is plain magnitude.
        drop_fraction: the initial share of a layer's connections that is dropped; the code's 90% sparse network goes
            to 92% and back.
        update_every: steps between two updates; the default is five epochs of CIFAR-10 in batches of 64.
        stop_fraction: as for `Dynamic`: epoch 120 of 160.
        schedule: as for `Dynamic`; the default halves the drop fraction at epoch 90 of 120.
        total_steps, grow_init, grow_scale, skip_step, seed, process_group: as for `Dynamic`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        total_steps: int,
        gradient_weight: float = 1.0,
        drop_fraction: float = 0.2,
        update_every: int = EVERY,
        stop_fraction: float = 0.75,
        schedule: str | DropSchedule = "halved-at-0.75",
        grow_init: str = "zeros",
        grow_scale: float = 1.0,
        skip_step: bool | None = None,
        seed: int = 0,
        process_group: Any = None,
    ) -> None:
        self.gradient_weight = require_positive("gradient_weight", gradient_weight, zero=True)
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

    def drop_score(self, weight: SparseWeight) -> Tensor:
        return criteria.magnitude_and_gradient(weight, self.gradient_weight, self.average)

    def grow(self, weight: SparseWeight, count: int, survivors: Tensor, generator: torch.Generator) -> Tensor:
        return criteria.random_positions(weight, count, survivors, generator)


@register(
    name="mest-soft",
    paper="arXiv 2110.14032",
    line="MEST in a soft memory bound: grows first, drops at the next update",
    drop="|w|+|grad|",
    grow="random",
)
class SoftMEST(Periodic):
    """MEST with the Soft Memory Bound, MEST+EM&S (arXiv 2110.14032).

    The network holds more connections than it ends with, so that new ones are trained before others make room for
    them. At each update, in each layer, the connections with the smallest ``|w| + lambda |dL/dw|`` (as in `MEST`) go
    down to those of `final_sparsity`; then ``floor(f(t) * room)`` come at random, where the room is what `sparsify`
    gave beyond the final ones and f(t) the schedule. The last update grows nothing. So `sparsify` gives the bound,
    which is never exceeded: in the code five points of sparsity, ``sparsify(model, 0.85)`` for 90% and 0.9 for 95%.

    Differs from the original code as `MEST` does.

    Args:
        model: a model that `sparsify` has made sparse, below the final sparsity.
        optimizer: the torch optimizer that trains it.
        total_steps: optimizer steps of the whole run, T.
        final_sparsity: of every layer, in [0, 1), or ``{weight name: sparsity}``.
        gradient_weight: lambda, of at least 0; 0 is plain magnitude.
        update_every: steps between two updates; the default is five epochs of CIFAR-10 in batches of 64.
        stop_fraction: the last update is the last one by this share of the run, T_end / T; epoch 120 of 160.
        schedule: of the share of the room that is filled, as for `Dynamic`; the default is 1, and 0.5 from epoch 90
            of 120 on.
        skip_step: whether the weights rest at an update step.
        seed: of random growth.
        process_group: processes that train one model together.

    Raises:
        RegrowValueError: a final sparsity below the one that the model has, or one that leaves no room; no update
            step by `stop_fraction`.
    """

    initial_sparsity = 0.85

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        total_steps: int,
        final_sparsity: float | Mapping[str, float],
        gradient_weight: float = 1.0,
        update_every: int = EVERY,
        stop_fraction: float = 0.75,
        schedule: str | DropSchedule = "halved-at-0.75",
        skip_step: bool | None = None,
        seed: int = 0,
        process_group: Any = None,
    ) -> None:
        self.final_sparsity = final_sparsity
        self.gradient_weight = require_positive("gradient_weight", gradient_weight, zero=True)
        self.schedule = drop_schedule(schedule)
        self.descent = Descent.of_run(total_steps, update_every, 0.0, stop_fraction)
        self.end = stop_fraction * total_steps
        super().__init__(
            model,
            optimizer,
            total_steps=total_steps,
            update_every=update_every,
            stop_step=self.descent.stop + 1,
            skip_step=skip_step,
            seed=seed,
            process_group=process_group,
        )

    @classmethod
    def starts_from(cls, sparsity: float) -> float:
        """Return the sparsity of the published bound, 0.05 below the final `sparsity`."""
        return max(0.0, require_fraction("sparsity", sparsity) - BOUND)

    @classmethod
    def levels(cls, sparsity: float) -> list[float]:
        """Give the sparsity over a run by the published bound and defaults, as shares of the final `sparsity`.

        One for each 64th of the run.
        """
        start = cls.starts_from(sparsity)
        given = {name: parameter.default for name, parameter in parameters_of(cls).items()}
        schedule, stop = drop_schedule(given["schedule"]), given["stop_fraction"] * INTERVALS
        filled = [schedule(i / stop) if i < stop else 0.0 for i in range(INTERVALS)]
        return [1 - share * (sparsity - start) / sparsity if sparsity else 1.0 for share in filled]

    def _aim(self) -> None:
        self.final = Final(self.weights, self.final_sparsity)
        weights = parts(self.weights)
        self.final.check([[weight] for weight in weights])
        started = [int(self._group.get(INITIAL + weight.name, weight.nnz)) for weight in weights]
        ends = [distributions.connections((w.numel,), self.final.sparsity([w])) for w in weights]
        if started == ends:
            raise RegrowValueError(
                f"`final_sparsity` {self.final.sparsity(weights):.4g} leaves no room: the model has no more "
                "connections, so that nothing would move.\nMake it less sparse: regrow.sparsify(model, "
                f"{self.starts_from(self.final.sparsity(weights)):.4g}, ...) gives the published bound."
            )

    def _note_start(self) -> None:
        self.final.remember_start(self.optimizer)

    def fraction(self, step: int) -> float:
        """Return the share of the room beyond the final connections that is filled after the update at this step."""
        return 0.0 if step >= self.descent.stop else self.schedule(step / self.end)

    def moves(self, step: int, weights: list[SparseWeight]) -> list[Move]:
        moves = []
        for weight in weights:
            started, final = (self.final.connections(self.optimizer, [weight], share) for share in (0.0, 1.0))
            score = criteria.magnitude_and_gradient(weight, self.gradient_weight, self.average)
            drop = top(score, max(0, weight.nnz - final), f"a drop score of `{weight.name}`", lowest=True)
            count = whole_share(self.fraction(step), started - final)
            random = self.random(step, weight)
            grow = criteria.random_positions(weight, count, weight.survivors(drop), random)
            moves.append((weight, drop, grow))
        return moves
