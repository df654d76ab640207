"""How FreeTickets' kinds make tickets: ``edst`` in the windows of one run, ``dst`` in independent runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from regrow.arguments import require_count, require_fraction
from regrow.errors import RegrowValueError
from regrow.methods import Method
from regrow.sparsity.distributions import whole_share
from regrow.tickets.free import FreeTickets
from regrow.tickets.registry import Plan, in_steps


def windows(
    total: int,
    epoch: int,
    *,
    start: float | None = None,
    start_epochs: int | None = None,
    start_steps: int | None = None,
    ticket_epochs: int | None = None,
    ticket_steps: int | None = None,
    tickets: int = 3,
    lr: Sequence[float] = (0.01, 0.001),
    explore: float | None = 0.8,
) -> Plan:
    """Plan equal windows that end with the run, after a third of exploration by default.

    Give where they start (`start`, a share of the run, or epochs or steps) or how long they are, not both. What
    does not divide belongs to the exploration. `lr` and `explore` are those of `FreeTickets`.

    Raises:
        RegrowValueError: windows that are no steps long, or that leave no exploration before them.
    """
    count = require_count("tickets.tickets", tickets)
    if ticket_epochs is not None or ticket_steps is not None:
        length = in_steps("ticket", ticket_epochs, ticket_steps, epoch)
    else:
        if start_epochs is None and start_steps is None:
            wanted = whole_share(require_fraction("tickets.start", start), total)
        else:
            wanted = in_steps("start", start_epochs, start_steps, epoch)
        length = (total - wanted) // count
    if length < 1 or total - count * length < 1:
        raise RegrowValueError(
            f"`tickets` edst: {count} windows of {length:,} steps and the exploration before them do not fit into "
            f"{total:,} steps\nGive another `tickets.start` or fewer `tickets.tickets`, or train longer."
        )
    return Plan(total - count * length, count, length, total, {"lr": lr, "explore": explore})


class Refining:
    """Collect the best checkpoint of each window."""

    def __init__(self, method: Method, plan: Plan) -> None:
        self.tickets = FreeTickets(
            method, start=plan.start, tickets=plan.count, ticket_steps=plan.length, **plan.options
        )
        self.plan = plan

    def due(self, step: int) -> bool:
        inside = step - self.plan.start
        return inside > 0 and inside % self.plan.length == 0

    def consider(self, score: float) -> bool:
        return self.tickets.consider(score)

    def collect(self, batches: Iterable[Tensor]) -> nn.Module | None:
        return self.networks[-1] if self.tickets.window in self.tickets.scores else None

    @property
    def networks(self) -> list[nn.Module]:
        return self.tickets.tickets

    def state_dict(self) -> dict[str, Any]:
        return self.tickets.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.tickets.load_state_dict(state)


def runs(total: int, epoch: int, *, tickets: int = 3) -> Plan:
    """Plan independent whole runs, each with a seed of its own."""
    return Plan(total, require_count("tickets.tickets", tickets, least=2), total, total)
