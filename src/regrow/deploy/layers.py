"""Convolutions and linear layers as steps of an inference program, and which kernel does each."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from regrow.deploy import steps
from regrow.deploy.bundles import MOST, bundle
from regrow.deploy.graph import CONV, LINEAR, Connections, Node, Ref
from regrow.deploy.lowering import Lowering, Unsupported, lowers
from regrow.deploy.packing import pack, taps, window_of
from regrow.deploy.rounding import Rounding
from regrow.deploy.steps import NOWHERE, Window
from regrow.deploy.values import Planes, Value

DENSE = 0.6
"""The density from which on the kernel of dense weights is the faster one."""
SLACK = 128
"""Bytes that the kernel in int8 reads behind its copies of the input."""
NO_IMAGE = Planes(1, 1, 1, 0, 1)


@lowers(CONV)
def conv(lowering: Lowering, node: Node) -> Value:
    """Add a convolution of images in planes."""
    x, weight, bias, stride, padding, dilation, groups, residual, activation = node.args
    wanted = lowering.shape(node)
    if len(wanted) != 4:
        raise Unsupported("a convolution of other than [N, C, H, W]")
    weights = lowering.weight(weight)
    x, seen = lowering.in_planes(lowering.value(x), 1)
    kernel = (weights.shape[2], weights.shape[3])
    rounding = Rounding.of(node)
    window = window_of(
        x.shape[2:],
        wanted[2:],
        kernel,
        tuple(stride),
        tuple(padding),
        tuple(dilation),
        weights.shape[1],
        4 if rounding is None else 1,
    )
    y = Value.planes(wanted, 1)
    _add(lowering, weight, bias, groups, window, (x, seen), y, 1, residual, activation, rounding)
    return y


@lowers(LINEAR)
def linear(lowering: Lowering, node: Node) -> Value:
    """Add a linear layer: of one vector, or of many, which are the pixels of a convolution of 1 x 1."""
    x, weight, bias, residual, activation = node.args
    wanted, weights = lowering.shape(node), lowering.weight(weight)
    source = lowering.value(x)
    rounding = Rounding.of(node)
    if torch.Size(wanted[:-1]).numel() == 1 and isinstance(weights, Connections) and rounding is None:
        return _vector(lowering, source, weight, bias, wanted, residual, activation)
    x, seen = lowering.in_planes(source, -1)
    y = Value.planes(wanted, -1)
    if seen.pixels == 1 and seen.images > 1:  # vectors one after another
        x = lowering.copy(source, Value.planes(source.shape, -1))
        found = Planes.of(x.form, -1)
        assert found is not None
        seen = found
    image, one = (1, seen.pixels), (1, 1)
    window = window_of(image, image, one, one, (0, 0), one, weights.shape[1], 4 if rounding is None else 1)
    _add(lowering, weight, bias, 1, window, (x, seen), y, -1, residual, activation, rounding)
    return y


def _add(
    lowering: Lowering,
    name: Ref,
    bias: Ref | None,
    groups: int,
    window: Window,
    source: tuple[Value, Planes],
    y: Value,
    channel: int,
    residual: Ref | None,
    activation: str | None,
    rounding: Rounding | None,
) -> None:
    """Add a convolution into `y`, by connections, in float32 or int8, or by a dense weight."""
    weight = lowering.weight(name)
    x, seen = source
    made = Planes.of(y.form, channel)
    assert made is not None
    added, beside = NOWHERE, NO_IMAGE
    if residual is not None:
        other = lowering.value(residual)
        if other.shape != y.shape:
            raise Unsupported("a sum of different shapes behind it")
        other, found = lowering.in_planes(other, channel)
        if found.images != made.images or found.pixels != made.pixels:
            other = lowering.copy(other, Value.planes(y.shape, channel))
            again = Planes.of(other.form, channel)
            assert again is not None
            found = again
        added, beside = other.place, found
    if made.pixels != window.out_height * window.out_width or made.images != seen.images:
        raise Unsupported("its images are laid out otherwise than its output")
    density = weight.density if isinstance(weight, Connections) else 1.0
    channels = weight.shape[1]
    numbers = (seen.image, seen.plane, made.image, made.plane, beside.image, beside.plane, seen.images)
    offset = lowering.program.constant(lowering.constant(bias))
    if rounding is not None:
        if not isinstance(weight, Connections) or weight.values.dtype != torch.int8:
            raise Unsupported("its input is to be rounded, its weight is not in int8")
        if int(weight.crow.diff().max()) > MOST:
            raise Unsupported("more connections of one row than sums of 32 bits allow")
        pixels = window.height * window.width
        lowering.need_scratch(-(-(channels * window.channel + SLACK + pixels) // 4))
        key = ("bundles", name, window, rounding)
        bundled = lowering.keep(key, partial(bundle, weight, groups, window, rounding))
        constant = lowering.program.constant
        lowering.add(
            steps.Int8(
                x.place,
                y.place,
                added,
                *numbers,
                groups,
                channels,
                weight.shape[0] // groups,
                constant(bundled.start),
                constant(bundled.order),
                constant(bundled.bundle),
                constant(bundled.pairs),
                constant(bundled.parts),
                constant(bundled.correction),
                constant(bundled.scale),
                offset,
                steps.activation(activation),
                constant(bundled.inverse),
                rounding.signed,
                bundled.reach,
                window,
            )
        )
        return
    lowering.need_scratch(channels * window.channel)
    if density >= DENSE and groups == 1:
        key = ("dense", name, window, seen.plane)
        reads, reach = lowering.keep(key, partial(_reads, weight, window, seen.plane))
        values = lowering.keep(("values", name), lambda: _dense(weight).flatten(1).contiguous())
        lowering.add(
            steps.Dense(
                x.place,
                y.place,
                added,
                *numbers,
                channels,
                weight.shape[0],
                values.shape[1],
                lowering.program.constant(reads),
                lowering.program.constant(values),
                offset,
                steps.activation(activation),
                reach,
                window,
            )
        )
        return
    connections = weight if isinstance(weight, Connections) else Connections.of_dense(weight)
    key = ("connections", name, window, seen.plane, lowering.run)
    found = lowering.keep(key, partial(pack, connections, groups, window, seen.plane, lowering.run))
    lowering.add(
        steps.Conv(
            x.place,
            y.place,
            added,
            *numbers,
            groups,
            channels,
            weight.shape[0] // groups,
            found.blocks,
            lowering.program.constant(found.start),
            lowering.program.constant(found.order),
            lowering.program.constant(found.connections),
            lowering.program.constant(found.parts),
            offset,
            steps.activation(activation),
            found.reach,
            window,
        )
    )


def _vector(
    lowering: Lowering,
    x: Value,
    name: Ref,
    bias: Ref | None,
    wanted: tuple[int, ...],
    residual: Ref | None,
    activation: str | None,
) -> Value:
    """Add a linear layer of one vector."""
    weight = lowering.weight(name)
    assert isinstance(weight, Connections)
    x = _packed(lowering, x)
    added = NOWHERE if residual is None else _packed(lowering, lowering.value(residual)).place
    y = Value.contiguous(wanted)
    constant = lowering.program.constant
    lowering.add(
        steps.Vector(
            x.place,
            y.place,
            added,
            weight.shape[0],
            weight.columns,
            constant(weight.crow),
            constant(weight.col),
            constant(weight.values),
            0,
            constant(weight.scale),
            constant(lowering.constant(bias)),
            steps.activation(activation),
        )
    )
    return y


def _packed(lowering: Lowering, value: Value) -> Value:
    """Return a value whose elements follow one another."""
    if value.form.is_contiguous():
        return value
    return lowering.copy(value, Value.contiguous(value.shape))


def _dense(weight: Tensor | Connections) -> Tensor:
    return weight.dense() if isinstance(weight, Connections) else weight.float()


def _reads(weight: Tensor | Connections, window: Window, plane: int) -> tuple[Tensor, int]:
    """Return where each tap of a dense weight begins, and what is read of the input."""
    channels = weight.shape[1]
    taps_of_channel = window.kernel[0] * window.kernel[1]
    found = np.arange(channels)[:, None] * (window.channel or plane) + taps(window)[:taps_of_channel]
    if found.max() >= 2**31:
        raise OverflowError("the input of one image is too large for 32-bit offsets")
    return torch.from_numpy(found.reshape(-1).astype(np.int32)), int(found.max()) + 1
