"""One record for each kind of tickets: what recipes, the training loop, tables, costs and pictures ask about it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from regrow.arguments import require_choice, require_count, require_function, require_text
from regrow.errors import RegrowValueError
from regrow.methods import Method

RESULTS = ("superposed", "ensemble", "last")


@dataclass(frozen=True)
class Plan:
    """When the tickets of a run are made, in optimizer steps."""

    start: int
    """The first step of the first window. The recipe's schedule of the learning rate ends there: in the windows what
    makes the tickets sets the rates, as `Phases` does."""
    count: int
    """Windows; where each ticket is a run of its own, runs."""
    length: int
    """Steps of a window, or of a run."""
    method_steps: int
    """The `total_steps` of the method: where its schedule ends."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of what makes the tickets."""


class TicketMaker(Protocol):
    """Makes the tickets of one run. The training loop asks it after each optimizer step."""

    def due(self, step: int) -> bool:
        """Return whether a ticket is complete after `step` steps: the loop tests the network, then calls `collect`."""

    def consider(self, score: float) -> bool:
        """Hear how good the network in training is now, higher being better.

        Returns:
            Whether the next ticket is this network, unless a later one takes its place.
        """

    def collect(self, batches: Iterable[Tensor]) -> nn.Module | None:
        """Take the ticket that is due.

        Args:
            batches: inputs of one pass over the training set, which is counted if it is used.

        Returns:
            The ticket, or None where it was left out.
        """

    @property
    def networks(self) -> list[nn.Module]:
        """What the tickets so far came to: one superposed network, or the members of an ensemble."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs to hold, in plain numbers and tensors."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""


@dataclass(frozen=True)
class Training:
    """The training that the cost formula of a kind counts: FreeTickets' unit is the epoch."""

    forward: float
    """FLOPs of a sparse forward pass over those of the dense one, f_S / f_D."""
    tickets: int
    epochs: int
    """Of dense training."""
    exploration: int
    """Epochs before the first ticket of an ensemble from one run."""
    refinement: int
    """Epochs of each of its tickets."""
    multiplier: float
    """Of every length."""


@dataclass(frozen=True)
class Cost:
    """What training with several tickets costs."""

    formula: str
    """A multiple of dense training, in words: f_S/f_D, M tickets, T epochs."""
    multiple: Callable[[Training], float]
    assumes: str = ""
    """What the multiple supposes where nothing else is said, in words."""


