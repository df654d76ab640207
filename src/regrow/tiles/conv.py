"""Convolution of `BatchTiles` with a compressed weight, for autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regrow._torch import apply
from regrow.ops import twice
from regrow.ops.conv import backward, bilinear, forward
from regrow.ops.csr import Csr
from regrow.ops.listener import Listener
from regrow.ops.tiles import BORDER
from regrow.ops.window import Window
from regrow.tiles.deferred import FusedSum, Reader
from regrow.tiles.sums import mark_reader, read
from regrow.tiles.tensor import BatchTiles, buffer_of


def on_tiles(
    tiles: BatchTiles,
    values: Tensor,
    bias: Tensor | None,
    index: Csr,
    window: Window,
    listener: Listener | None = None,
    later: bool = False,
) -> BatchTiles:
    """Return the convolution of `tiles`; with `later`, it is deferred.

    The backward pass leaves its operands with `listener`.
    """
    given = read(tiles)

    def run(residual: BatchTiles | None, fused_sum: FusedSum | None = None) -> BatchTiles:
        output: BatchTiles = apply(
            _OnTiles, given, values, bias, residual, index, window, listener, fused_sum
        )
        mark_reader(tiles, output)
        return output

    return run(None, FusedSum(run, torch.is_grad_enabled()) if later else None)


class _OnTiles(torch.autograd.Function):
    """`sparse_conv2d` from tiles to tiles, without an operator of Python's on the way; then `residual` is added."""

    @staticmethod
    def forward(
        ctx: Any,
        tiles: BatchTiles,
        values: Tensor,
        bias: Tensor | None,
        residual: BatchTiles | None,
        index: Csr,
        window: Window,
        listener: Listener | None,
        fused_sum: FusedSum | None,
    ) -> BatchTiles:
        ctx.save_for_backward(tiles, values, *index)
        ctx.geometry, ctx.window, ctx.output = tiles.geometry, window, window.output(tiles.geometry)
        ctx.reader, ctx.listener = Reader(ctx), listener
        ctx.set_materialize_grads(False)
        added = None if residual is None else buffer_of(residual, ctx.output, "add")

        def compute() -> Tensor:
            return forward(tiles.buffer, tiles.geometry, values, bias, index, window, BORDER, added)

        if fused_sum is None:
            return BatchTiles(compute(), ctx.output)
        return BatchTiles.deferred(compute, fused_sum, len(index.crow) - 1, tiles.buffer, ctx.output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        gradient, passed = gradients[0], ctx.reader.take()
        if gradient is None:
            return passed, *[None] * 7
        if torch.is_grad_enabled():
            return _differentiable_gradients(ctx, gradient)
        tiles, values, *index = ctx.saved_tensors
        buffer = buffer_of(tiles, ctx.geometry, "input of SparseConv2d")
        above = buffer_of(gradient, ctx.output, "gradient of SparseConv2d")
        more = None if passed is None else buffer_of(passed, ctx.geometry, "gradient of SparseConv2d")
        needs: tuple[bool, bool, bool] = ctx.needs_input_grad[:3]
        how = (values, Csr(*index), ctx.window, needs, more, ctx.listener)
        found = backward(above, ctx.output, buffer, ctx.geometry, *how)
        input_gradient, *rest = [g if need else None for g, need in zip(found, needs, strict=True)]
        into = None if input_gradient is None else BatchTiles(input_gradient, ctx.geometry)
        # itself, so that autograd sees who else has it
        residual = gradient if isinstance(gradient, BatchTiles) else BatchTiles(above, ctx.output)
        return (into, *rest, residual if ctx.needs_input_grad[3] else None, *[None] * 4)


def _differentiable_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Return what `_OnTiles.backward` finds, to be differentiated again."""
    tiles, values, *index = ctx.saved_tensors
    geometry, output, needs = ctx.geometry, ctx.output, ctx.needs_input_grad
    buffer = buffer_of(tiles, geometry, "input of SparseConv2d")
    inner = bilinear(buffer, geometry, BORDER, values, Csr(*index), ctx.window, ctx.listener)

    def above(images: Tensor) -> Tensor:
        return buffer_of(images, output, "gradient of SparseConv2d")

    layer = twice.Bilinear(
        lambda x, v: BatchTiles(inner.output(buffer_of(x, geometry, "SparseConv2d"), v), output),
        lambda g, v: BatchTiles(inner.of_input(above(g), v), geometry),
        lambda g, x: inner.of_values(above(g), buffer_of(x, geometry, "SparseConv2d")),
        inner.watched,
    )
    return (
        twice.of_input(layer, gradient, values) if needs[0] else None,
        twice.of_values(layer, gradient, tiles) if needs[1] else None,
        gradient.sum((0, 2, 3)) if needs[2] else None,
        gradient if needs[3] else None,
        *[None] * 4,
    )
