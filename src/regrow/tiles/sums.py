"""Sums that cost no pass over the data: of a layer's output and a residual, and of the gradients of two readers.

A layer that `regrow.fuse` has marked puts out pending tiles, and the addition that follows has the layer compute them
together with what is added. A layer that can add a gradient to its own tells so, and the gradient of the next reader of
the same tiles waits with it.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from regrow._torch import apply, running_backward, will_run
from regrow.tiles.tensor import BatchTiles, native, to_tiles


def read(tiles: BatchTiles) -> BatchTiles:
    """`tiles`, for one whose gradient joins that of the reader before it.

    Autograd goes from the last reader to the first. One that can add a gradient to its own says so with `is_reader`;
    the gradient of the next one waits with it, and `gradient_left` is where it finds it. So there is no sum to do.
    """
    if tiles.reader is None or tiles.grad_fn is None or not torch.is_grad_enabled():
        return tiles
    (reader, version), tiles.reader = tiles.reader, None
    node = reader()
    if node is None or version != tiles.buffer._version:
        return tiles
    again: BatchTiles = apply(_Again, tiles, node)
    return again


def is_reader(output: BatchTiles, tiles: BatchTiles) -> None:
    """The node that made `output` of `tiles` adds what it finds with `gradient_left` to the gradient of `tiles`."""
    node: Any = output.grad_fn
    if node is not None and tiles.grad_fn is not None:
        node.left = {}
        tiles.reader = weakref.ref(node), tiles.buffer._version  # which has saved `tiles`


def gradient_left(ctx: Any) -> Tensor | None:
    """The gradient that the next reader has left in this backward pass; from now on it leaves none."""
    left, task = getattr(ctx, "left", {}), running_backward()
    found: Tensor | None = left.get(task)
    left[task] = None
    return found


class _Again(torch.autograd.Function):
    """The tensor that another has read: its gradient waits with that reader, where that one is still to come."""

    @staticmethod
    def forward(ctx: Any, tiles: BatchTiles, reader: Any) -> BatchTiles:
        ctx.reader = reader
        ctx.set_materialize_grads(False)
        return BatchTiles(tiles.buffer, tiles.geometry)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None]:
        left, task = ctx.reader.left, running_backward()
        # what waits there has no derivative of its own
        if torch.is_grad_enabled() or task in left or not will_run(ctx.reader):
            return gradients[0], None
        left[task] = gradients[0]
        return None, None


@native(torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__)
def _add(input: Any, other: Any, *, alpha: float = 1) -> Any:
    found = _completed(input, other, alpha)
    return _completed(other, input, alpha) if found is NotImplemented else found


@native(Tensor.add_, Tensor.__iadd__)
def _add_(input: Any, other: Any, *, alpha: float = 1) -> Any:
    return _completed(input, other, alpha)


def _completed(tiles: Any, other: Any, alpha: float) -> Any:
    """Pending tiles, of which only this sum has heard, computed with what is added to them."""
    pending = tiles.pending if isinstance(tiles, BatchTiles) and alpha == 1 else None
    if pending is None or not isinstance(other, Tensor) or pending.grad != torch.is_grad_enabled():
        return NotImplemented
    if other is tiles or other.shape != tiles.shape or other.dtype != tiles.dtype:
        return NotImplemented
    return pending.plus(read(to_tiles(other, tiles.geometry.border, "add")))
