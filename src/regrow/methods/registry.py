"""One record per method: the choices of the command line, the table in the docs, the list of the common tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from regrow.errors import RegrowValueError, closest
from regrow.methods.base import Method

M = TypeVar("M", bound=type[Method])


@dataclass(frozen=True)
class MethodRecord:
    """What is known about a method."""

    name: str
    cls: type[Method]
    paper: str
    line: str
    drop: str
    grow: str
    redistribute: str
    kind: str = "method"

    @property
    def needs(self) -> str:
        """When the dense gradient is needed: ``never``, at each ``update``, or ``always``."""
        return self.cls.needs_gradient

    @property
    def storages(self) -> tuple[str, ...]:
        """The storages that the method runs on."""
        return ("masked",) if self.needs == "always" else ("masked", "compressed")

    def to_dict(self) -> dict[str, Any]:
        """Plain strings, for JSON."""
        fields = asdict(self)
        fields["cls"] = f"{self.cls.__module__}:{self.cls.__qualname__}"
        return {**fields, "needs": self.needs, "storages": list(self.storages)}


_records: dict[str, MethodRecord] = {}


def register(
    *,
    name: str,
    paper: str = "",
    line: str = "",
    drop: str = "own",
    grow: str = "own",
    redistribute: str = "none",
) -> Callable[[M], M]:
    """Class decorator that makes a method known by `name` to the command line and to the common tests.

    Raises:
        RegrowValueError: a name that another class has taken.
    """

    def record(cls: M) -> M:
        taken = _records.get(name)
        if taken is not None and taken.cls.__qualname__ != cls.__qualname__:
            raise RegrowValueError(
                f"`name` {name!r} is taken by {taken.cls.__module__}.{taken.cls.__qualname__}"
            )
        _records[name] = MethodRecord(name, cls, paper, line, drop, grow, redistribute)
        return cls

    return record


def methods() -> dict[str, MethodRecord]:
    """All registered methods by name."""
    return dict(_records)


def get(name: str) -> MethodRecord:
    """The record of a method.

    Raises:
        RegrowValueError: an unknown name, with the closest one.
    """
    if name not in _records:
        raise RegrowValueError(
            f"`method` must be one of {', '.join(_records)}, got {name!r}{closest(name, _records)}"
        )
    return _records[name]
