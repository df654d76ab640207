"""Batch norm of `BatchTiles`, with an addition and ReLU behind it, for autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from regrow._torch import apply
from regrow.ops.backends import NORM, use_kernel
from regrow.ops.norm import Norm, norm_backward, norm_forward
from regrow.ops.twice import gradients_of
from regrow.tiles.deferred import FusedSum, Reader
from regrow.tiles.sums import mark_reader, read
from regrow.tiles.tensor import BatchTiles, buffer_of, plain_of, to_tiles


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: BatchTiles,
        residual: BatchTiles | None,
        weight: Tensor | None,
        bias: Tensor | None,
        norm: Norm,
        fused_sum: FusedSum | None,
    ) -> BatchTiles:
        buffer, geometry = input.buffer, input.geometry
        added = None if residual is None else buffer_of(residual, geometry, "batch_norm")
        statistics: list[Tensor] = []

        def compute() -> Tensor:
            output, *statistics[:] = norm_forward(buffer, geometry, added, weight, bias, norm)
            return output

        if fused_sum is None:
            output = BatchTiles(compute(), geometry)
        else:
            output = BatchTiles.deferred(compute, fused_sum, buffer.shape[1], buffer, geometry)
        ctx.save_for_backward(
            input, output.buffer if norm.relu and residual is not None else None, weight, bias
        )
        ctx.statistics, ctx.geometry, ctx.norm = statistics, geometry, norm
        ctx.added, ctx.reader = residual is not None, Reader(ctx)
        ctx.set_materialize_grads(False)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        gradient, left = gradients[0], ctx.reader.take()
        if gradient is None:
            return left, *[None] * 5
        if torch.is_grad_enabled():
            return _differentiable_gradients(ctx, gradient)
        given = buffer_of(gradient, ctx.geometry, "gradient of batch_norm")
        passed = None if left is None else buffer_of(left, ctx.geometry, "gradient of batch_norm")
        input, gate, weight, bias = ctx.saved_tensors
        buffer = buffer_of(input, ctx.geometry, "input of batch_norm")
        into, residual, into_weight, into_bias = norm_backward(
            given, buffer, ctx.geometry, gate, passed, weight, bias, ctx.statistics, ctx.norm
        )
        if gate is not None or not isinstance(gradient, BatchTiles):
            gradient = BatchTiles(given if gate is None else residual, ctx.geometry)
        return (
            BatchTiles(into, ctx.geometry),
            gradient if ctx.added else None,  # itself where it can be: autograd sees who else has it
            None if weight is None else into_weight,
            None if bias is None else into_bias,
            *[None] * 2,
        )


def _differentiable_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Return what `_Norm.backward` finds, to be differentiated again: by torch's own batch norm, on plain images."""
    input, gate, weight, bias = ctx.saved_tensors
    if gate is not None:  # after the sum
        gradient = torch.ops.aten.threshold_backward(gradient, BatchTiles(gate, ctx.geometry), 0)
    affine = [x for x in (weight, bias) if x is not None]

    def normed(images: Tensor, *affine: Tensor) -> Tensor:
        own = iter(affine)
        scale, offset = (None if x is None else next(own) for x in (weight, bias))
        if ctx.norm.training:
            output = F.batch_norm(images, None, None, scale, offset, True, 0.0, ctx.norm.eps)
        else:
            mean, invstd = (x[:, None, None] for x in ctx.statistics)
            output = (images - mean) * invstd
            output = output if scale is None else output * scale[:, None, None]
            output = output if offset is None else output + offset[:, None, None]
        return F.relu(output) if ctx.norm.relu and gate is None else output

    operation = "second derivative of batch_norm"
    images, above = (plain_of(x, operation) for x in (input, gradient))
    into, *rest = gradients_of(normed, [images, *affine], above)
    found = iter(rest)
    of_affine = [None if x is None else next(found) for x in (weight, bias)]
    return (into, gradient if ctx.added else None, *of_affine, *[None] * 2)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    relu: bool = False,
    later: bool = False,
) -> Any:
    """Normalize tiles as `torch.nn.functional.batch_norm` does, then add `residual` (tiles or plain), then
    apply ReLU.

    With `later`, the output is deferred: what is added to it comes before the ReLU.

    Returns:
        Tiles, or NotImplemented where there is no kernel.
    """
    others = (weight, bias, running_mean, running_var, residual)
    if not isinstance(input, BatchTiles) or not use_kernel(NORM, input.buffer, *others):
        return NotImplemented
    if input.numel() <= input.shape[1]:  # nothing, or one value to a channel, which torch refuses in training
        return NotImplemented
    if residual is not None:
        if residual.shape != input.shape:  # plain tensors broadcast
            return NotImplemented
        residual = read(to_tiles(residual, input.geometry.border, "batch_norm"))
    given = read(input)

    def run(residual: BatchTiles | None, relu: bool, fused_sum: FusedSum | None = None) -> BatchTiles:
        norm = Norm(running_mean, running_var, training, momentum, eps, relu)
        output: BatchTiles = apply(_Norm, given, residual, weight, bias, norm, fused_sum)
        mark_reader(input, output)
        return output

    def plus(added: BatchTiles) -> BatchTiles:
        output = run(added, relu)
        if relu:
            output.contents.mark_rectified()
        return output

    return run(None, False, FusedSum(plus, torch.is_grad_enabled())) if later else run(residual, relu)
