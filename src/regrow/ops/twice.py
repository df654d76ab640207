"""Derivatives of derivatives: backward passes made of operations that autograd can go through again.

A backward pass that runs with gradients enabled (``create_graph``) takes this way, any other that of the kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Product = Callable[[Tensor, Tensor], Tensor]


class Bilinear(NamedTuple):
    """A layer that is linear in its input and in its values: these three products are each other's derivatives."""

    output: Product
    """Of input and values."""
    of_input: Product
    """The gradient of the input, of the output's gradient and the values."""
    of_values: Product
    """The gradient of the values, of the output's gradient and the input."""
    watched: tuple[Tensor, ...]
    """The topology: autograd sees by it that that has changed."""


class _Output(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, values: Tensor, layer: Bilinear) -> Tensor:
        ctx.save_for_backward(input, values, *layer.watched)
        ctx.layer = layer
        return layer.output(input, values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (input, values, *_), (gradient,), needed = ctx.saved_tensors, gradients, ctx.needs_input_grad
        return (
            of_input(ctx.layer, gradient, values) if needed[0] else None,
            of_values(ctx.layer, gradient, input) if needed[1] else None,
            None,
        )


class _OfInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, values: Tensor, layer: Bilinear) -> Tensor:
        ctx.save_for_backward(gradient, values, *layer.watched)
        ctx.layer = layer
        return layer.of_input(gradient, values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient, values, *_), (direction,), needed = ctx.saved_tensors, gradients, ctx.needs_input_grad
        return (
            output(ctx.layer, direction, values) if needed[0] else None,
            of_values(ctx.layer, gradient, direction) if needed[1] else None,
            None,
        )


class _OfValues(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, input: Tensor, layer: Bilinear) -> Tensor:
        ctx.save_for_backward(gradient, input, *layer.watched)
        ctx.layer = layer
        return layer.of_values(gradient, input)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient, input, *_), (direction,), needed = ctx.saved_tensors, gradients, ctx.needs_input_grad
        return (
            output(ctx.layer, input, direction) if needed[0] else None,
            of_input(ctx.layer, gradient, direction) if needed[1] else None,
            None,
        )


def output(layer: Bilinear, input: Tensor, values: Tensor) -> Tensor:
    """Compute `Bilinear.output`, as often differentiable as is asked for."""
    found: Tensor = _Output.apply(input, values, layer)  # type: ignore[no-untyped-call]
    return found


def of_input(layer: Bilinear, gradient: Tensor, values: Tensor) -> Tensor:
    """Compute `Bilinear.of_input`, likewise."""
    found: Tensor = _OfInput.apply(gradient, values, layer)  # type: ignore[no-untyped-call]
    return found


def of_values(layer: Bilinear, gradient: Tensor, input: Tensor) -> Tensor:
    """Compute `Bilinear.of_values`, likewise."""
    found: Tensor = _OfValues.apply(gradient, input, layer)  # type: ignore[no-untyped-call]
    return found


def gradients_of(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], gradient: Tensor
) -> tuple[Tensor, ...]:
    """Return the gradients of `inputs`, from that of the output of a `function` made of torch's own operations."""
    # views, since the inputs' own hooks are not for this pass
    own = [x.view_as(x) if x.requires_grad else x.detach().requires_grad_() for x in inputs]
    return torch.autograd.grad(function(*own), own, gradient, create_graph=True)
