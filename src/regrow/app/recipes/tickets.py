"""The recipe key `tickets`: which kinds there are, their options, and when in a run tickets are made."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from regrow.arguments import require_count, require_fraction
from regrow.errors import RegrowValueError
from regrow.sparsity.distributions import whole_share
from regrow.tickets import FreeTickets, SupTickets
from regrow.tickets.sup import calendar


@dataclass(frozen=True)
class Plan:
    """When tickets are made, in optimizer steps, and what makes them."""

    start: int
    """The first step of the first window: so long is the training before it."""
    count: int
    """Windows; for ``dst``, runs."""
    length: int
    """Steps of a window."""
    options: dict[str, Any]
    """Further arguments of what makes them."""


def _with_options_of(cls: type, *supplied: str) -> Callable[[Callable[..., Plan]], Callable[..., Plan]]:
    """Decorator: the signature shows the arguments of `cls` too, but for those `supplied` by the loop."""

    def joined(function: Callable[..., Plan]) -> Callable[..., Plan]:
        own = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
        known = {*supplied, *(p.name for p in own)}
        own += [p for n, p in inspect.signature(cls).parameters.items() if n not in known]
        function.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]
        return function

    return joined


@_with_options_of(SupTickets, "method", "start", "cycles", "cycle_steps")
def sup(
    total: int,
    epoch: int,
    *,
    share: float = 0.1,
    cycle_epochs: int | None = None,
    cycle_steps: int | None = None,
    **options: Any,
) -> Plan:
    """Sup-tickets: cycles in the last `share` of the run, as many as fit (8 epochs each, by default).

    Raises:
        RegrowValueError: cycles of which none fits, or that leave no training before them.
    """
    length = _steps("cycle", cycle_epochs, cycle_steps, epoch)
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
    return Plan(start, count, length, options)


@_with_options_of(FreeTickets, "method", "start", "ticket_steps")
def edst(
    total: int,
    epoch: int,
    *,
    start: float | None = None,
    start_epochs: int | None = None,
    start_steps: int | None = None,
    ticket_epochs: int | None = None,
    ticket_steps: int | None = None,
    tickets: int = 3,
    **options: Any,
) -> Plan:
    """FreeTickets' EDST ensemble: equal windows that end with the run, after a third of exploration by default.

    Give where they start (`start`, a share of the run, or epochs or steps) or how long they are, not both. What
    does not divide belongs to the exploration.

    Raises:
        RegrowValueError: windows that are no steps long, or that leave no exploration before them.
    """
    count = require_count("tickets.tickets", tickets)
    if ticket_epochs is not None or ticket_steps is not None:
        length = _steps("ticket", ticket_epochs, ticket_steps, epoch)
    else:
        if start_epochs is None and start_steps is None:
            wanted = whole_share(require_fraction("tickets.start", start), total)
        else:
            wanted = _steps("start", start_epochs, start_steps, epoch)
        length = (total - wanted) // count
    if length < 1 or total - count * length < 1:
        raise RegrowValueError(
            f"`tickets` edst: {count} windows of {length:,} steps and the exploration before them do not fit into "
            f"{total:,} steps\nGive another `tickets.start` or fewer `tickets.tickets`, or train longer."
        )
    return Plan(total - count * length, count, length, {"tickets": count, **options})


def dst(total: int, epoch: int, *, tickets: int = 3) -> Plan:
    """FreeTickets' DST ensemble: independent whole runs, each with a seed of its own."""
    return Plan(total, require_count("tickets.tickets", tickets, least=2), total, {})


KINDS: dict[str, Callable[..., Plan]] = {"sup": sup, "edst": edst, "dst": dst}

ALTERNATIVES: dict[str, dict[str, Any]] = {
    "sup": {"cycle_epochs": 8, "cycle_steps": None},
    "edst": {
        "start": 1 / 3,
        "start_epochs": None,
        "start_steps": None,
        "ticket_epochs": None,
        "ticket_steps": None,
    },
    "dst": {},
}
"""Of each kind, the options of which one is given, and the published value that holds where none is."""


def chosen(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """`options` with the one of the alternatives that was given, or else the published one.

    Raises:
        RegrowValueError: several of them.
    """
    units = ALTERNATIVES[kind]
    given = [name for name in units if options.get(name) is not None]
    if len(given) > 1:
        raise RegrowValueError(
            f"give one of {', '.join(f'`tickets.{name}`' for name in units)}, got "
            + " and ".join(f"{name} {options[name]}" for name in given)
        )
    published = {} if given else {name: value for name, value in units.items() if value is not None}
    return {n: v for n, v in options.items() if n not in units or n in given} | published


def _steps(what: str, epochs: int | None, steps: int | None, epoch: int) -> int:
    """A length that was given in one of the two units."""
    if steps is not None:
        return require_count(f"tickets.{what}_steps", steps)
    return require_count(f"tickets.{what}_epochs", epochs) * epoch
