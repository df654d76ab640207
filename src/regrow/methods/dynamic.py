"""`Dynamic`: a method that drops some connections and grows as many, at regular steps."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.arguments import require_choice, require_count, require_fraction, require_positive, said
from regrow.errors import RegrowRuntimeError, RegrowValueError
from regrow.methods import criteria, schedules
from regrow.methods.base import UpdateRecord
from regrow.methods.periodic import Periodic
from regrow.methods.state import PREFIX
from regrow.ops.csr import are_positions, have_common
from regrow.ops.select import top
from regrow.sparsity.distributions import whole_share
from regrow.weights import SparseWeight, hook_of
from regrow.weights.gates import Move
from regrow.weights.patterns import Pattern

EXPLORE = f"{PREFIX}explore"
"""Entry of ``param_groups[0]``: the fraction of the exploration step that is asked for, 0 once it is done."""
EVOLVE = f"{PREFIX}evolve"
"""Entry of ``param_groups[0]``: the constant fraction that has taken the schedule's place."""
NEVER = -1.0  # a number, which every kind of checkpoint keeps


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
            optimizer state is zero all the same, but for copies of the values (schedule-free's z).
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
        self.grow_init = require_choice("grow_init", grow_init, criteria.INITIAL)
        self.grow_scale = require_positive("grow_scale", grow_scale)
        total_steps = require_count("total_steps", total_steps)
        self.end = self.stop_fraction * total_steps
        super().__init__(
            model,
            optimizer,
            total_steps=total_steps,
            update_every=update_every,
            stop_step=schedules.first_step(self.stop_fraction, total_steps),
            skip_step=skip_step,
            seed=seed,
            process_group=process_group,
        )
        for entry in (EXPLORE, EVOLVE):
            self._group.setdefault(entry, NEVER)

    # --- the parts of a method

    def drop_score(self, weight: SparseWeight) -> Tensor:
        """Return the scores of the active connections [nnz]: the lowest are dropped. Magnitude by default."""
        return criteria.magnitude(weight)

    def drop(self, weight: SparseWeight, fraction: float) -> Tensor:
        """Return which of the active connections go: the `fraction` with the lowest score, rounded down."""
        count = whole_share(fraction, weight.nnz)
        return top(self.drop_score(weight), count, f"a drop score of `{weight.name}`", lowest=True)

    def grow(self, weight: SparseWeight, count: int, survivors: Tensor, generator: torch.Generator) -> Tensor:
        """Return the `count` positions that come, ascending, none of them among `survivors`."""
        raise NotImplementedError(f"{type(self).__name__} must define grow")

    def fractions(self, step: int, weights: list[SparseWeight]) -> list[float]:
        """Choose the share of its connections that each layer drops at this step: the schedule's, by default."""
        return [self.fraction(step)] * len(weights)

    def redistribute(self, weights: list[SparseWeight], dropped: list[int]) -> list[int]:
        """Return how many connections come in each layer, given how many go: as many, by default."""
        return dropped

    def cannot_keep(self, pattern: Pattern) -> str | None:
        if pattern.keeps_counts and type(self).redistribute is not Dynamic.redistribute:
            return "it moves connections from weight to weight"
        return super().cannot_keep(pattern)

    # --- beside the schedule

    def explore(self, fraction: float) -> None:
        """Drop and grow `fraction` of each layer's connections at the coming step, whatever the schedule says.

        The large exploration step between two tickets (Sup-tickets, arXiv 2205.15322; FreeTickets, arXiv 2106.14568),
        by the method's own criteria and with that step's own dense gradient, also past `total_steps`. The request is
        part of the optimizer's state. It lasts until a step fulfils it: one whose gradient is not finite does not.

        Args:
            fraction: in [0, 1]; 0 takes the request back.

        Raises:
            RegrowValueError: a fraction outside [0, 1].
            RegrowRuntimeError: a backward pass of the coming step has run already, so that its dense gradient is gone.
        """
        self._ask(EXPLORE, require_fraction("fraction", fraction, one=True))

    def evolve(self, fraction: float | None) -> None:
        """Update every `update_every` steps from now on with this constant fraction, past the schedule's end too.

        The request is part of the optimizer's state.

        Args:
            fraction: in [0, 1]; at 0 the topology rests, but for `explore`. None is the method's own schedule again.

        Raises:
            RegrowValueError: a fraction outside [0, 1].
            RegrowRuntimeError: as for `explore`, where the coming step becomes an update by this.
        """
        self._ask(EVOLVE, NEVER if fraction is None else require_fraction("fraction", fraction, one=True))

    def _ask(self, entry: str, fraction: float) -> None:
        group, wanted, before = (
            self._group,
            self.wants_dense_gradient(),
            self._asked(entry),
        )
        group[entry] = fraction
        if self.wants_dense_gradient() and not wanted and self._under_way():
            group[entry] = before
            raise RegrowRuntimeError(
                f"step {self.step} is under way: its backward pass has run without leaving the dense gradient that "
                f"{type(self).__name__} needs.\nAsk between optimizer.step() and the next backward pass."
            )

    def _asked(self, entry: str) -> float:
        return float(self._group.get(entry, NEVER))

    def _under_way(self) -> bool:
        """Return whether the coming step has accumulated gradients already; those set to zero since do not count."""
        gradients = [
            w.parameter.grad for w in self.weights if (hook := hook_of(w.parameter)) is not None and hook.ran
        ]
        return any(gradient is not None and bool(gradient.any()) for gradient in gradients)

    @property
    def steered(self) -> bool:
        return self._asked(EXPLORE) != NEVER or self._asked(EVOLVE) != NEVER

    @property
    def begin_step(self) -> int:
        return self.start_step if self._asked(EVOLVE) == NEVER else 0

    @property
    def end_step(self) -> int:
        evolve = self._asked(EVOLVE)
        if evolve == NEVER:
            return self.stop_step
        return sys.maxsize if evolve else 0

    def is_update(self, step: int) -> bool:
        return (step == self.step and self._asked(EXPLORE) > 0) or super().is_update(step)

    @property
    def next_update(self) -> int | None:
        return self.step if self.is_update(self.step) else super().next_update

    @property
    def last_update(self) -> int | None:
        """The step of the last topology update there will be, or None: also where `evolve` has left none the last."""
        if self.end_step == sys.maxsize:
            return None
        last = super().last_update
        return max(self.step, last or 0) if self._asked(EXPLORE) > 0 else last

    # --- one update

    def fraction(self, step: int) -> float:
        explore, evolve = self._asked(EXPLORE), self._asked(EVOLVE)
        if step == self.step and explore > 0:
            return explore
        return (
            self.drop_fraction * self.schedule((step + self.ahead) / self.end) if evolve == NEVER else evolve
        )

    def update(self, step: int, weights: list[SparseWeight]) -> UpdateRecord:
        record = super().update(step, weights)
        if self._asked(EXPLORE) > 0:
            self._group[EXPLORE] = 0.0
        return record

    def moves(self, step: int, weights: list[SparseWeight]) -> list[Move]:
        weights = [weight for weight in weights if weight.nnz < weight.numel]
        if not weights:
            return []
        fractions = self.fractions(step, weights)
        drops = [self.drop(weight, fraction) for weight, fraction in zip(weights, fractions, strict=True)]
        counts = self.redistribute(weights, [len(drop) for drop in drops])
        return [
            self.exchange(step, weight, drop, count)
            for weight, drop, count in zip(weights, drops, counts, strict=True)
        ]

    def exchange(self, step: int, weight: SparseWeight, drop: Tensor, count: int) -> Move:
        """Return the move in which `drop` goes and `count` positions come, none of them among the survivors."""
        survivors = weight.survivors(drop)
        grown = self.grow(weight, count, survivors, self.random(step, weight))
        self._check_grown(weight, grown, count, survivors)
        return weight, drop, grown

    def _check_grown(self, weight: SparseWeight, grown: object, count: int, survivors: Tensor) -> None:
        """Refuse what `grow` gives unless it is `count` free positions: masked storage would take anything."""
        if not isinstance(grown, Tensor) or grown.dtype != torch.int64 or grown.dim() != 1:
            wrong = said(grown)
        elif len(grown) != count:
            wrong = f"{len(grown)} of them"
        elif not are_positions(grown, weight.numel):
            wrong = "some twice, out of order, or out of range"
        elif have_common(grown, survivors):
            wrong = "survivors among them"
        else:
            return
        raise RegrowValueError(
            f"`grow` of {type(self).__name__} must give {count} free positions of `{weight.name}`, int64 [{count}], "
            f"ascending, none of them in `survivors`; got {wrong}"
        )

    def move(self, weight: SparseWeight, drop: Tensor, grow: Tensor) -> int:
        if self.grow_init == "zeros":
            return super().move(weight, drop, grow)
        before = weight.positions()
        drawn = criteria.initial_values(
            self.grow_init, weight, len(grow), self.random(self.step, weight, "values")
        )
        new = super().move(weight, drop, grow)
        fresh = ~torch.isin(grow, before)
        values = drawn[fresh] / self.grow_scale
        for tensor in (None, *self.copies_of(weight)):
            weight.fill(grow[fresh], values, tensor)
        return new
