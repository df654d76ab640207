"""How backward passes hand their operands to the growth search, which computes the dense gradient from them.

In eager mode a layer gives its weight's `Listener` to the autograd function that calls the kernels, and the function's
context keeps it for the backward pass. Operators registered with torch take tensors alone: they run under
torch.compile, under a dispatch mode and on the reference, and find the `Owner` by the address of the row pointers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol
from weakref import WeakValueDictionary

from torch import Tensor


class Operands(Protocol):
    """What one backward pass through a compressed weight was given: the dense gradient, not yet computed."""

    def rows(self) -> Tensor:
        """Find the rows of the dense gradient that may not be zero, int64 [n]."""

    def put_rows(self, tile: Tensor, start: int, add: bool) -> None:
        """Put the dense gradient's rows from `start` on into `tile` [r, columns], float32 or better, or add them."""

    def among(self, columns: Tensor) -> Operands:
        """Give the operands of some columns of the dense gradient alone, int64 [n]."""

    def in_rows(self, rows: Tensor) -> Operands:
        """Give the operands of some rows of the dense gradient alone, int64 [n]."""


class Listener(Protocol):
    """Someone who wants the operands of backward passes through one weight."""

    @property
    def recording(self) -> bool:
        """Whether the backward pass that runs now is of interest."""

    def leave(self, operands: Operands) -> None:
        """Take operands of the backward pass that runs now."""


def tell(listener: Listener | None, operands: Callable[[], Operands]) -> None:
    """Hand `operands` to the listener, if it wants them.

    Args:
        listener: of the weight; None where nobody asks.
        operands: makes them, of copies: compilers reuse the memory of what a backward pass was given.
    """
    if listener is not None and listener.recording:
        listener.leave(operands())


class Owner(Protocol):
    """What looks after a weight."""

    @property
    def listener(self) -> Listener | None:
        """Who wants the operands of backward passes through it."""

    def settle(self) -> None:
        """See that the index and the values belong together, in place."""


_owners: WeakValueDictionary[int, Owner] = WeakValueDictionary()
"""By the address of the row pointers, which no operator's schema, compiler or cast changes; each forward pass enters
it again, since a model may have moved."""


def belongs_to(crow: Tensor, owner: Owner) -> None:
    """Note who looks after the weight whose row pointers are `crow`, for operators that are registered with torch."""
    address = crow.data_ptr()
    if _owners.get(address) is not owner:
        _owners[address] = owner


def settle(crow: Tensor) -> None:
    """Let the weight's owner have a look before it is used: a compiled model runs nothing else of regrow."""
    owner = _owners.get(crow.data_ptr())
    if owner is not None:
        owner.settle()


def listener_of(crow: Tensor) -> Listener | None:
    """Find who wants the operands of backward passes through the weight whose row pointers are `crow`."""
    owner = _owners.get(crow.data_ptr())
    return None if owner is None else owner.listener
