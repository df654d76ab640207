"""One record per way to train: all that commands, recipes, cost formulas and tests ask about a method."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from regrow.arguments import require_choice, require_text
from regrow.errors import RegrowValueError
from regrow.methods import formulas
from regrow.methods.base import Method
from regrow.methods.checks import storages_of
from regrow.methods.dynamic import Dynamic
from regrow.methods.formulas import pruning_levels

T = TypeVar("T", bound=type[Any])
COSTS = tuple(name for name in formulas.BY_NAME if name != formulas.DENSE)
DEFAULT = "rigl"
"""The method of a recipe that names none."""
EXAMPLES = "rigl or set"
"""What messages suggest where the method must start sparse, drop and grow."""
TABLE = ("dense", "static", "snip", "small-dense", "set", "rigl", "snfs", "pruning", "granet")
"""The eight methods of the RigL paper's tables in their order, and GraNet: the first columns of tables of costs."""


@dataclass(frozen=True)
class MethodRecord:
    """What is known about a way to train.

    What a method does is said by its class (`needs_gradient`, `skips_step`, `initial_sparsity`, `storages`), so that a
    subclass has it too; the record reads it there.
    """

    name: str
    cls: Callable[..., Any]
    paper: str = ""
    line: str = ""
    drop: str = "own"
    grow: str = "own"
    redistribute: str = "none"
    cost: str = "sparse"
    """Training cost: the name of one of `regrow.methods.formulas`, or ``small-dense``."""
    kind: str = "method"
    """``method`` (a `Method`), ``topology`` (an initial topology, trained as Static), ``dense`` (a dense network)."""

    @property
    def needs(self) -> str:
        """When the dense gradient is needed: ``never``, at each ``update``, or ``always``."""
        return str(getattr(self.cls, "needs_gradient", formulas.NEVER))

    @property
    def needs_dense(self) -> bool:
        """Whether memory or compute of the dense network are needed at any time but an update."""
        starts_dense = self.initial_sparsity == 0 or (self.is_dense and not self.is_narrow)
        return starts_dense or self.needs == formulas.ALWAYS

    @property
    def storages(self) -> tuple[str, ...]:
        """The storages that the method runs on."""
        return storages_of(self.cls)

    @property
    def pattern(self) -> str | None:
        """The pattern that its weights must have, or None."""
        found: str | None = getattr(self.cls, "pattern", None)
        return found

    @property
    def is_dense(self) -> bool:
        """Whether a dense network is trained, which no method drives."""
        return self.kind == "dense"

    @property
    def is_narrow(self) -> bool:
        """Whether the dense network is narrower than the recipe's, with the stored size of the sparse one."""
        return self.cost == formulas.SMALL_DENSE

    @property
    def is_topology(self) -> bool:
        """Whether this is an initial topology, trained as Static."""
        return self.kind == "topology"

    @property
    def explores(self) -> bool:
        """Whether it drops and grows by a schedule, and takes `explore` and `evolve` beside it."""
        return inspect.isclass(self.cls) and issubclass(self.cls, Dynamic)

    @property
    def initial_sparsity(self) -> float | None:
        """The sparsity that the published method starts from where it prunes to `final_sparsity`; None for others."""
        found: float | None = getattr(self.cls, "initial_sparsity", None)
        return found

    def starts_from(self, sparsity: float) -> float:
        """Return the sparsity that the published method starts from on its way to `sparsity`."""
        own: Callable[[float], float] | None = getattr(self.cls, "starts_from", None)
        return (self.initial_sparsity or 0.0) if own is None else own(sparsity)

    @property
    def backward_ratio(self) -> float:
        """Positions whose weights are trained, for each connection, by its own default."""
        return float(getattr(self.cls, "backward_ratio", 1.0))

    @property
    def starts_at_random(self) -> bool:
        """Whether it starts from random connections at the sparsity asked for, without the dense network."""
        return self.kind == "method" and self.initial_sparsity is None

    @property
    def driver(self) -> Callable[..., Any] | None:
        """What is attached to model and optimizer: the method, Static for a topology, None for a dense network."""
        return None if self.is_dense else get("static").cls if self.is_topology else self.cls

    @property
    def gradient(self) -> str:
        """When the dense gradient counts in the training cost."""
        if self.is_dense:
            return self.needs
        # a class that needs it pays for it, whatever formula it was registered with
        return max(self.needs, formulas.BY_NAME[self.cost].gradient, key=("never", "update", "always").index)

    @property
    def interval(self) -> int | None:
        """Its own default steps between two updates, where it is priced by that: the network becomes sparser."""
        parameter = parameters_of(self.cls).get("update_every")
        has_one = (
            self.initial_sparsity is not None and parameter is not None and isinstance(parameter.default, int)
        )
        return parameter.default if has_one and parameter is not None else None

    def levels(self, sparsity: float) -> list[float] | None:
        """Give the sparsity over a run by its own defaults, as shares of the final `sparsity`; None if it stays."""
        if self.initial_sparsity is None:
            return None
        own: Callable[[float], list[float]] | None = getattr(self.cls, "levels", None)
        if own is not None:
            return own(sparsity)
        return pruning_levels(initial=min(1.0, self.initial_sparsity / sparsity) if sparsity else 1.0)

    def to_dict(self) -> dict[str, Any]:
        """Return plain strings, for JSON."""
        return {
            **asdict(self),
            "cls": f"{self.cls.__module__}:{self.cls.__qualname__}",
            "needs": self.needs,
            "needs_dense": self.needs_dense,
            "storages": list(self.storages),
        }


