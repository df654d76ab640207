"""`SupTickets`: several tickets from one run, superposed into one network of the same size.

Sup-tickets (arXiv 2205.15322): once the network is trained, a few short cycles of exploring and refining give
a ticket each, and the tickets are averaged. A collected ticket is averaged into what there is so far, the average is
pruned back to the connections asked for, and its batch norms are estimated again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from torch import nn

from regrow._formats import TICKETS, require_format
from regrow.arguments import (
    require_choice,
    require_count,
    require_fraction,
    require_instance,
    require_mapping,
    require_numbers,
)
from regrow.errors import RegrowRuntimeError, RegrowValueError, warn
from regrow.methods import Method
from regrow.sparsity.distributions import whole_share
from regrow.tickets.average import DIVIDE, SCOPES, Average, blend, refuse_patterns
from regrow.tickets.copying import copied, is_finite
from regrow.tickets.keeping import Budget
from regrow.tickets.norms import batch_norms, reestimate
from regrow.tickets.phases import Phases
from regrow.tickets.rates import triangular
from regrow.weights.views import named_weights

AVERAGES = ("mean", "exponential")
RULES = ("running", "once")
STATE = "what state_dict() of SupTickets gave"


def calendar(total: int, share: float, cycle: int) -> tuple[int, int, int]:
    """Return how a run is divided into training and cycles, in whatever unit `total` and `cycle` are (epochs, steps).

    The cyclic phase is `share` of the run, rounded down to whole cycles; where it holds none, there are none.

        >>> calendar(250, 0.1, 8)
        (226, 24, 3)

    Args:
        total: length of the run.
        share: of the run that is meant for the cycles, in [0, 1].
        cycle: length of a cycle.

    Returns:
        Length of the training before the cycles, length of all cycles together, number of cycles.

    Raises:
        RegrowValueError: an argument that is not allowed.
    """
    total, cycle = require_count("total", total), require_count("cycle", cycle)
    count = whole_share(require_fraction("share", share, one=True), total) // cycle
    return total - count * cycle, count * cycle, count


class SupTickets:
    """Tickets of the cycles at the end of a run, and the network superposed of them.

        tickets = SupTickets(method, start=T_pre, cycles=3, cycle_steps=8 * len(loader))
        ...                                  # in the loop, after optimizer.step()
        if tickets.ready:
            tickets.collect(loader)

    The network at step `start` is ticket 0, that at the end of cycle m ticket m. In a cycle the learning rate goes
    from ``lr[0]`` up to ``lr[1]`` and back, a triangle over its steps, in every parameter group and whatever a
    scheduler did; the first step of a cycle explores. The model in training goes on untouched, with the random numbers
    that it would have drawn anyway; on many processes every one collects, with the same batches, and comes to the same
    network.

    Args:
        method: what drives the model: any method that drops and grows, or another with ``explore=None``. Its
            `total_steps` is that of the training before the cycles.
        start: the optimizer step, counted from 0, at which the first cycle begins.
        cycles: M, how many; 0 leaves ticket 0 alone.
        cycle_steps: optimizer steps of a cycle.
        lr: learning rates at the ends and in the middle of a cycle (CIFAR; 0.0001 and 0.0005 on ImageNet).
        explore: the share of each layer's connections that is dropped and grown at the first step of a cycle, with
            that step's own gradient; None for none.
        evolve: the constant drop fraction of the topology's updates inside the cycles, every ``method.update_every``
            steps; None freezes it there.
        average: ``"mean"`` of all tickets (the paper's CAA: ticket m enters with the factor 1 / (m + 1)), or
            ``"exponential"`` (CIMA: always with `factor`).
        factor: of a new ticket in an exponential average, in (0, 1).
        rule: ``"running"`` prunes the average after each ticket, and what was pruned counts as 0 in the next (the
            published code); ``"once"`` averages all tickets first, and prunes that.
        divide: what a connection's sum is divided by: all ``"tickets"``, with 0 where it is absent (the published
            code), or its ``"holders"``, the tickets that have it.
        scope: ``"global"`` prunes by one threshold over all sparse weights (the published code), so that layers get
            other densities; ``"layer"`` keeps the connections of each.
        density: of the superposed network over all sparse weights, in (0, 1]; None keeps the number of connections
            of ticket 0.

    Attributes:
        count: tickets in the superposed network.
        left_out: numbers of the tickets that were not finite.

    Raises:
        RegrowValueError: an argument that is not allowed; a density that the model does not reach.
        RegrowRuntimeError: the method makes tickets already. At an optimizer step: a ticket was due before it and not
            collected.
    """

    def __init__(
        self,
        method: Method,
        *,
        start: int,
        cycles: int = 3,
        cycle_steps: int,
        lr: tuple[float, float] = (0.001, 0.005),
        explore: float | None = 0.5,
        evolve: float | None = None,
        average: str = "mean",
        factor: float = 0.5,
        rule: str = "running",
        divide: str = "tickets",
        scope: str = "global",
        density: float | None = None,
    ) -> None:
        self.method = require_instance("method", method, Method)
        refuse_patterns("method", [self.method.model])
        low, high = require_numbers("lr", lr, count=2)
        self.lr = low, high
        for name, value, allowed in (
            ("average", average, AVERAGES),
            ("rule", rule, RULES),
            ("divide", divide, DIVIDE),
            ("scope", scope, SCOPES),
        ):
            require_choice(name, value, allowed)
        self.average, self.rule, self.divide, self.scope = average, rule, divide, scope
        self.factor = require_fraction("factor", factor)
        if average == "exponential" and not self.factor:
            raise RegrowValueError(f"`factor` must be in (0, 1), got {factor}")
        self.density = self._reachable(density)
        self.count = 0
        self.left_out: list[int] = []
        self._next = 0  # the ticket that comes next
        self._average: Average | None = None
        self._model: nn.Module | None = None
        self._budget: Budget | None = None
        self.phases = Phases(
            method,
            start=require_count("start", start),
            count=require_count("cycles", cycles, least=0),
            length=require_count("cycle_steps", cycle_steps),
            rate=partial(triangular, low=self.lr[0], high=self.lr[1]),
            explore=explore,
            evolve=evolve or 0.0,
            check=self._check_collected,
        )

    def _reachable(self, density: float | None) -> float | None:
        if density is None:
            return None
        share = require_fraction("density", density, one=True)
        weights = [weight for _, weight in named_weights(self.method.model)]
        present, size = (sum(getattr(weight, key) for weight in weights) for key in ("nnz", "numel"))
        if not 0 < whole_share(share, size) <= present:
            raise RegrowValueError(
                f"`density` must be in (0, {present / size:.6g}], of which the model has connections, got {density}"
            )
        return share

    # --- where it stands

    @property
    def step(self) -> int:
        """Optimizer steps counted so far."""
        return self.method.step

    @property
    def cycles(self) -> int:
        """The number of cycles, M."""
        return self.phases.count

    @property
    def due(self) -> int | None:
        """The step at which the next ticket is due, or None where all have been collected."""
        return None if self.done else self.phases.start + self._next * self.phases.length

    @property
    def ready(self) -> bool:
        """Whether a ticket is due now: `collect` it before the next step."""
        return self.step == self.due

    @property
    def done(self) -> bool:
        """Whether all tickets have been collected."""
        return self._next > self.cycles

    @property
    def model(self) -> nn.Module:
        """The network superposed so far, in evaluation mode: a network of its own, in storage like the working model's.

        Raises:
            RegrowRuntimeError: there is none yet.
        """
        if self._model is None:
            raise RegrowRuntimeError(
                f"no ticket has been collected yet; the next is due at step {self.due}, this is {self.step}"
            )
        return self._model

    def __repr__(self) -> str:
        where = "done" if self.done else f"ticket {self._next} due at step {self.due}"
        return (
            f"SupTickets(step {self.step} of {self.phases.end}, {self.cycles} cycles of {self.phases.length} steps "
            f"from step {self.phases.start}, {self.count} tickets in, {where})"
        )

    # --- collecting

    def collect(self, loader: Iterable[Any] | None = None) -> nn.Module | None:
        """Take the working model's present state as a ticket, and superpose it with those before.

        A ticket that is not finite is left out with a warning, and the run goes on.

        Args:
            loader: batches of the training data for the statistics of the batch norms, one pass over it; needed only
                where there are batch norms. Ticket 0 brings its own.

        Returns:
            `model`; None where every ticket so far was left out.

        Raises:
            RegrowRuntimeError: no ticket is due at this step, or it has been collected already.
            RegrowValueError: no loader, or an empty one, where there are batch norms; nothing has been collected then.
        """
        if not self.ready:
            due = "all are collected" if self.done else f"the next is due at step {self.due}"
            raise RegrowRuntimeError(
                f"no ticket is due at step {self.step}: {due}.\nCall collect where `tickets.ready`, once."
            )
        working = self.method.model
        if not is_finite(working):
            warn(f"ticket {self._next} holds inf or nan and is left out")
            self.left_out.append(self._next)
        else:
            self._superpose(working, loader)
            self.count += 1
        self._next += 1
        return self._model

    def _superpose(self, working: nn.Module, loader: Iterable[Any] | None) -> None:
        average = Average.of(working, self.divide)
        budget = self._budget_of(average) if self._budget is None else self._budget
        if self._average is not None:
            factor = 1 / (self.count + 1) if self.average == "mean" else self.factor
            average = blend(self._average, average, factor, self.divide)
        pruned = average.pruned(budget)
        changed = self._average is not None or pruned.count() < average.count()
        if changed and loader is None and batch_norms(working):
            raise RegrowValueError(
                "`loader` is needed: the statistics of the batch norms are those of no ticket\n"
                "Call collect(loader) with the batches of the training data."
            )
        model = self._written(pruned)
        if changed and loader is not None:
            reestimate(model, loader)
        kept = pruned if self.rule == "running" else average
        self._average, self._budget, self._model = kept.with_buffers_of(model), budget, model

    def _written(self, average: Average) -> nn.Module:
        """Return a network with these values, in the working model's storage."""
        model = average.into(copied(self.method.model, self.method))
        for _, weight in named_weights(model):
            weight.record.asked = weight.density
        return model

    def _budget_of(self, first: Average) -> Budget:
        """Return the connections to keep, from those of the first ticket and `density`."""
        sizes = {name: len(own.positions) for name, own in first.sparse.items()}
        present, total = sum(sizes.values()), sum(w.numel for _, w in named_weights(self.method.model))
        wanted = present if self.density is None else whole_share(self.density, total)
        if wanted > present:
            raise RegrowValueError(
                f"`density` {self.density} asks for {wanted} connections, but the model is down to {present} by now"
            )
        if self.scope == "global":
            return wanted
        budget, seen, given = {}, 0, 0
        for name, size in sizes.items():  # in proportion; rounded so that the sum is exact
            seen += size
            budget[name] = seen * wanted // present - given
            given += budget[name]
        return budget

    def _check_collected(self) -> None:
        """Check before each step that no ticket is passed over."""
        if self.due is not None and self.step >= self.due:
            raise RegrowRuntimeError(
                f"ticket {self._next} was due at step {self.due} and is not collected; this is step {self.step}.\n"
                "After optimizer.step(), call `if tickets.ready: tickets.collect(loader)`; after resuming, call "
                "load_state_dict first."
            )

    def detach(self) -> None:
        """End it: the learning rate is the loop's again, the topology follows the method's own schedule."""
        self.phases.detach()

    # --- checkpoints

    def _settings(self) -> dict[str, Any]:
        phases = {"start": self.phases.start, "cycle_steps": self.phases.length}
        return phases | {key: getattr(self, key) for key in ("rule", "divide", "scope", "density")}

    def state_dict(self) -> dict[str, Any]:
        """Return everything collected so far, in plain numbers and tensors, for `torch.load(weights_only=True)`.

        With model and optimizer, which hold the rest, a run resumes at any step exactly.
        """
        return {
            "format": TICKETS,
            "settings": self._settings(),
            "next": self._next,
            "count": self.count,
            "left_out": list(self.left_out),
            "budget": self._budget,
            "average": None if self._average is None else self._average.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave; the superposed network is there again.

        Raises:
            RegrowValueError: a state of other settings, or of another architecture.
        """
        require_mapping("state", state, STATE, keys=self.state_dict().keys() - {"format"})
        require_format("`state`", state, "format", TICKETS)
        settings = self._settings()
        wrong = {key: value for key, value in state["settings"].items() if settings.get(key) != value}
        if wrong:
            raise RegrowValueError(
                f"`state` was made with {wrong}, and this is { ({key: settings.get(key) for key in wrong}) }"
            )
        saved, budget, model = state["average"], state["budget"], None
        average = None if saved is None else Average.from_state_dict(saved, self.method.model)
        if average is not None:
            model = self._written(average.pruned(budget))
        self._next, self.count, self.left_out = state["next"], state["count"], list(state["left_out"])
        self._average, self._budget, self._model = average, budget, model
