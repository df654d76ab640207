"""One record per way to train: the choices of the command line, the tables, the list of the common tests."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from regrow.arguments import require_choice, require_text
from regrow.errors import RegrowValueError
from regrow.methods.base import Method

T = TypeVar("T", bound=type[Any])
COSTS = ("sparse", "rigl", "snfs", "pruning", "granet")


@dataclass(frozen=True)
class MethodRecord:
    """What is known about a way to train."""

    name: str
    cls: type[Any]
    paper: str
    line: str
    drop: str
    grow: str
    redistribute: str
    cost: str
    """Training cost: ``sparse`` (3 f_S a step), ``rigl``, ``snfs`` or ``pruning`` (RigL, appendix H), or ``granet``."""
    kind: str
    """``method`` (a `Method`), or ``topology`` (an initial topology, trained as Static)."""

    @property
    def needs(self) -> str:
        """When the dense gradient is needed: ``never``, at each ``update``, or ``always``."""
        return str(getattr(self.cls, "needs_gradient", "never"))

    @property
    def needs_dense(self) -> bool:
        """Whether memory or compute of the dense network are needed at any time but an update."""
        return self.needs == "always" or self.cost == "pruning"

    @property
    def storages(self) -> tuple[str, ...]:
        """The storages that the method runs on."""
        return ("masked",) if self.needs == "always" else ("masked", "compressed")

    def to_dict(self) -> dict[str, Any]:
        """Plain strings, for JSON."""
        fields = asdict(self)
        fields["cls"] = f"{self.cls.__module__}:{self.cls.__qualname__}"
        return {
            **fields,
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
    cost: str = "sparse",
    kind: str = "method",
) -> Callable[[T], T]:
    """Class decorator that makes a method known by `name` to the command line and to the common tests.

    Raises:
        RegrowValueError: a name that another class has taken.
    """
    require_text("name", name)
    require_choice("cost", cost, COSTS)
    require_choice("kind", kind, ("method", "topology"))

    def record(cls: T) -> T:
        taken = _records.get(name)
        if taken is not None and taken.cls.__qualname__ != cls.__qualname__:
            raise RegrowValueError(
                f"`name` {name!r} is taken by {taken.cls.__module__}.{taken.cls.__qualname__}"
            )
        _records[name] = MethodRecord(name, cls, paper, line, drop, grow, redistribute, cost, kind)
        return cls

    return record


def records() -> dict[str, MethodRecord]:
    """All registered ways to train by name."""
    return dict(_records)


def methods() -> dict[str, MethodRecord]:
    """Those that are a `Method`."""
    return {name: record for name, record in _records.items() if record.kind == "method"}


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
    """The record of a method.

    Raises:
        RegrowValueError: an unknown name, with the closest one.
    """
    return _records[require_choice("method", name, _records)]
