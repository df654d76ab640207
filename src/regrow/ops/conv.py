"""Two-dimensional convolutions with a compressed weight, as torch operators on batch tiles.

Activations are buffers [T, C, P, 16] as `regrow.ops.tiles` describes them. The kernels (`regrow.ops.native`) do the
work where there are some; elsewhere the reference does, torch's own convolution with the weight made dense.

A weight [out, in, kh, kw] is the matrix [out, in * kh * kw], given by `values`, `crow`, `col`, `crow_t`, `row_t` and
`order` as in `regrow.ops.linear`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from regrow.errors import RegrowRuntimeError
from regrow.ops import flops, index, native, twice
from regrow.ops.listener import tell
from regrow.ops.tiles import TILE, Geometry, reborder, tile, untile
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


def _dense_weight(values: Tensor, crow: Tensor, col: Tensor, channels: int, kernel: Sequence[int]) -> Tensor:
    """The weight [out, in, kh, kw], in float32 or better."""
    columns, rows = channels * kernel[0] * kernel[1], len(crow) - 1
    exact = torch.promote_types(values.dtype, torch.float32)
    dense = values.new_zeros(rows * columns, dtype=exact)
    dense[index.positions(crow, col, columns)] = values[: int(crow[-1]), 0].to(exact)
    return dense.view(rows, channels, *kernel)


def _padded(images: Tensor, window: Window) -> Tensor:
    top, bottom, left, right = window.padding
    return F.pad(images, (left, right, top, bottom))


def _dense_backward(
    gradient: Tensor, images: Tensor, weight: Tensor, window: Window, needs: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of images, weight and bias, by torch."""
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
    crow: Tensor,
    col: Tensor,
    window: Window,
    out_border: int,
    residual: Tensor | None = None,
) -> Tensor:
    """`sparse_conv2d` without the operator around it, for those who differentiate it themselves.

    `residual`, a buffer as the output, is added to it.
    """
    if native.serves(values):
        flops.count_conv_kernels()
        border = max(geometry.border, borders(window, geometry)[0])
        output: Tensor = torch.ops.regrow_native.conv_forward.default(
            reborder(buffer, geometry, border),
            *geometry._replace(border=border),
            values,
            bias,
            crow,
            col,
            *map(list, window),
            out_border,
            residual,
        )
        return output
    weight = _dense_weight(values, crow, col, buffer.shape[1], window.kernel)
    images = _padded(untile(buffer, geometry).to(weight.dtype), window)
    offset = None if bias is None else bias.to(weight.dtype)
    with torch.autocast(buffer.device.type, enabled=False):
        result = F.conv2d(images, weight, offset, tuple(window.stride), 0, tuple(window.dilation))
    output = tile(result.to(buffer.dtype), out_border)
    return output if residual is None else output + residual


