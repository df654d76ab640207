"""Two-dimensional convolutions with a compressed weight, on batch tiles.

Activations are buffers [T, C, P, 16] as `regrow.ops.tiles` describes them. The kernels (`regrow.ops.native`) do the
work where there are some; elsewhere the reference does, torch's own convolution with the weight made dense.

A weight [out, in, kh, kw] is the matrix [out, in * kh * kw], given by its `values` [capacity, 1] and their index
(`regrow.ops.csr.Csr`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from regrow.ops import flops, twice
from regrow.ops.backends import CONV, use_kernel
from regrow.ops.csr import Csr, positions
from regrow.ops.listener import Listener, tell
from regrow.ops.products import rows_of
from regrow.ops.tiles import Geometry, reborder, tile, untile
from regrow.ops.window import Window, borders


class Correlation(NamedTuple):
    """Operands of a convolution's backward pass."""

    input: Tensor
    """[N, in, H, W]"""
    gradient: Tensor
    """[N, out, H', W']"""
    window: Window
    columns: Tensor | None = None
    """Those that are wanted of the matrix [out, in * kh * kw]; None: all."""

    def rows(self) -> Tensor:
        """See `regrow.ops.listener.Operands`."""
        return rows_of(self.input, self.gradient)

    def put_rows(self, tile: Tensor, start: int, add: bool) -> None:
        """See `regrow.ops.listener.Operands`."""
        weight = tile.new_empty(1).expand(len(tile), self.input.shape[1], *self.window.kernel)
        rows = self.gradient[:, start : start + len(tile)].to(tile.dtype)
        found = _dense_backward(rows, self.input.to(tile.dtype), weight, self.window, (False, True, False))
        matrix = found[1].reshape(len(tile), -1)
        matrix = matrix if self.columns is None else matrix[:, self.columns]
        tile.add_(matrix) if add else tile.copy_(matrix)

    def among(self, columns: Tensor) -> Correlation:
        """See `regrow.ops.listener.Operands`."""
        return self._replace(columns=columns)

    def in_rows(self, rows: Tensor) -> Correlation:
        """See `regrow.ops.listener.Operands`."""
        return self._replace(gradient=self.gradient[:, rows])


def _dense_weight(values: Tensor, index: Csr, channels: int, kernel: Sequence[int]) -> Tensor:
    """Return the weight [out, in, kh, kw], in float32 or better."""
    columns, rows = channels * kernel[0] * kernel[1], len(index.crow) - 1
    exact = torch.promote_types(values.dtype, torch.float32)
    dense = values.new_zeros(rows * columns, dtype=exact)
    dense[positions(index.crow, index.col, columns)] = values[: int(index.crow[-1]), 0].to(exact)
    return dense.view(rows, channels, *kernel)


def _padded(images: Tensor, window: Window) -> Tensor:
    top, bottom, left, right = window.padding
    return F.pad(images, (left, right, top, bottom))


