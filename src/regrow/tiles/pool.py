"""Pooling of `BatchTiles`, for autograd and in reply to torch's own functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from regrow.ops.backends import POOL, use_kernel
from regrow.ops.pool import (
    Window,
    average_pool,
    average_pool_backward,
    image_means,
    image_means_backward,
    max_pool,
    max_pool_backward,
)
from regrow.ops.tiles import BORDER, Geometry
from regrow.ops.twice import gradients_of
from regrow.tiles.tensor import BatchTiles, buffer_of, plain_of


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: BatchTiles, output: Geometry, window: Window) -> BatchTiles:
        pooled = max_pool(input.buffer, input.geometry, output, window)
        ctx.save_for_backward(input, pooled)
        ctx.geometries, ctx.window = (input.geometry, output), window
        return BatchTiles(pooled, output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        geometry, output = ctx.geometries
        input, pooled = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_again(ctx, F.max_pool2d, gradients[0], plain_of(input, AGAIN)), None, None
        gradient = buffer_of(gradients[0], output, "gradient of max_pool2d")
        buffer = buffer_of(input, geometry, "input of max_pool2d")
        into = max_pool_backward(gradient, buffer, pooled, geometry, output, ctx.window)
        return BatchTiles(into, geometry), None, None


class _AveragePool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: BatchTiles, output: Geometry, window: Window) -> BatchTiles:
        ctx.geometries, ctx.window = (input.geometry, output), window
        return BatchTiles(average_pool(input.buffer, input.geometry, output, window), output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        geometry, output = ctx.geometries
        if torch.is_grad_enabled():
            divided = (ctx.window.count_pad, ctx.window.divisor or None)
            return (
                *_again(ctx, F.avg_pool2d, gradients[0], _zeros(gradients[0], geometry), *divided),
                None,
                None,
            )
        gradient = buffer_of(gradients[0], output, "gradient of avg_pool2d")
        into = average_pool_backward(gradient, geometry, output, ctx.window)
        return BatchTiles(into, geometry), None, None


class _ImageMeans(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: BatchTiles) -> Tensor:
        ctx.geometry = input.geometry
        return image_means(input.buffer, input.geometry)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            images = _zeros(gradients[0], ctx.geometry)
            return gradients_of(lambda x: x.mean((2, 3)), [images], gradients[0])[0]
        return BatchTiles(image_means_backward(gradients[0], ctx.geometry), ctx.geometry)


AGAIN = "second derivative of a pooling"


def _zeros(gradient: Tensor, geometry: Geometry) -> Tensor:
    """Make plain images: where the pooling is linear, they are as good as any."""
    return gradient.new_zeros(geometry.images, gradient.shape[1], geometry.height, geometry.width)


def _again(ctx: Any, pool: Any, gradient: Tensor, images: Tensor, *divided: Any) -> tuple[Tensor, ...]:
    """Find the gradient of the input, to be differentiated again: by torch's own pooling, on plain images."""
    (geometry, output), window = ctx.geometries, ctx.window
    places = (window[0:2], window[2:4], window[4:6])
    ceil_mode = window.output(geometry, False, BORDER) != output

    def pooled(images: Tensor) -> Tensor:
        if not divided:
            found: Tensor = pool(images, *places, ceil_mode=ceil_mode)
        else:
            found = pool(images, *places, ceil_mode, *divided)
        return found

    return gradients_of(pooled, [images], plain_of(gradient, AGAIN))


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    first, *rest = value
    return int(first), int(rest[0] if rest else first)


def _pool(
    function: Any, input: Any, kernel: Any, stride: Any, padding: Any, ceil_mode: bool, *divided: Any
) -> Any:
    """Apply `function`; NotImplemented where torch would refuse the window, or there is no kernel."""
    strides = _pair(kernel if stride is None or stride == [] or stride == () else stride)
    window = Window(*_pair(kernel), *strides, *_pair(padding), *divided)
    if not use_kernel(POOL, input.buffer) or not window.is_allowed():
        return NotImplemented
    output = window.output(input.geometry, ceil_mode, BORDER)
    if min(output.height, output.width) < 1 or len(input) == 0:
        return NotImplemented
    return function.apply(input, output, window)


def max_pool2d(
    input: BatchTiles,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Pool as `torch.nn.functional.max_pool2d` does."""
    if _pair(dilation) != (1, 1) or return_indices:
        return NotImplemented
    return _pool(_MaxPool, input, kernel_size, stride, padding, ceil_mode)


def avg_pool2d(
    input: BatchTiles,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    """Pool as `torch.nn.functional.avg_pool2d` does."""
    if divisor_override is not None and divisor_override < 1:
        return NotImplemented
    divided = (count_include_pad, divisor_override or 0)
    return _pool(_AveragePool, input, kernel_size, stride, padding, ceil_mode, *divided)


def _means(input: BatchTiles) -> Any:
    if not use_kernel(POOL, input.buffer) or input.numel() == 0:
        return NotImplemented
    return _ImageMeans.apply(input)  # type: ignore[no-untyped-call]


def adaptive_avg_pool2d(input: BatchTiles, output_size: Any) -> Any:
    """Pool as `torch.nn.functional.adaptive_avg_pool2d` does, to one pixel."""
    if output_size not in (1, (1, 1), [1, 1]):
        return NotImplemented
    means = _means(input)
    return means if means is NotImplemented else means[:, :, None, None]


def mean(
    input: BatchTiles,
    dim: Any = None,
    keepdim: bool = False,
    *,
    axis: Any = None,
    dtype: torch.dtype | None = None,
) -> Any:
    """Average as `torch.mean` does, over whole images."""
    given = axis if dim is None else dim
    dims = {each % 4 for each in given} if isinstance(given, tuple | list) else None
    if dims != {2, 3} or dtype not in (None, input.dtype):
        return NotImplemented
    means = _means(input)
    return means[:, :, None, None] if keepdim and means is not NotImplemented else means
