"""What is known of the buffer behind a tensor in batch tiles: computed or not, rectified or not, and who has read it.

Each of the three saves a pass over the data. A layer that only an addition follows waits for what is added, and writes
the sum at once. A ReLU behind a layer that has done its work returns its input. The gradients of two readers of one
tensor are added where the backward pass of one of them writes its own.

The states of a buffer (`Contents.state`), and what leads from one to the next::

       a layer that an                                  any other
       addition follows                                   layer
              |                                             |
              v             the buffer is asked for         v
          DEFERRED ---------------------------------->  COMPUTED <-----+
              :                                             |          |
              :                            `mark_rectified` |          | written to
              : added to: the layer                         v          |
              : computes the sum,                       RECTIFIED -----+
              v which is another tensor

The states of a `Reader` in one backward pass; autograd goes from the last reader of a tensor to the first::

            `leave`: the gradient of the next reader waits
       OPEN ----------------------------------------------> HOLDING
         |                                                     |
         | `take`: the node runs                               | `take`: the node runs, and adds it to its own
         +-------------------------> CLOSED <------------------+
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regrow._torch import running_backward, will_run


class State(Enum):
    """What has become of a buffer."""

    DEFERRED = "deferred"
    """Not computed: the caller only adds something to it, of which `regrow.fuse` makes sure."""
    COMPUTED = "computed"
    """Holds what the tensor shows."""
    RECTIFIED = "rectified"
    """Computed, the ReLU that comes next included; only that ReLU may be given the tensor."""


class FusedSum(NamedTuple):
    """A layer's way to compute its output and the addition that follows in one pass."""

    plus: Callable[[Any], Any]
    """Takes the tiles that are added, and returns those of the sum, as part of the graph."""
    grad: bool
    """Whether gradients were enabled where the layer was called."""


class Contents:
    """The buffer of one tensor, and what is known of it.

    Args:
        buffer: [T, C, P, 16]; None where it is deferred.
        compute: computes a deferred buffer as it is.
        fused_sum: computes it with what is added to it.

    Attributes:
        reader: the last reader of the buffer, until `pop_reader`.
    """

    __slots__ = ("_compute", "_read_version", "_rectified_version", "buffer", "fused_sum", "reader")

    def __init__(
        self,
        buffer: Tensor | None,
        compute: Callable[[], Tensor] | None = None,
        fused_sum: FusedSum | None = None,
    ) -> None:
        self.buffer, self._compute, self.fused_sum = buffer, compute, fused_sum
        self._rectified_version: int | None = None
        self.reader: Reader | None = None

    @property
    def state(self) -> State:
        """What has become of the buffer; to ask changes nothing."""
        if self.buffer is None:
            return State.DEFERRED
        rectified = self._rectified_version is not None and self._rectified_version == self.buffer._version
        return State.RECTIFIED if rectified else State.COMPUTED

    def computed(self) -> Tensor:
        """Return the buffer; a deferred one is computed as it is, once."""
        if self.buffer is None:
            assert self._compute is not None
            with torch.no_grad():
                self.buffer = self._compute()
            self._compute = self.fused_sum = None
        return self.buffer

    def mark_rectified(self) -> None:
        """Note that a ReLU to come is done, until something else is written to the buffer."""
        buffer = self.computed()
        self._rectified_version = None if buffer.is_inference() else buffer._version

    def mark_read(self, reader: Reader) -> None:
        """Note that `reader` is the last to have read the buffer, as it is now."""
        self.reader, self._read_version = reader, self.computed()._version

    def pop_reader(self) -> Reader | None:
        """Forget the last reader and return it, unless its node is gone or the buffer was written to since."""
        reader, self.reader = self.reader, None
        if reader is None or reader.node() is None or self._read_version != self.computed()._version:
            return None
        return reader


class Reader:
    """An autograd node that adds the gradient of the next reader of its input to its own.

    Args:
        node: the node, which holds this object; that is why it is held weakly here.
    """

    __slots__ = ("_left", "node")

    def __init__(self, node: Any) -> None:
        self.node: Callable[[], Any] = weakref.ref(node)
        self._left: dict[int, Tensor | None] = {}  # by backward pass; absent: OPEN, None: CLOSED

    def leave(self, gradient: Tensor | None) -> bool:
        """Let `gradient` wait for the node, where that is OPEN and will run in this backward pass.

        Returns:
            Whether it waits.
        """
        task, node = running_backward(), self.node()
        if node is None or task in self._left or not will_run(node):
            return False
        self._left[task] = gradient
        return True

    def take(self) -> Tensor | None:
        """Return the gradient that waits in this backward pass, and leave the node CLOSED."""
        task = running_backward()
        found, self._left[task] = self._left.get(task), None
        return found
