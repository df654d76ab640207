"""`Dynamic`: a method that drops some connections and grows as many, at regular steps."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow import criteria, schedules
from regrow.errors import require_count, require_fraction
from regrow.methods.periodic import Move, Periodic
from regrow.ops.select import top
from regrow.topology import whole_share
from regrow.weights import SparseWeight


class Dynamic(Periodic):
    """Base of the methods that are a schedule, a drop criterion and a growth criterion.

    At step t with ``t mod update_every == 0`` and ``0 < t < stop_fraction * total_steps``, in each layer the
    ``floor(f(t) * connections)`` connections with the lowest drop score go, and as many of all positions but the
    survivors come; f(t) is `drop_fraction` times the schedule (RigL, arXiv 1911.11134, Algorithm 1). A connection
    that is dropped and grown at once counts as kept.

    Args:
        model: a model that `sparsify` has made sparse.
        optimizer: the torch optimizer that trains it.
        total_steps: optimizer steps of the whole run, T.
        drop_fraction: alpha, the initial share of a layer's connections that is dropped, in [0, 1].
        update_every: Delta T, in optimizer steps.
        stop_fraction: T_end / T, in [0, 1]: updates stop before that step.
        schedule: ``"cosine"``, ``"linear"``, ``"constant"``, ``"inverse-power-k"`` with a number k, or a function of
            t / T_end.
        grow_init: what a new connection starts at: ``"zeros"``, ``"normal"`` (with the deviation of the layer's
            weights) or ``"uniform"`` (up to their mean magnitude), the latter two divided by `grow_scale`; its
            optimizer state is zero all the same.
        grow_scale: divides the initial values of new connections.
        skip_step: whether the weights rest at an update step; None is the method's own default.
        seed: of random choices.
        process_group: processes that train one model together.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        total_steps: int,
        drop_fraction: float = 0.3,
        update_every: int = 100,
        stop_fraction: float = 0.75,
        schedule: str | schedules.DropSchedule = "cosine",
        grow_init: str = "zeros",
        grow_scale: float = 1.0,
        skip_step: bool | None = None,
        seed: int = 0,
        process_group: Any = None,
    ) -> None:
        self.drop_fraction = require_fraction("drop_fraction", drop_fraction, one=True)
        self.stop_fraction = require_fraction("stop_fraction", stop_fraction, one=True)
        self.schedule = schedules.drop_schedule(schedule)
        self.grow_init = criteria.require_initial("grow_init", grow_init)
        self.grow_scale = grow_scale
        self.end = self.stop_fraction * require_count("total_steps", total_steps)
        super().__init__(
            model,
            optimizer,
            total_steps=total_steps,
            update_every=update_every,
            stop_step=math.ceil(round(self.end, 6)),
            skip_step=skip_step,
            seed=seed,
            process_group=process_group,
        )

    # --- the parts of a method

    def drop_score(self, weight: SparseWeight) -> Tensor:
        """Scores of the active connections [nnz]: the lowest are dropped. Magnitude by default."""
        return criteria.magnitude(weight)

    def drop(self, weight: SparseWeight, fraction: float) -> Tensor:
        """Which of the active connections go: the `fraction` with the lowest score, rounded down."""
        count = whole_share(fraction, weight.nnz)
        return top(-self.drop_score(weight), count, f"a drop score of `{weight.name}`")

    def grow(self, weight: SparseWeight, count: int, survivors: Tensor, generator: torch.Generator) -> Tensor:
        """The `count` positions that come, ascending, none of them among `survivors`."""
        raise NotImplementedError(f"{type(self).__name__} must define grow")

    def redistribute(self, weights: list[SparseWeight], dropped: list[int]) -> list[int]:
        """How many connections come in each layer, given how many go: as many, by default."""
        return dropped

    # --- one update

    def fraction(self, step: int) -> float:
        return self.drop_fraction * self.schedule(step / self.end)

    def moves(self, step: int, weights: list[SparseWeight]) -> list[Move]:
        weights = [weight for weight in weights if weight.nnz < weight.numel]
        drops = [self.drop(weight, self.fraction(step)) for weight in weights]
        counts = self.redistribute(weights, [len(drop) for drop in drops])
        moves = []
        for weight, drop, count in zip(weights, drops, counts, strict=True):
            stays = torch.ones(weight.nnz, dtype=torch.bool, device=drop.device)
            stays[drop] = False
            survivors = weight.positions()[stays]
            moves.append((weight, drop, self.grow(weight, count, survivors, self.random(step, weight))))
        return moves

    def move(self, weight: SparseWeight, drop: Tensor, grow: Tensor) -> int:
        if self.grow_init == "zeros":
            return super().move(weight, drop, grow)
        before = weight.positions()
        drawn = criteria.initial_values(
            self.grow_init, weight, len(grow), self.random(self.step, weight, "values")
        )
        new = super().move(weight, drop, grow)
        fresh = ~torch.isin(grow, before)
        weight.fill(grow[fresh], drawn[fresh] / self.grow_scale)
        return new
