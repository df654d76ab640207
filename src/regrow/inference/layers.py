"""Convolutions and linear layers as steps of an inference program, and which kernel does each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from regrow.inference import steps
from regrow.inference.bundles import MOST, bundle
from regrow.inference.graph import CONV, LINEAR, Connections, Node, Ref
from regrow.inference.lowering import Lowering, Unsupported, lowers
from regrow.inference.packing import pack, taps, window_of
from regrow.inference.rounding import Rounding
from regrow.inference.steps import NOWHERE, Buffer, Window
from regrow.inference.values import Planes, Value

DENSE = 0.6
"""The density from which on the kernel of dense weights is the faster one."""
DENSE_VECTOR = 0.4
"""The same for one vector."""
TOGETHER = 6
"""Outputs of a dense weight that the kernel computes together."""
SLACK = 128
"""Bytes behind its copies of the input, and behind the pixels of a channel, that the kernel of int8 may use."""
NO_IMAGE = Planes(1, 1, 1, 0, 1)


@lowers(CONV)
def conv(lowering: Lowering, node: Node) -> Value:
    """Add a convolution of images in planes."""
    x, weight, bias, stride, padding, dilation, groups, residual, activation = node.args
    wanted, rounding = lowering.shape(node), Rounding.of(node)
    if len(wanted) != 4:
        raise Unsupported("a convolution of other than [N, C, H, W]")
    weights, source = lowering.weight(weight), lowering.value(x)
    if source.shape[2:] == wanted[2:] == (1, 1) and tuple(weights.shape[2:]) == (1, 1) and groups == 1:
        vectors = Value(source.buffer, source.form.flatten(1))
        added = None if residual is None else lowering.value(residual)
        added = added and Value(added.buffer, added.form.flatten(1))
        y = _linear(lowering, vectors, weight, bias, wanted[:2], added, activation, rounding)
        return Value(y.buffer, y.form[:, :, None, None])
    (height, width), kernel = source.shape[2:], (weights.shape[2], weights.shape[3])
    window = window_of(
        (height, width),
        (wanted[2], wanted[3]),
        kernel,
        tuple(stride),
        _first(padding),
        tuple(dilation),
        weights.shape[1],
        _size(rounding),
    )
    planes = lowering.in_planes(source, 1, pixels=height * width, slack=not window.channel)
    y = Value.planes(wanted, 1, wide=True)
    added = _optional(lowering, residual)
    _add(lowering, weight, bias, groups, window, planes, y, 1, added, activation, rounding)
    return y


@lowers(LINEAR)
def linear(lowering: Lowering, node: Node) -> Value:
    """Add a linear layer: of one vector, or of many, which are the pixels of a convolution of 1 x 1."""
    x, weight, bias, residual, activation = node.args
    wanted, added = lowering.shape(node), _optional(lowering, residual)
    return _linear(lowering, lowering.value(x), weight, bias, wanted, added, activation, Rounding.of(node))


def _linear(
    lowering: Lowering,
    x: Value,
    name: Ref,
    bias: Ref | None,
    wanted: tuple[int, ...],
    residual: Value | None,
    activation: str | None,
    rounding: Rounding | None,
) -> Value:
    """Add a linear layer."""
    if torch.Size(wanted[:-1]).numel() == 1 and rounding is None:
        return _vector(lowering, x, name, bias, wanted, residual, activation)
    source, seen = lowering.in_planes(x, -1)
    if seen.pixels == 1 and seen.images > 1:  # vectors one after another
        source, seen = lowering.laid_in_planes(x, -1)
    y = Value.planes(wanted, -1, pixels=seen.pixels, wide=True)
    image, one, channels = (1, seen.pixels), (1, 1), lowering.weight(name).shape[1]
    window = window_of(image, image, one, one, (0, 0), one, channels, _size(rounding))
    _add(lowering, name, bias, 1, window, (source, seen), y, -1, residual, activation, rounding)
    return y


def _first(padding: Sequence[int]) -> tuple[int, int]:
    """Return the padding above and to the left: what is below and to the right follows from the output's size."""
    return (padding[0], padding[2]) if len(padding) == 4 else (padding[0], padding[1])


def _size(rounding: Rounding | None) -> int:
    """Return the bytes of one element of what a kernel reads."""
    return 4 if rounding is None else 1


def _optional(lowering: Lowering, argument: Ref | None) -> Value | None:
    return None if argument is None else lowering.value(argument)