def backward(
    gradient: Tensor,
    out_border: int,
    buffer: Tensor,
    geometry: Geometry,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    crow_t: Tensor,
    row_t: Tensor,
    order: Tensor,
    window: Window,
    need_input: bool,
    need_values: bool,
    need_bias: bool,
    passed: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`sparse_conv2d_backward` without the operator around it.

    `passed`, a buffer as the input, is added to the gradient of the input: that of another use.
    """
    output = window.output(geometry, out_border)
    if need_values:
        tell(crow, lambda: Correlation(untile(buffer, geometry), untile(gradient, output), window))
    if native.serves(values):
        border = max(out_border, borders(window, geometry)[1])
        found: tuple[Tensor, Tensor, Tensor] = torch.ops.regrow_native.conv_backward.default(
            reborder(gradient, output, border),
            border,
            buffer,
            *geometry,
            values,
            crow_t,
            row_t,
            order,
            *map(list, window),
            need_input,
            need_values,
            need_bias,
            passed,
        )
        return found
    weight = _dense_weight(values, crow, col, buffer.shape[1], window.kernel)
    images, above = (untile(*tiles).to(weight.dtype) for tiles in ((buffer, geometry), (gradient, output)))
    needs = (need_input, need_values, need_bias)
    wide, dense_gradient, bias_gradient = _dense_backward(above, images, weight, window, needs)
    values_gradient = torch.zeros_like(values) if need_values else values.new_empty(0, 1)
    if need_values:
        positions = index.positions(crow, col, weight[0].numel())
        values_gradient[: len(positions), 0] = dense_gradient.view(-1)[positions].to(values.dtype)
    input_gradient = buffer.new_empty(0)
    if need_input:
        input_gradient = tile(_unpadded(wide, window, geometry).to(buffer.dtype), geometry.border)
        input_gradient = input_gradient if passed is None else input_gradient + passed
    return (
        input_gradient,
        values_gradient,
        bias_gradient.to(buffer.dtype) if need_bias else buffer.new_empty(0),
    )


def _check(buffer: Tensor, kernel: Sequence[int], crow_t: Tensor) -> None:
    """Refuse activations whose channels are not those of the weight."""
    channels = (len(crow_t) - 1) // (kernel[0] * kernel[1])
    if buffer.dim() != 4 or buffer.shape[1] != channels:
        raise RegrowRuntimeError(f"`buffer` must be [T, {channels}, P, 16], got {list(buffer.shape)}")


def _unpadded(images: Tensor, window: Window, geometry: Geometry) -> Tensor:
    top, _, left, _ = window.padding
    return images[:, :, top : top + geometry.height, left : left + geometry.width]


@torch.library.custom_op("regrow::sparse_conv2d", mutates_args=())
def sparse_conv2d(
    buffer: Tensor,
    images: int,
    height: int,
    width: int,
    border: int,
    values: Tensor,
    bias: Tensor | None,
    crow: Tensor,
    col: Tensor,
    crow_t: Tensor,
    row_t: Tensor,
    order: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    out_border: int,
) -> Tensor:
    """A convolution: buffer [T, in, P, 16] of images in `Geometry` -> buffer [T, out, P', 16] with `out_border`.

    `kernel`, `stride`, `padding` and `dilation` are those of a `Window`; index as in the module's docstring.
    """
    _check(buffer, kernel, crow_t)
    window = Window(*map(tuple, (kernel, stride, padding, dilation)))
    geometry = Geometry(images, height, width, border)
    return forward(buffer, geometry, values, bias, crow, col, window, out_border)


@sparse_conv2d.register_fake
def _(
    buffer: Tensor,
    images: int,
    height: int,
    width: int,
    border: int,
    values: Tensor,
    bias: Tensor | None,
    crow: Tensor,
    col: Tensor,
    crow_t: Tensor,
    row_t: Tensor,
    order: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    out_border: int,
) -> Tensor:
    window = Window(kernel, stride, padding, dilation)
    output = window.output(Geometry(images, height, width, border), out_border)
    return buffer.new_empty(buffer.shape[0], len(crow) - 1, output.plane, TILE)


@torch.library.custom_op("regrow::sparse_conv2d_backward", mutates_args=())
def sparse_conv2d_backward(
    gradient: Tensor,
    out_border: int,
    buffer: Tensor,
    images: int,
    height: int,
    width: int,
    border: int,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    crow_t: Tensor,
    row_t: Tensor,
    order: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    need_input: bool,
    need_values: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of buffer [T, in, P, 16], values [capacity, 1] and bias [out], empty where not needed.

    Opaque to compilers, so that it can hand its operands to a listener.
    """
    _check(buffer, kernel, crow_t)
    window = Window(*map(tuple, (kernel, stride, padding, dilation)))
    geometry = Geometry(images, height, width, border)
    index_ = (crow, col, crow_t, row_t, order)
    needs = (need_input, need_values, need_bias)
    return backward(gradient.contiguous(), out_border, buffer, geometry, values, *index_, window, *needs)


@sparse_conv2d_backward.register_fake
def _(
    gradient: Tensor,
    out_border: int,
    buffer: Tensor,
    images: int,
    height: int,
    width: int,
    border: int,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    crow_t: Tensor,
    row_t: Tensor,
    order: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    need_input: bool,
    need_values: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(buffer) if need_input else buffer.new_empty(0),
        torch.empty_like(values) if need_values else values.new_empty(0, 1),
        buffer.new_empty(len(crow) - 1 if need_bias else 0),
    )


def bilinear(
    buffer: Tensor,
    geometry: Geometry,
    out_border: int,
    values: Tensor,
    index_: tuple[Tensor, ...],
    window: Window,
) -> twice.Bilinear:
    """The convolution of `buffer` without a bias, from buffer to buffer."""
    crow, col, crow_t, row_t, order = index_
    some_buffer, some_values = buffer.detach(), values.detach()  # where only the shape is wanted

    def back(gradient: Tensor, buffer: Tensor, values: Tensor, *needs: bool) -> tuple[Tensor, Tensor, Tensor]:
        rest = (values, crow, col, crow_t, row_t, order, window, *needs)
        return backward(gradient.contiguous(), out_border, buffer, geometry, *rest)  # type: ignore[arg-type]

    return twice.Bilinear(
        lambda x, v: forward(x.contiguous(), geometry, v, None, crow, col, window, out_border),
        lambda g, v: back(g, some_buffer, v, True, False, False)[0],
        lambda g, x: back(g, x.contiguous(), some_values, False, True, False)[1],
        crow,
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    buffer, *geometry, values, bias, crow, col, crow_t, row_t, order = inputs[:12]
    ctx.save_for_backward(buffer, values, crow, col, crow_t, row_t, order)
    ctx.geometry, ctx.window, ctx.out_border = geometry, inputs[12:16], inputs[16]
    ctx.has_bias = bias is not None


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    needed = (ctx.needs_input_grad[0], ctx.needs_input_grad[5], ctx.needs_input_grad[6] and ctx.has_bias)
    buffer, values, *index_ = ctx.saved_tensors
    found: tuple[Tensor | None, ...]
    if torch.is_grad_enabled():
        geometry, window = Geometry(*ctx.geometry), Window(*map(tuple, ctx.window))
        layer = bilinear(buffer, geometry, ctx.out_border, values, tuple(index_), window)
        found = (
            twice.of_input(layer, gradient, values) if needed[0] else None,
            twice.of_values(layer, gradient, buffer) if needed[1] else None,
            gradient.sum((0, 2, 3)) if needed[2] else None,
        )
    else:
        found = sparse_conv2d_backward(
            gradient, ctx.out_border, buffer, *ctx.geometry, values, *index_, *ctx.window, *needed
        )
    input_gradient, *rest = (g if need else None for g, need in zip(found, needed, strict=True))
    return (input_gradient, *[None] * 4, *rest, *[None] * 10)


sparse_conv2d.register_autograd(_gradients, setup_context=_save)
flops.count_conv_operators()
