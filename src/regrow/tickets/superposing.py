"""How ``sup`` makes tickets: those of the cycles at the end of a run, superposed into one network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from regrow.arguments import require_fraction
from regrow.errors import RegrowRuntimeError, RegrowValueError
from regrow.methods import Method
from regrow.sparsity.distributions import whole_share
from regrow.tickets.registry import Plan, in_steps
from regrow.tickets.sup import SupTickets, calendar
from regrow.weights.views import named_weights


def plan(
    total: int,
    epoch: int,
    *,
    share: float = 0.1,
    cycle_epochs: int | None = None,
    cycle_steps: int | None = None,
    lr: tuple[float, float] = (0.001, 0.005),
    explore: float | None = 0.5,
    evolve: float | None = None,
    average: str = "mean",
    factor: float = 0.5,
    rule: str = "running",
    divide: str = "tickets",
    scope: str = "global",
    density: float | None = None,
) -> Plan:
    """Plan cycles in the last `share` of the run, as many as fit (8 epochs each, by default).

    From `lr` on the options are those of `SupTickets`.

    Raises:
        RegrowValueError: cycles of which none fits, or that leave no training before them.
    """
    length = in_steps("cycle", cycle_epochs, cycle_steps, epoch)
    start, _, count = calendar(total, require_fraction("tickets.share", share, one=True), length)
    if not count:
        raise RegrowValueError(
            f"`tickets` sup: a cycle of {length:,} steps is longer than `tickets.share` {share} of the run, "
            f"{whole_share(share, total):,} of {total:,} steps\n"
            "Give a larger `tickets.share`, a shorter `tickets.cycle_steps`, or train longer."
        )
    if not start:
        raise RegrowValueError(
            f"`tickets` sup: `tickets.share` {share} leaves no training before the cycles, which take all "
            f"{total:,} steps"
        )
    options = {
        "lr": lr,
        "explore": explore,
        "evolve": evolve,
        "average": average,
        "factor": factor,
        "rule": rule,
        "divide": divide,
        "scope": scope,
        "density": density,
    }
    return Plan(start, count, length, start, options)


class Superposing:
    """Collect the working model at the end of each cycle, and superpose it with those before."""

    def __init__(self, method: Method, plan: Plan) -> None:
        self.tickets = SupTickets(
            method, start=plan.start, cycles=plan.count, cycle_steps=plan.length, **plan.options
        )

    def due(self, step: int) -> bool:
        return self.tickets.ready

    def consider(self, score: float) -> bool:
        return True  # the ticket is whatever there is at the end of the cycle

    def collect(self, batches: Iterable[Tensor]) -> nn.Module | None:
        before = self.tickets.count
        self.tickets.collect(batches)
        if self.tickets.count == before:
            return None
        self._check(self.tickets.model)
        return self.tickets.method.model

    @property
    def networks(self) -> list[nn.Module]:
        return [self.tickets.model]

    def _check(self, network: nn.Module) -> None:
        weights = [weight for _, weight in named_weights(network)]
        asked, density = sum(w.nnz for _, w in named_weights(self.tickets.method.model)), self.tickets.density
        if density is not None:
            asked = whole_share(density, sum(weight.numel for weight in weights))
        found = sum(weight.nnz for weight in weights)
        if found > asked:
            raise RegrowRuntimeError(
                f"the superposed network has {found:,} connections, and {asked:,} were asked for"
            )

    def state_dict(self) -> dict[str, Any]:
        return self.tickets.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.tickets.load_state_dict(state)
