"""Operands of backward passes, kept for the growth search: from them any tile of the dense gradient can be computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol
from weakref import WeakValueDictionary

from torch import Tensor


class Operands(Protocol):
    """What one backward pass through a compressed weight was given: the dense gradient, not yet computed."""

    def rows(self) -> Tensor:
        """The rows of the dense gradient that may not be zero, int64 [n]."""

    def put_rows(self, tile: Tensor, start: int, add: bool) -> None:
        """Put the dense gradient's rows from `start` on into `tile` [r, columns], float32 or better, or add them."""

    def among(self, columns: Tensor) -> Operands:
        """The same for the dense gradient of some columns alone, int64 [n]."""

    def in_rows(self, rows: Tensor) -> Operands:
        """The same for the dense gradient of some rows alone, int64 [n]."""


class Listener(Protocol):
    """Someone who wants the operands of backward passes."""

    @property
    def recording(self) -> bool:
        """Whether the backward pass that runs now is of interest."""

    def leave(self, operands: Operands) -> None:
        """Take the operands of the backward pass that runs now."""


_listeners: WeakValueDictionary[int, Listener] = WeakValueDictionary()


def listen(crow: Tensor, listener: Listener) -> None:
    """Let `listener` have the operands of backward passes through the weight whose row pointers are `crow`."""
    address = crow.data_ptr()
    if _listeners.get(address) is not listener:
        _listeners[address] = listener


class Owner(Protocol):
    """What looks after a weight."""

    def settle(self) -> None:
        """See that the index and the values belong together, in place."""


_owners: WeakValueDictionary[int, Owner] = WeakValueDictionary()


def belongs_to(crow: Tensor, owner: Owner) -> None:
    """Note who looks after the weight whose row pointers are `crow`."""
    address = crow.data_ptr()
    if _owners.get(address) is not owner:
        _owners[address] = owner


def settle(crow: Tensor) -> None:
    """Let the weight's owner have a look before it is used: a compiled model runs nothing else of regrow."""
    owner = _owners.get(crow.data_ptr())
    if owner is not None:
        owner.settle()


def tell(crow: Tensor, operands: Callable[[], Operands]) -> None:
    """Leave `operands` with the weight's listener, where there is one that wants them.

    Args:
        crow: row pointers of the weight.
        operands: makes them, of copies: compilers reuse the memory of what a backward pass was given.
    """
    listener = _listeners.get(crow.data_ptr())
    if listener is not None and listener.recording:
        listener.leave(operands())
