"""The storages by name: what `sparsify` can choose, and what files and other rooms may ask of each.

A storage is a class of `SparseWeight`. One that is `register`\\ ed is known wherever a storage is named. Where it does
not leave the parameter in its module, its `forms` say which modules take the place of which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

from regrow.errors import RegrowValueError
from regrow.weights.base import SparseWeight
from regrow.weights.compressed import CompressedWeight
from regrow.weights.masked import MaskedWeight

S = TypeVar("S", bound=type[SparseWeight])

RESERVED = ("auto", "dense")
"""What `sparsify` and `summary` call something else."""

STORAGES: dict[str, type[SparseWeight]] = {each.storage: each for each in (MaskedWeight, CompressedWeight)}


@dataclass(frozen=True)
class Form:
    """How modules of one class are stored: by modules of another class, which own the same weights."""

    module: type[nn.Module]
    """The class that takes the dense one's place; its forward pass calls `regrow.weights.forward.ensure_hooks`."""
    make: Callable[[Any, Mapping[str, Tensor], Mapping[str, Tensor]], nn.Module]
    """``(dense module, positions, values) -> module``: positions [nnz] by parameter name, and values [nnz] for those
    whose values are not the dense module's own."""
    restore: Callable[[Any, Mapping[str, Tensor]], nn.Module]
    """``(module, dense weights by parameter name) -> dense module``."""
    weights: tuple[str, ...] | Callable[[Any], tuple[str, ...]] = ("weight",)
    """Names of its weights, or what tells them of a dense module; they are stored together or not at all."""
    others: bool = False
    """Whether the module's other weights may be stored so beside them, or stay dense."""
    why_not: Callable[[Any], str | None] = lambda module: None
    """Why one dense module cannot be stored so, or None."""

    def why_not_with(self, module: nn.Module, stored: Mapping[str, str], storage: str) -> str | None:
        """Say why a dense module cannot be stored so with what is `stored` of its weights by name, or return None."""
        if reason := self.why_not(module):
            return reason
        names = self.weights(module) if callable(self.weights) else self.weights
        fits = set(names) <= stored.keys() if self.others else set(names) == stored.keys()
        if fits and all(kind == storage for kind in stored.values()):
            return None
        beside = "and what is sparse beside them" if self.others else "alone"
        return f"{type(module).__name__} has a {storage} form with {', '.join(names)} {beside}"


def register(storage: S) -> S:
    """Register a storage under its name; a class decorator.

    Raises:
        RegrowValueError: a name that is taken.
    """
    name, taken = storage.storage, STORAGES.get(storage.storage)
    if name in RESERVED or (taken is not None and taken.__qualname__ != storage.__qualname__):
        raise RegrowValueError(
            f"`storage` {name!r} is taken\nGive the class {storage.__qualname__} another name."
        )
    STORAGES[name] = storage
    return storage


def form_of(module: nn.Module) -> Form | None:
    """Find the form that `module` is of, where it stands for a dense one."""
    return next((form for _, form in _forms() if isinstance(module, form.module)), None)


def dense_class_of(module: nn.Module) -> type[nn.Module]:
    """Return the class of the dense module that `module` stands for; its own, where it stands for none."""
    return next((dense for dense, form in _forms() if isinstance(module, form.module)), type(module))


def _forms() -> Iterator[tuple[type[nn.Module], Form]]:
    for storage in STORAGES.values():
        yield from (storage.forms or {}).items()
