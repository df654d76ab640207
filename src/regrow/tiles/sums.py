"""Sums that cost no pass over the data: of a layer's output and a residual, and of the gradients of two readers.

What is known of a tensor and of a reader stands in `regrow.tiles.deferred`; here autograd and torch's sums act on it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regrow._torch import apply
from regrow.tiles.deferred import Reader
from regrow.tiles.handlers import element_wise
from regrow.tiles.tensor import BatchTiles, to_tiles


def read(tiles: BatchTiles) -> BatchTiles:
    """Return `tiles` for a layer whose gradient of them joins that of the reader before it.

    A layer that can add a gradient to its own says so with `mark_reader`; the gradient of the next one waits with it
    (`Reader`). So there is no sum to do.
    """
    if tiles.contents.reader is None or tiles.grad_fn is None or not torch.is_grad_enabled():
        return tiles
    reader = tiles.contents.pop_reader()
    if reader is None:
        return tiles
    again: BatchTiles = apply(_Again, tiles, reader)
    return again


def mark_reader(tiles: BatchTiles, output: BatchTiles) -> None:
    """Note that the node of `output`, whose context has a `reader`, has read `tiles` and takes what waits there."""
    node: Any = output.grad_fn
    if node is not None and tiles.grad_fn is not None:
        tiles.contents.mark_read(node.reader)


class _Again(torch.autograd.Function):
    """The tensor that another has read: its gradient waits with that reader, where that one is still to come."""

    @staticmethod
    def forward(ctx: Any, tiles: BatchTiles, before: Reader) -> BatchTiles:
        ctx.before = before
        ctx.set_materialize_grads(False)
        return BatchTiles(tiles.buffer, tiles.geometry)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None]:
        # what waits has no derivative of its own
        if torch.is_grad_enabled() or not ctx.before.leave(gradients[0]):
            return gradients[0], None
        return None, None


def add(func: Any, input: Any, other: Any, **options: Any) -> Any:
    """Add as `torch.add`; a layer whose output is deferred, on either side, does it."""
    found: Any = NotImplemented
    if options.get("alpha", 1) == 1:
        found = _fused(input, other)
        found = _fused(other, input) if found is NotImplemented else found
    return element_wise(func, input, other, **options) if found is NotImplemented else found


def add_(func: Any, input: Any, other: Any, **options: Any) -> Any:
    """Add as `torch.Tensor.add_`; a layer whose output is deferred, on the left, does it."""
    found = _fused(input, other) if options.get("alpha", 1) == 1 else NotImplemented
    return element_wise(func, input, other, **options) if found is NotImplemented else found


def _fused(tiles: Any, other: Any) -> Any:
    """Have the layer of deferred tiles, of which only this sum has heard, compute them with what is added."""
    fused_sum = tiles.contents.fused_sum if isinstance(tiles, BatchTiles) else None
    if fused_sum is None or not isinstance(other, Tensor) or fused_sum.grad != torch.is_grad_enabled():
        return NotImplemented
    if other is tiles or other.shape != tiles.shape or other.dtype != tiles.dtype:
        return NotImplemented
    return fused_sum.plus(read(to_tiles(other, tiles.geometry.border, "add")))
