"""Pooling over batch tiles: maximum, average, and the mean of whole images. The reference is torch's on the images.

Buffers are contiguous float32 or float64. `regrow.tiles.pool` gives these passes to autograd.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from regrow.ops.tiles import Geometry


class Window(NamedTuple):
    """Where torch's pooling looks; `count_pad` and `divisor` (0: the number of pixels) are for averages."""

    kernel_height: int
    kernel_width: int
    stride_height: int
    stride_width: int
    pad_height: int
    pad_width: int
    count_pad: bool = False
    divisor: int = 0

    def is_allowed(self) -> bool:
        """Return whether torch takes it: strides above 0, and padding of at most half a kernel."""
        half = 2 * self.pad_height <= self.kernel_height and 2 * self.pad_width <= self.kernel_width
        return half and min(self[:4]) > 0 and min(self[4:6]) >= 0 and self.divisor >= 0

    def output(self, geometry: Geometry, ceil_mode: bool, border: int) -> Geometry:
        """Return the geometry of what is pooled from images in `geometry`."""
        height = _pooled(geometry.height, *self[0::2][:3], ceil_mode)
        width = _pooled(geometry.width, *self[1::2][:3], ceil_mode)
        return Geometry(geometry.images, height, width, border)


def _pooled(size: int, kernel: int, stride: int, pad: int, ceil_mode: bool) -> int:
    reach = size + 2 * pad - kernel
    steps = -(-reach // stride) if ceil_mode else reach // stride
    # the last window begins in the image or in the padding before it
    return steps if ceil_mode and steps * stride >= size + pad else steps + 1


def max_pool(buffer: Tensor, geometry: Geometry, output: Geometry, window: Window) -> Tensor:
    """Find the greatest value of each window; nan where there is one."""
    found: Tensor = torch.ops.regrow_native.max_pool.default(buffer, *geometry, *output[1:], *window)
    return found


def max_pool_backward(
    gradient: Tensor, buffer: Tensor, pooled: Tensor, geometry: Geometry, output: Geometry, window: Window
) -> Tensor:
    """Return the gradient of the input: to the first pixel of each window that has the greatest value."""
    found: Tensor = torch.ops.regrow_native.max_pool_backward.default(
        gradient, buffer, pooled, *geometry, *output[1:], *window
    )
    return found


def average_pool(buffer: Tensor, geometry: Geometry, output: Geometry, window: Window) -> Tensor:
    """Compute the mean of each window."""
    found: Tensor = torch.ops.regrow_native.average_pool.default(buffer, *geometry, *output[1:], *window)
    return found


def average_pool_backward(gradient: Tensor, geometry: Geometry, output: Geometry, window: Window) -> Tensor:
    """Return the gradient of the input."""
    found: Tensor = torch.ops.regrow_native.average_pool_backward.default(
        gradient, *geometry, *output[1:], *window
    )
    return found


def image_means(buffer: Tensor, geometry: Geometry) -> Tensor:
    """Compute the mean of each image's pixels, [N, C]."""
    found: Tensor = torch.ops.regrow_native.image_means.default(buffer, *geometry)
    return found


def image_means_backward(gradient: Tensor, geometry: Geometry) -> Tensor:
    """Return the buffer of the input's gradient, from that of the means [N, C]."""
    found: Tensor = torch.ops.regrow_native.image_means_backward.default(gradient.contiguous(), *geometry)
    return found