_records: dict[str, MethodRecord] = {}


def register(
    *,
    name: str,
    paper: str = "",
    line: str = "",
    drop: str = "own",
    grow: str = "own",
    redistribute: str = "none",
    cost: str | None = None,
    kind: str = "method",
) -> Callable[[T], T]:
    """Return the class decorator that makes a method known by `name` to all commands, tables and common tests.

    Args:
        name: what recipes and commands call it.
        paper: where it is published.
        line: what it is, in one line.
        drop: which connections go at an update.
        grow: which come in their place.
        redistribute: what decides how many of them each layer gets.
        cost: its formula of training cost, one of `COSTS`; None is the one that follows from `needs_gradient` and
            `initial_sparsity` of the class.
        kind: ``method``, or ``topology`` for an initial topology.

    Raises:
        RegrowValueError: a name that another class has taken.
    """
    require_text("name", name)
    if cost is not None:
        require_choice("cost", cost, COSTS)
    require_choice("kind", kind, ("method", "topology"))

    def record(cls: T) -> T:
        _keep(MethodRecord(name, cls, paper, line, drop, grow, redistribute, cost or _cost_of(cls), kind))
        return cls

    return record


def _keep(record: MethodRecord) -> None:
    """Enter a record.

    Raises:
        RegrowValueError: a name that another class has taken, or a cost that does not fit the class.
    """
    taken = _records.get(record.name)
    if taken is not None and taken.cls.__qualname__ != record.cls.__qualname__:
        raise RegrowValueError(
            f"`name` {record.name!r} is taken by {taken.cls.__module__}.{taken.cls.__qualname__}"
        )
    storages_of(record.cls)
    if record.kind == "method" and formulas.BY_NAME[record.cost].gradual and record.initial_sparsity is None:
        raise RegrowValueError(
            f"`cost` {record.cost} is of methods that make the network sparser, and {record.cls.__name__} has no "
            "`initial_sparsity`\nGive the class the sparsity that it starts from, such as `initial_sparsity = 0.0`."
        )
    _records[record.name] = record


class Dense:
    """The network of the recipe without sparsity."""


class SmallDense:
    """A dense network that is narrower, so that its stored size is that of the sparse one."""


for _name, _cls, _cost, _line in (
    ("dense", Dense, formulas.DENSE, "the network itself, dense"),
    (
        "small-dense",
        SmallDense,
        formulas.SMALL_DENSE,
        "a narrower dense network of the sparse one's stored size",
    ),
):
    _keep(MethodRecord(_name, _cls, line=_line, drop="none", grow="none", cost=_cost, kind="dense"))


def _cost_of(cls: Callable[..., Any]) -> str:
    """Find the formula that fits what a class says of itself."""
    needs = getattr(cls, "needs_gradient", formulas.NEVER)
    require_choice("needs_gradient", needs, formulas.GRADIENTS)
    wider = getattr(cls, "backward_ratio", 1.0) > 1
    return formulas.name_of(needs, getattr(cls, "initial_sparsity", None) is not None, wider)


def ways() -> dict[str, MethodRecord]:
    """Return all ways to train by name, those with a dense network first."""
    found = {name: record for name, record in _records.items() if record.is_dense}
    return found | records()


def records() -> dict[str, MethodRecord]:
    """Return the registered methods and initial topologies by name."""
    return {name: record for name, record in _records.items() if not record.is_dense}


def methods() -> dict[str, MethodRecord]:
    """Return the registered `Method` classes by name."""
    return {name: record for name, record in _records.items() if record.kind == "method"}


def tabulated() -> dict[str, MethodRecord]:
    """Return all ways to train by name, in the order of tables of costs."""
    known = ways()
    return {name: known[name] for name in TABLE if name in known} | known


def record_of(function: Callable[..., Any]) -> MethodRecord:
    """Return the record of a method's class or of a function that makes one; if it has none, what it says of itself."""
    for record in _records.values():
        if record.cls is function:
            return record
    return MethodRecord(getattr(function, "__name__", "own"), function, cost=_cost_of(function))


def parameters_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """List the arguments of a function or class, by name.

    A method's constructor that hands ``**options`` on has the arguments of the classes above it too, after its own.
    """
    found = dict(inspect.signature(function).parameters)
    if not (inspect.isclass(function) and issubclass(function, Method)):
        return found
    constructors = [vars(cls)["__init__"] for cls in function.__mro__ if "__init__" in vars(cls)]
    for constructor in constructors[1:]:
        if not any(p.kind is p.VAR_KEYWORD for p in found.values()):
            break
        found = {name: p for name, p in found.items() if p.kind is not p.VAR_KEYWORD}
        found |= {n: p for n, p in inspect.signature(constructor).parameters.items() if n not in found}
        found.pop("self", None)
    return found


def get(name: str) -> MethodRecord:
    """Return the record of a method.

    Raises:
        RegrowValueError: an unknown name, with the closest one.
    """
    return records()[require_choice("method", name, records())]