def _add(
    lowering: Lowering,
    name: Ref,
    bias: Ref | None,
    groups: int,
    window: Window,
    source: tuple[Value, Planes],
    y: Value,
    channel: int,
    residual: Value | None,
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
        if residual.shape != y.shape:
            raise Unsupported("a sum of different shapes behind it")
        other, found = residual, Planes.of(residual.form, channel)
        if found is None or found.pixels != made.pixels or other.buffer.space:
            other, found = lowering.lay(residual, Value(Buffer(y.buffer.size), y.form)), made
        added, beside = other.place, found
    if made.pixels != window.out_height * window.out_width or made.images != seen.images:
        raise Unsupported("its images are laid out otherwise than its output")
    density = weight.density if isinstance(weight, Connections) else 1.0
    channels = weight.shape[1]
    numbers = (seen.image, seen.plane, made.image, made.plane, beside.image, beside.plane, seen.images)
    offset = lowering.program.constant(lowering.constant(bias))
    if rounding is not None:
        if not isinstance(weight, Connections) or weight.values.dtype != torch.int8:
            raise Unsupported("its input is rounded, its weight is not in int8")
        if weight.crow.diff().max() > MOST:
            raise Unsupported("sums of so many connections need more than 32 bits")
        rounded = ("bundles", name, window, rounding)
        bundled = lowering.keep(rounded, partial(bundle, weight, groups, window, rounding))
        bytes_held = channels * window.channel + window.height * window.width + 2 * SLACK
        lowering.need_scratch(-(-bytes_held // 4))
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
                int(rounding.signed),
                rounding.inverse,
                bundled.reach,
                window,
            )
        )
        return
    lowering.need_scratch(channels * window.channel)
    if density >= DENSE and groups == 1:
        key = ("dense", name, window, seen.plane)
        reads, reach = lowering.keep(key, partial(_reads, weight, window, seen.plane))
        values = lowering.keep(("together", name), partial(_together, weight))
        lowering.add(
            steps.Dense(
                x.place,
                y.place,
                added,
                *numbers,
                channels,
                weight.shape[0],
                len(reads),
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
    kept = ("connections", name, window, seen.plane, lowering.run)
    found = lowering.keep(kept, partial(pack, connections, groups, window, seen.plane, lowering.run))
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
    residual: Value | None,
    activation: str | None,
) -> Value:
    """Add a linear layer of one vector."""
    weight, constant = lowering.weight(name), lowering.program.constant
    x = _packed(lowering, x)
    added = NOWHERE if residual is None else _packed(lowering, residual).place
    y = Value.contiguous(wanted)
    crow = col = scale = steps.NONE
    if isinstance(weight, Connections) and weight.density < DENSE_VECTOR:
        columns = weight.columns
        crow, col, values, scale = map(constant, (weight.crow, weight.col, weight.values, weight.scale))
    else:
        matrix = lowering.keep(("values", name), partial(_matrix, weight))
        columns, values = matrix.shape[1], constant(matrix)
    lowering.add(
        steps.Vector(
            x.place,
            y.place,
            added,
            weight.shape[0],
            columns,
            crow,
            col,
            values,
            scale,
            constant(lowering.constant(bias)),
            steps.activation(activation),
        )
    )
    return y


def _packed(lowering: Lowering, value: Value) -> Value:
    """Return a value whose elements follow one another."""
    if value.form.is_contiguous():
        return value
    return lowering.lay(value, Value.contiguous(value.shape))


def _matrix(weight: Tensor | Connections) -> Tensor:
    """Return a weight dense, as a matrix of its first dimension and all the others."""
    return (weight.dense() if isinstance(weight, Connections) else weight.float()).flatten(1).contiguous()


def _together(weight: Tensor | Connections) -> Tensor:
    """Return a weight dense, as [outputs / TOGETHER, inputs, TOGETHER]: what is computed together is read together."""
    matrix = _matrix(weight)
    more = -len(matrix) % TOGETHER
    groups: Tensor = torch.nn.functional.pad(matrix, (0, 0, 0, more)).unflatten(0, (-1, TOGETHER))
    return groups.mT.contiguous()


def _reads(weight: Tensor | Connections, window: Window, plane: int) -> tuple[Tensor, int]:
    """Return where each tap of a dense weight begins, and what is read of the input."""
    channels = weight.shape[1]
    taps_of_channel = window.kernel[0] * window.kernel[1]
    found = np.arange(channels)[:, None] * (window.channel or plane) + taps(window)[:taps_of_channel]
    if found.max() >= 2**31:
        raise OverflowError("the input of one image is too large for 32-bit offsets")
    return torch.from_numpy(found.reshape(-1).astype(np.int32)), int(found.max()) + 1