@dataclass(frozen=True)
class TicketKind:
    """What is known about a kind of tickets; see `register` for each field."""

    name: str
    plan: Callable[..., Plan]
    make: Callable[[Method, Plan], TicketMaker] | None
    result: str
    made: str
    windows: str = "windows"
    alternatives: Mapping[str, Any] = field(default_factory=dict)
    needs_validation: bool = False
    cost: Cost | None = None
    method_options: Mapping[str, Any] = field(default_factory=dict)
    schedule: str | None = None
    method: str | None = None

    @property
    def independent(self) -> bool:
        """Whether the tickets are whole runs of their own."""
        return self.make is None

    @property
    def prunes(self) -> bool:
        """Whether they follow one another: each is pruned out of the network of the run before, the first dense."""
        return self.independent and self.result == "last"

    @property
    def options(self) -> set[str]:
        """The options that a recipe may give."""
        return set(inspect.signature(self.plan).parameters) - {"total", "epoch"}

    def runs(self, options: Mapping[str, Any]) -> int:
        """Return how many whole runs a run with these options makes: those of tickets, and of what they come from."""
        return int(options["tickets"]) + self.prunes if self.independent else 1

    def networks(self, tickets: int) -> int:
        """Return how many networks a test of so many tickets runs."""
        return tickets if self.result == "ensemble" else 1

    def chosen(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return `options` with the one of the alternatives that was given, or else the published one.

        Raises:
            RegrowValueError: several of them.
        """
        units = self.alternatives
        given = [name for name in units if options.get(name) is not None]
        if len(given) > 1:
            raise RegrowValueError(
                f"give one of {', '.join(f'`tickets.{name}`' for name in units)}, got "
                + " and ".join(f"{name} {options[name]}" for name in given)
            )
        published = {} if given else {name: value for name, value in units.items() if value is not None}
        return {n: v for n, v in options.items() if n not in units or n in given} | published


_kinds: dict[str, TicketKind] = {}


def register(
    name: str,
    plan: Callable[..., Plan],
    make: Callable[[Method, Plan], TicketMaker] | None,
    *,
    result: str,
    made: str,
    windows: str = "windows",
    alternatives: Mapping[str, Any] | None = None,
    needs_validation: bool = False,
    cost: Cost | None = None,
    method_options: Mapping[str, Any] | None = None,
    schedule: str | None = None,
    method: str | None = None,
) -> TicketKind:
    """Make a kind of tickets known to recipes, `regrow train`, `compare`, `flops` and the pictures.

    Args:
        name: what ``tickets`` in a recipe takes, and the part of ``name-method`` in ``--methods`` before the dash.
        plan: ``plan(total, epoch, *, ...)`` says when tickets are made in a run of `total` steps, `epoch` to an epoch;
            its further arguments are the options that a recipe may give.
        make: makes, of the method and the plan, what makes the tickets. None where each ticket is a whole run of its
            own: as many as the option ``tickets`` says.
        result: ``"superposed"``, one network; ``"ensemble"``, whose test runs each ticket; or ``"last"``, the last of
            whole runs, each pruned out of the one before.
        made: what a summary says, with {0} for the number of tickets: ``"of {0} tickets, superposed"``.
        windows: what the windows are called in a picture.
        alternatives: the options of which one is given, with the value that holds where none is, and None for others.
        needs_validation: whether held-out examples choose the tickets.
        cost: what training costs. None is not counted.
        method_options: of a method that drops and grows, in a comparison whose recipe does not say otherwise.
        schedule: the learning-rate schedule before the first window, likewise.
        method: of a comparison that names the kind alone; None is the recipe's where it drops and grows, else RigL.

    Returns:
        The record.

    Raises:
        RegrowValueError: a name that is taken or has a dash in it, or a plan whose arguments are others.
    """
    if not require_text("name", name).isidentifier():
        raise RegrowValueError(f"`name` must be letters and digits, as an identifier of Python, got {name!r}")
    require_choice("result", result, RESULTS)
    require_function("plan", plan, "total", "epoch")
    known = inspect.signature(plan).parameters
    if list(known)[:2] != ["total", "epoch"]:
        raise RegrowValueError(
            f"`plan` must take (total, epoch, *, ...), got ({', '.join(known)})\nName its first two arguments so."
        )
    if make is None and "tickets" not in known:
        raise RegrowValueError("`plan` must take `tickets`, how many runs there are, where `make` is None")
    if strange := sorted(set(alternatives or {}) - set(known)):
        raise RegrowValueError(f"`alternatives` must be options of `plan`, got {', '.join(strange)}")
    taken = _kinds.get(name)
    if taken is not None and (taken.plan.__module__, taken.plan.__qualname__) != (
        plan.__module__,
        plan.__qualname__,
    ):
        raise RegrowValueError(
            f"`name` {name!r} is taken by {taken.plan.__module__}.{taken.plan.__qualname__}"
        )
    _kinds[name] = TicketKind(
        name,
        plan,
        make,
        result,
        made,
        windows,
        alternatives or {},
        needs_validation,
        cost,
        method_options or {},
        schedule,
        method,
    )
    return _kinds[name]


def kinds() -> dict[str, TicketKind]:
    """Return all registered kinds of tickets by name."""
    return dict(_kinds)


def kind_of(name: str) -> TicketKind:
    """Return the record of a kind of tickets.

    Raises:
        RegrowValueError: an unknown name, with the closest one.
    """
    return _kinds[require_choice("tickets", name, _kinds)]


def in_steps(what: str, epochs: int | None, steps: int | None, epoch: int) -> int:
    """Return the length of `what` in steps, from the options ``<what>_epochs`` and ``<what>_steps`` of a recipe."""
    if steps is not None:
        return require_count(f"tickets.{what}_steps", steps)
    return require_count(f"tickets.{what}_epochs", epochs) * epoch
