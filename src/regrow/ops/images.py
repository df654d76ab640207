"""Convolutions with a compressed weight as torch operators on plain images: what compilers and exporters see.

Batch tiles stay inside the operators: a graph that held them would ask how many there are, and so about the batch.
The weight is given as in `regrow.ops.conv`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regrow.errors import RegrowRuntimeError
from regrow.ops import flops, twice
from regrow.ops.checks import check_weight
from regrow.ops.conv import backward, bilinear, forward
from regrow.ops.csr import Csr
from regrow.ops.listener import listener_of, settle
from regrow.ops.schema import CSR, WINDOW, unflatten
from regrow.ops.tiles import BORDER, geometry_of, tile, untile
from regrow.ops.window import Window


def _hashable(window: Window) -> Window:
    return Window(*map(tuple, window))


def _check(input: Tensor, values: Tensor, bias: Tensor | None, index: Csr, window: Window) -> None:
    """Refuse operands whose shapes or types do not fit.

    Raises:
        RegrowRuntimeError: naming the operand, what it is and what is allowed.
    """
    for name, length, least in (("kernel", 2, 1), ("stride", 2, 1), ("padding", 4, 0), ("dilation", 2, 1)):
        given = getattr(window, name)
        if len(given) != length or min(given) < least:
            raise RegrowRuntimeError(
                f"`{name}` must be {length} numbers of {least} or more, got {list(given)}"
            )
    check_weight(input, values, bias, index)
    taps = window.kernel[0] * window.kernel[1]
    channels, left = divmod(len(index.crow_t) - 1, taps)
    if left or channels == 0 or len(index.crow) == 1:
        raise RegrowRuntimeError(
            f"`crow_t` must have {taps} taps for each of one or more channels, plus 1, and `crow` an output, "
            f"got {len(index.crow_t)} and {len(index.crow)}"
        )
    if input.dim() != 4 or input.shape[1] != channels:
        raise RegrowRuntimeError(f"`input` must be [N, {channels}, H, W], got {list(input.shape)}")
    if min(window.size(0, input.shape[2]), window.size(1, input.shape[3])) < 1 or 0 in input.shape[2:]:
        raise RegrowRuntimeError(
            f"`input` must be as large as the kernel once it is padded: {tuple(input.shape[2:])} with padding "
            f"{list(window.padding)} is smaller than {window.span(0)} x {window.span(1)}"
        )


@torch.library.custom_op(
    "regrow::sparse_conv2d",
    mutates_args=(),
    schema=f"(Tensor input, Tensor values, Tensor? bias, {CSR}, {WINDOW}) -> Tensor",
)
@unflatten(3, Csr, Window)
def sparse_conv2d(input: Tensor, values: Tensor, bias: Tensor | None, index: Csr, window: Window) -> Tensor:
    """Convolve: input [N, in, H, W] -> [N, out, H', W']."""
    settle(index.crow)
    window, geometry = _hashable(window), geometry_of(input, BORDER)
    _check(input, values, bias, index, window)
    buffer = forward(tile(input), geometry, values, bias, index, window, BORDER)
    return untile(buffer, window.output(geometry))


@sparse_conv2d.register_fake
@unflatten(3, Csr, Window)
def _(input: Tensor, values: Tensor, bias: Tensor | None, index: Csr, window: Window) -> Tensor:
    images, _, height, width = input.shape
    return input.new_empty(images, len(index.crow) - 1, window.size(0, height), window.size(1, width))


@torch.library.custom_op(
    "regrow::sparse_conv2d_backward",
    mutates_args=(),
    schema=f"(Tensor gradient, Tensor input, Tensor values, {CSR}, {WINDOW}, bool[3] needs)"
    " -> (Tensor, Tensor, Tensor)",
)
@unflatten(3, Csr, Window)
def sparse_conv2d_backward(
    gradient: Tensor, input: Tensor, values: Tensor, index: Csr, window: Window, needs: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of input [N, in, H, W], values [capacity, 1] and bias [out]; empty where `needs` is False.

    Opaque to compilers, so that it can hand its operands to a listener.
    """
    window, geometry = _hashable(window), geometry_of(input, BORDER)
    _check(input, values, None, index, window)
    output = window.output(geometry)
    how = (values, index, window, needs, None, listener_of(index.crow))
    into, *rest = backward(tile(gradient), output, tile(input), geometry, *how)
    return (untile(into, geometry) if needs[0] else into, *rest)  # type: ignore[return-value]


@sparse_conv2d_backward.register_fake
@unflatten(3, Csr, Window)
def _(
    gradient: Tensor, input: Tensor, values: Tensor, index: Csr, window: Window, needs: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    need_input, need_values, need_bias = needs
    return (
        input.new_empty(input.shape) if need_input else input.new_empty(0),
        torch.empty_like(values) if need_values else values.new_empty(0, 1),
        input.new_empty(len(index.crow) - 1 if need_bias else 0),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, values, bias, *index = inputs[:8]
    ctx.save_for_backward(input, values, *index)
    ctx.window, ctx.has_bias = _hashable(Window(*inputs[8:])), bias is not None


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    need_input, need_values, need_bias, *_ = ctx.needs_input_grad
    needed = (need_input, need_values, need_bias and ctx.has_bias)
    input, values, *index = ctx.saved_tensors
    if torch.is_grad_enabled():
        return *_differentiable_gradients(ctx, gradient, needed), *[None] * 9
    found = sparse_conv2d_backward(gradient, input, values, *index, *ctx.window, needed)
    return *[g if need else None for g, need in zip(found, needed, strict=True)], *[None] * 9


def _differentiable_gradients(
    ctx: Any, gradient: Tensor, needs: tuple[bool, bool, bool]
) -> tuple[Tensor | None, ...]:
    """Return what `sparse_conv2d_backward` does, but differentiable."""
    input, values, *parts = ctx.saved_tensors
    window, geometry, index = ctx.window, geometry_of(input, BORDER), Csr(*parts)
    listener = listener_of(index.crow)
    inner = bilinear(tile(input.detach()), geometry, BORDER, values, index, window, listener)
    layer = twice.Bilinear(
        lambda x, v: untile(inner.output(tile(x), v), window.output(geometry)),
        lambda g, v: untile(inner.of_input(tile(g), v), geometry),
        lambda g, x: inner.of_values(tile(g), tile(x)),
        inner.watched,
    )
    return (
        twice.of_input(layer, gradient, values) if needs[0] else None,
        twice.of_values(layer, gradient, input) if needs[1] else None,
        gradient.sum((0, 2, 3)) if needs[2] else None,
    )


sparse_conv2d.register_autograd(_gradients, setup_context=_save)
flops.count_conv_operators()