def _dense_backward(
    gradient: Tensor, images: Tensor, weight: Tensor, window: Window, needs: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of images, weight and bias, by torch."""
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        gradient,
        _padded(images, window),
        weight,
        [len(weight)],
        list(window.stride),
        [0, 0],
        list(window.dilation),
        False,
        [0, 0],
        1,
        needs,
    )
    return found


def forward(
    buffer: Tensor,
    geometry: Geometry,
    values: Tensor,
    bias: Tensor | None,
    index: Csr,
    window: Window,
    out_border: int,
    residual: Tensor | None = None,
) -> Tensor:
    """Convolve a buffer [T, in, P, 16]: return a buffer [T, out, P', 16] with `out_border`.

    `residual`, a buffer as the output, is added to it.
    """
    if use_kernel(CONV, values):
        flops.count_conv_kernels()
        border = max(geometry.border, borders(window, geometry)[0])
        output: Tensor = torch.ops.regrow_native.conv_forward.default(
            reborder(buffer, geometry, border),
            *geometry._replace(border=border),
            values,
            bias,
            index.crow,
            index.col,
            *map(list, window),
            out_border,
            residual,
        )
        return output
    weight = _dense_weight(values, index, buffer.shape[1], window.kernel)
    images = _padded(untile(buffer, geometry).to(weight.dtype), window)
    offset = None if bias is None else bias.to(weight.dtype)
    with torch.autocast(buffer.device.type, enabled=False):
        result = F.conv2d(images, weight, offset, tuple(window.stride), 0, tuple(window.dilation))
    output = tile(result.to(buffer.dtype), out_border)
    return output if residual is None else output + residual


def backward(
    gradient: Tensor,
    output: Geometry,
    buffer: Tensor,
    geometry: Geometry,
    values: Tensor,
    index: Csr,
    window: Window,
    needs: Sequence[bool],
    passed: Tensor | None = None,
    listener: Listener | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of buffer [T, in, P, 16], values [capacity, 1] and bias [out]; empty where `needs` is False.

    `output` is the geometry of `gradient`, a buffer [T, out, P', 16], and `geometry` that of `buffer`.
    `passed`, a buffer as the input, is added to the gradient of the input: that of another use.
    The operands are left with `listener`.
    """
    if needs[1]:
        tell(listener, lambda: Correlation(untile(buffer, geometry), untile(gradient, output), window))
    if use_kernel(CONV, values):
        border = max(output.border, borders(window, geometry)[1])
        found: tuple[Tensor, Tensor, Tensor] = torch.ops.regrow_native.conv_backward.default(
            reborder(gradient, output, border),
            border,
            buffer,
            *geometry,
            values,
            index.crow_t,
            index.row_t,
            index.order,
            *map(list, window),
            *needs,
            passed,
        )
        return found
    weight = _dense_weight(values, index, buffer.shape[1], window.kernel)
    images, above = (untile(*tiles).to(weight.dtype) for tiles in ((buffer, geometry), (gradient, output)))
    wide, dense_gradient, bias_gradient = _dense_backward(above, images, weight, window, needs)
    values_gradient = torch.zeros_like(values) if needs[1] else values.new_empty(0, 1)
    if needs[1]:
        active = positions(index.crow, index.col, weight[0].numel())
        values_gradient[: len(active), 0] = dense_gradient.view(-1)[active].to(values.dtype)
    input_gradient = buffer.new_empty(0)
    if needs[0]:
        input_gradient = tile(_unpadded(wide, window, geometry).to(buffer.dtype), geometry.border)
        input_gradient = input_gradient if passed is None else input_gradient + passed
    return (
        input_gradient,
        values_gradient,
        bias_gradient.to(buffer.dtype) if needs[2] else buffer.new_empty(0),
    )


def _unpadded(images: Tensor, window: Window, geometry: Geometry) -> Tensor:
    top, _, left, _ = window.padding
    return images[:, :, top : top + geometry.height, left : left + geometry.width]


def bilinear(
    buffer: Tensor,
    geometry: Geometry,
    out_border: int,
    values: Tensor,
    index: Csr,
    window: Window,
    listener: Listener | None = None,
) -> twice.Bilinear:
    """Describe the convolution of `buffer` without a bias, from buffer to buffer."""
    output = window.output(geometry, out_border)
    some_buffer, some_values = buffer.detach(), values.detach()  # where only the shape is wanted

    def back(gradient: Tensor, buffer: Tensor, values: Tensor, *needs: bool) -> tuple[Tensor, Tensor, Tensor]:
        above = gradient.contiguous()
        return backward(above, output, buffer, geometry, values, index, window, needs, listener=listener)

    return twice.Bilinear(
        lambda x, v: forward(x.contiguous(), geometry, v, None, index, window, out_border),
        lambda g, v: back(g, some_buffer, v, True, False, False)[0],
        lambda g, x: back(g, x.contiguous(), some_values, False, True, False)[1],
        index,
    )
