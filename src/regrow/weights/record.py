"""What is remembered about a weight beside its topology, and what copies of it know of each other."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from regrow.errors import warn
from regrow.ops.listener import Listener
from regrow.weights import stamp
from regrow.weights.hook import GradientHook

if TYPE_CHECKING:
    from regrow.weights.base import SparseWeight
    from regrow.weights.patterns import Pattern

RECORDS = "_regrow"
"""Attribute of a module that holds its `Record`s, by parameter name."""

CLOCK = 0.5


class Family:
    """The modules that hold one weight and its copies, as long as they are alive."""

    def __init__(self) -> None:
        self._modules: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self.clock = CLOCK

    def tick(self) -> float:
        """Return a clock for the stamp of one of them that no other has."""
        self.clock = stamp.tick(self.clock)
        return self.clock

    def add(self, module: nn.Module) -> None:
        """Let `module` belong to it."""
        self._modules.add(module)

    def modules(self) -> list[nn.Module]:
        """Return those that are alive."""
        return list(self._modules)


@dataclass
class Record:
    """What is remembered about a weight; it travels with deepcopy and pickle, and sees to it that copies are hooked."""

    name: str
    """The name at `sparsify`, ``layers.0.weight``: random choices are seeded by it, whatever wraps the model."""
    shape: tuple[int, ...]
    asked: float
    """The density asked for."""
    storage: str
    """``masked``, ``compressed`` or ``dense``."""
    reason: str = ""
    """Why the weight is stored as it is, where that needs a word."""
    gates: int = 1
    """Blocks of rows, of one size, that each keep their own number of connections (`regrow.weights.gates`)."""
    pattern: Pattern | None = None
    """What its topology keeps to, whatever drops and grows (`regrow.weights.patterns`)."""
    fingerprint: int = 0
    """`SparseWeight.fingerprint` when regrow last changed or checked the topology."""
    code: tuple[float, ...] = ()
    """The fingerprint as a stamp holds it (`regrow.weights.stamp`)."""
    versions: tuple[int, ...] = ()
    """Version counters of the topology's tensors at that moment; none while it is being changed."""
    clock: float = CLOCK
    """The clock of the stamp that regrow last wrote (`regrow.weights.stamp`)."""
    total: float | None = None
    """Sum of the values when regrow last looked at them, where their type has no room for a stamp."""
    due: bool = False
    """Whether a copy was made since, so that the clock is to move with the next step."""
    unsure: bool = False
    """Whether a copy may be an average or not: two writes of one clock do not show as a mixture."""
    follows: bool = False
    """Whether other code makes the weight an average of a copy that a method drives: that one's moves are its own."""
    averages: bool = False
    """Whether other code has been seen to mix values of several moments into the weight."""
    kept: tuple[Tensor, Tensor] | None = None
    """Positions and values as other code has written them, where moves were made since (`regrow.weights.aside`)."""
    bare: bool = False
    """Whether other code takes the stamp off trained values (rounding, a proximal step), so that copies get none."""
    told: bool = False
    """Whether a warning of values that other code has written has been given."""
    listener: Listener | None = field(default=None, repr=False, compare=False)
    """The parameter's hook, which backward passes of compressed layers leave their operands with."""
    parameter_name: str = "weight"
    view: type[SparseWeight] | None = None
    """The storage's class; None where the weight is dense."""
    family: Family = field(default_factory=Family, repr=False, compare=False)
    owner: Callable[[], nn.Module | None] = field(default=lambda: None, repr=False, compare=False)
    """The module, weakly."""
    origin: Callable[[], nn.Module | None] = field(default=lambda: None, repr=False, compare=False)
    """The module that this one's was copied from, weakly."""

    def warn_once(self, message: str) -> None:
        """Warn of values that other code has written, once for each weight."""
        if not self.told:
            self.told = True
            warn(message)

    def settle(self) -> None:
        """See that topology and values belong together (`SparseWeight.settle`)."""
        module = self.owner()
        if module is not None and self.view is not None:
            self.view(module, self.parameter_name).settle()

    def belong_to(self, module: nn.Module) -> None:
        """Note whose record it is."""
        self.owner = weakref.ref(module)
        self.family.add(module)

    def __deepcopy__(self, memo: dict[int, Any]) -> Record:
        owner = self.owner()
        module = None if owner is None else memo.get(id(owner))
        made = replace(self)
        memo[id(self)] = made
        made.follows = made.averages = made.told = False
        made.origin, made.listener = self.owner, None
        self.due = made.due = True
        if self.view is None or owner is None or not isinstance(module, nn.Module):
            return made
        made.belong_to(module)
        weight = self.view(owner, self.parameter_name)
        if weight.is_there:
            made._hook(copy.deepcopy(weight.parameter, memo), copy.deepcopy(weight.mask_alone, memo))
            made.total = weight.total
        return made

    def _hook(self, parameter: nn.Parameter, mask: Tensor | None) -> None:
        """Attach hooks to the parameter of the module that is being made: torch's copies lose their hooks."""
        module = self.owner()
        assert self.view is not None
        assert module is not None
        if parameter.requires_grad:
            GradientHook(self.view(module, self.parameter_name), mask).attach(parameter)

    def __reduce__(self) -> tuple[Any, ...]:
        plain = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name not in ("family", "owner", "origin", "told", "listener")
        }
        owner = self.owner()
        weight = None if self.view is None or owner is None else self.view(owner, self.parameter_name)
        if weight is None or not weight.is_there:
            return _revive, (plain, None, None, None)
        return _revive, (plain, owner, weight.parameter, weight.mask_alone)


def module_records(module: nn.Module) -> dict[str, Record]:
    """Return the records of the weights that `module` itself owns, by parameter name; dense ones included."""
    records: dict[str, Record] = module.__dict__.get(RECORDS, {})
    return records


def _revive(
    plain: dict[str, Any], module: nn.Module | None, parameter: nn.Parameter | None, mask: Tensor | None
) -> Record:
    """Return a record from a pickle, where the module's own attributes are still to come."""
    record = Record(**plain)
    record.follows, record.family.clock = False, record.clock
    if module is not None and parameter is not None:
        record.belong_to(module)
        record._hook(parameter, mask)
    return record
