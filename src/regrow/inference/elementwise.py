"""Sums, products and activations as steps of an inference program."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from regrow.inference.graph import AFFINE, Node, Ref
from regrow.inference.lowering import Lowering, Unsupported, lowers
from regrow.inference.steps import NOWHERE, Map, activation
from regrow.inference.values import Planes, Value, like, merged

OPERATIONS = ("none", "add", "subtract", "multiply", "divide")
DIMENSIONS = 4
"""Of a map."""


def channel_of(value: Value) -> int:
    """Return the dimension that `value` has as channels: that outside of the most pixels."""
    dims = range(value.form.dim())
    usual = 1 if len(dims) == 4 else len(dims) - 1
    found = [(seen.pixels, d == usual, d) for d in dims if (seen := Planes.of(value.form, d)) is not None]
    return max(found)[2] if found else usual


def add_map(
    lowering: Lowering,
    shape: tuple[int, ...],
    x: Value,
    operation: str = "none",
    b: Value | None = None,
    c: Value | None = None,
    act: str | None = None,
    into: Value | None = None,
) -> Value:
    """Add ``act((x operation b) + c)``, what is smaller repeated as torch does; `into` a new value."""
    operands = [x, b, c]
    whole = into or next((each for each in operands if each is not None and each.shape == shape), None)
    if whole is None or not shape:
        raise Unsupported("a sum or product in which no operand has the shape of the result")
    channel = channel_of(whole)
    y = into or like(whole, channel)
    inner = min((d for d in range(len(shape)) if shape[d] != 1), key=lambda d: y.form.stride(d), default=0)
    laid = [None if each is None else _laid(lowering, each, shape, channel, inner) for each in operands]
    first, second, third = laid
    assert first is not None
    size, strides = _dimensions(y, laid)
    lowering.add(
        Map(
            first.place,
            NOWHERE if second is None else second.place,
            NOWHERE if third is None else third.place,
            y.place,
            OPERATIONS.index(operation),
            activation(act),
            size,
            strides[1],
            strides[2],
            strides[3],
            strides[0],
        )
    )
    return y


def _laid(lowering: Lowering, value: Value, shape: tuple[int, ...], channel: int, inner: int) -> Value:
    """Return a value that has neighbours, or one number, along dimension `inner` of `shape`."""
    if not shape or value.form.expand(shape).stride(inner) in (0, 1):
        return value
    own = channel - (len(shape) - len(value.shape))
    return lowering.lay(value, Value.planes(value.shape, max(own, 0)))


def _dimensions(y: Value, operands: Sequence[Value | None]) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Return the sizes, and the strides of y and of the operands, with neighbouring dimensions merged."""
    forms = [y.form, *(None if each is None else each.form.expand(y.shape) for each in operands)]
    strides = [[0] * len(y.shape) if form is None else list(form.stride()) for form in forms]
    dims = [(y.shape[d], [each[d] for each in strides]) for d in range(len(y.shape))]
    dims = merged(sorted(dims, key=lambda d: -d[1][0]))
    if len(dims) > 1:
        (count, outer), (_, within) = dims[-2:]
        last = sum((size - 1) * each[0] for size, each in dims[:-2]) + count * outer[0]
        if all(
            s == (outer[0] if w else 0) and (value is None or not w or _reaches(value, last))
            for s, w, value in zip(outer, within, [y, *operands], strict=True)
        ):  # what lies between the planes is computed too: one long run
            dims = merged([*dims[:-1], (outer[0], within)])
    if len(dims) > DIMENSIONS:
        raise Unsupported("operands that lie in too many ways")
    dims = [(1, [0] * len(strides))] * (DIMENSIONS - len(dims)) + dims
    if dims[-1][1][0] != 1:  # of one number
        dims[-1] = (dims[-1][0], [1, *dims[-1][1][1:]])
    return tuple(size for size, _ in dims), [tuple(each[i] for _, each in dims) for i in range(len(strides))]


def _reaches(value: Value, last: int) -> bool:
    return value.buffer.space <= 0 and value.form.storage_offset() + last <= value.buffer.size


