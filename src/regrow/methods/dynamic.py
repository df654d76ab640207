"""`Dynamic`: a method that drops some connections and grows as many, at regular steps."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow import criteria, schedules
from regrow.errors import require_count, require_fraction
from regrow.methods.base import Method, Record
from regrow.methods.optimizers import PREFIX
from regrow.ops.select import top
from regrow.weights import SparseWeight

EXPLORED = f"{PREFIX}explored"


class Dynamic(Method):
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
        schedule: ``"cosine"``, ``"linear"``, ``"constant"``, or a function of t / T_end.
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
        skip_step: bool | None = None,
        seed: int = 0,
        process_group: Any = None,
    ) -> None:
        self._tracks = False
        self.drop_fraction = require_fraction("drop_fraction", drop_fraction, one=True)
        self.update_every = require_count("update_every", update_every)
        self.stop_fraction = require_fraction("stop_fraction", stop_fraction, one=True)
        self.schedule = schedules.drop_schedule(schedule)
        self.stop_step = math.floor(self.stop_fraction * require_count("total_steps", total_steps))
        super().__init__(
            model,
            optimizer,
            total_steps=total_steps,
            skip_step=skip_step,
            seed=seed,
            process_group=process_group,
        )

    def drop_score(self, weight: SparseWeight) -> Tensor:
        """Scores of the active connections [nnz]: the lowest are dropped. Magnitude by default."""
        return criteria.magnitude(weight)

    def grow(self, weight: SparseWeight, count: int, survivors: Tensor, generator: torch.Generator) -> Tensor:
        """The `count` positions that come, ascending, none of them among `survivors`."""
        raise NotImplementedError(f"{type(self).__name__} must define grow or grow_score")

    # --- when, and how many

    def is_update(self, step: int) -> bool:
        return schedules.is_update_step(step, self.update_every, self.stop_step)

    @property
    def next_update(self) -> int | None:
        return schedules.next_update(self.step, self.update_every, self.stop_step)

    @property
    def last_update(self) -> int | None:
        return schedules.last_update(self.update_every, self.stop_step)

    def fraction(self, step: int) -> float:
        """f(t): the share of a layer's connections that is dropped at this step."""
        return self.drop_fraction * self.schedule(step / self.stop_step)

    # --- one update

    def update(self, step: int, weights: list[SparseWeight]) -> Record:
        """Choose in every layer first, then move: where a gradient is not finite, nothing has happened yet."""
        fraction = self.fraction(step)
        moves = [
            (weight, *self._choose(weight, step, fraction)) for weight in weights if weight.nnz < weight.numel
        ]
        layers = {}
        for weight, drop, grow in moves:
            before = weight.nnz
            explored = self._explore(weight)
            new = self.move(weight, drop, grow)
            explored = self._explore(weight, explored)
            layers[weight.name] = {
                "dropped": before + new - weight.nnz,
                "grown": new,
                "explored": weight.explored_share(explored),
            }
        return {"step": step, "fraction": fraction, "layers": layers}

    def _choose(self, weight: SparseWeight, step: int, fraction: float) -> tuple[Tensor, Tensor]:
        count = math.floor(round(fraction * weight.nnz, 6))
        drop = top(-self.drop_score(weight), count)
        stays = torch.ones(weight.nnz, dtype=torch.bool, device=drop.device)
        stays[drop] = False
        survivors = weight.positions()[stays]
        return drop, self.grow(weight, count, survivors, self.random(step, weight))

    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super()._after(optimizer, args, kwargs)
        if not self._tracks:  # from the first step on, so that a checkpoint of any step has the same keys
            self._tracks = True
            for weight in self.weights:
                self._explore(weight)

    def _explore(self, weight: SparseWeight, explored: Tensor | None = None) -> Tensor:
        """Add the present connections to those that were ever active (In-Time Over-Parameterization's R_s)."""
        state = self.optimizer.state
        known = state.get(weight.parameter, {})
        explored = weight.explored(known.get(EXPLORED) if explored is None else explored)
        if known or not self._stateful:  # Adam takes a state that is not empty for one that is complete
            state[weight.parameter][EXPLORED] = explored
        return explored