def _operand(lowering: Lowering, argument: Any) -> Value:
    """Return a value, also of a number."""
    if isinstance(argument, Ref) and not isinstance(lowering.sizes.get(argument), int):
        return lowering.value(argument)
    number = lowering.integer(argument) if isinstance(argument, Ref) else argument
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise Unsupported(f"{number!r} is not a number")
    return lowering.read(
        lowering.keep(
            ("number", float(number)), lambda: torch.tensor(float(number), dtype=torch.float32, device="cpu")
        )
    )


NAMES = {"add": "add", "sub": "subtract", "mul": "multiply", "div": "divide"}


@lowers(*(f"aten.{name}.{kind}" for name in NAMES for kind in ("Tensor", "Scalar")))
def binary(lowering: Lowering, node: Node) -> Value:
    """Add, subtract, multiply or divide two values, or a value and a number."""
    x, b = (_operand(lowering, each) for each in node.args[:2])
    operation, shape = NAMES[node.op.split(".")[1]], lowering.shape(node)
    alpha = node.kwargs.get("alpha", node.args[2] if len(node.args) > 2 else 1)
    if alpha == 1:
        return add_map(lowering, shape, x, operation, b)
    factor = -alpha if operation == "subtract" else alpha
    return add_map(lowering, shape, b, "multiply", _operand(lowering, factor), x)


@lowers("aten.rsub.Scalar", "aten.rsub.Tensor", "aten.neg.default")
def subtract_from(lowering: Lowering, node: Node) -> Value:
    """Subtract a value from another, or from a number, or from nothing."""
    if node.kwargs.get("alpha", node.args[2] if len(node.args) > 2 else 1) != 1:
        raise Unsupported("rsub with a factor")
    x = lowering.value(node.args[0])
    other = _operand(lowering, node.args[1] if len(node.args) > 1 else -0.0)
    return add_map(lowering, lowering.shape(node), other, "subtract", x)


@lowers(AFFINE)
def affine(lowering: Lowering, node: Node) -> Value:
    """Scale and shift each channel."""
    x, scale, shift, act = node.args
    value = lowering.value(x)
    ones = [1] * (len(value.shape) - 2)
    b, c = (lowering.value(each) for each in (scale, shift))
    b, c = (Value(each.buffer, each.form.view(-1, *ones)) for each in (b, c))
    return add_map(lowering, value.shape, value, "multiply", b, c, act)


ACTIVATIONS = ("relu", "relu6", "silu", "gelu", "hardswish", "hardsigmoid", "sigmoid", "tanh")
LIMITS = {(0, None): "relu", (0, math.inf): "relu", (0, 6): "relu6"}


@lowers(*(f"aten.{name}.default" for name in (*ACTIVATIONS, "hardtanh", "clamp", "clamp_min")))
def activate(lowering: Lowering, node: Node) -> Value:
    """Add an activation, to the sum before it if nothing else reads that."""
    name = node.op.split(".")[1]
    if name == "gelu" and node.kwargs.get("approximate", "none") != "none":
        raise Unsupported("the approximation of GELU by tanh")
    if name in ("hardtanh", "clamp", "clamp_min"):
        limits = (-1, 1) if name == "hardtanh" else (None, None)
        given = [*node.args[1:], *limits[len(node.args) - 1 :]]
        low, high = (
            node.kwargs.get(key, node.kwargs.get(f"{key}_val", each))
            for key, each in zip(("min", "max"), given, strict=True)
        )
        if (low, high) not in LIMITS:
            raise Unsupported("limits other than those of ReLU and ReLU6")
        name = LIMITS[low, high]
    x = lowering.value(node.args[0])
    last = lowering.program.steps[-1] if lowering.program.steps else None
    if (
        isinstance(last, Map)
        and last.activation == 0
        and lowering.maker == node.args[0]
        and lowering.is_used_once(node.args[0])
    ):
        last.activation = activation(name)
        return x
    return add_map(lowering, lowering.shape(node), x, act=name)
