"""Pooling, means, concatenation and borders as steps of an inference program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from regrow.inference import steps
from regrow.inference.elementwise import add_map, channel_of
from regrow.inference.graph import Node
from regrow.inference.lowering import Lowering, Unsupported, lowers
from regrow.inference.steps import LINE, rounded
from regrow.inference.values import Planes, Value, merged

ONE = (1, 1)


def _pair(lowering: Lowering, given: Any, default: tuple[int, int]) -> tuple[int, int]:
    found = lowering.integers(given if isinstance(given, list | tuple) else [given])
    return (found[0], found[-1]) if found else default


def _arguments(node: Node, names: Sequence[str]) -> dict[str, Any]:
    """Return those of a node after the first, by name."""
    return dict(zip(names, node.args[1:], strict=False)) | node.kwargs


@lowers("aten.max_pool2d.default", "aten.avg_pool2d.default")
def pool(lowering: Lowering, node: Node) -> Value:
    """Take the greatest pixel of each window, or the mean over it."""
    greatest = "max" in node.op
    given = _arguments(
        node,
        ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
        if greatest
        else ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    )
    kernel = _pair(lowering, given["kernel_size"], ONE)
    stride = _pair(lowering, given.get("stride") or [], kernel)
    padding = _pair(lowering, given.get("padding", 0), (0, 0))
    dilation = _pair(lowering, given.get("dilation", 1), ONE)
    divisor = given.get("divisor_override") or 0
    if divisor < 0:
        raise Unsupported("a mean divided by a negative number")
    return _pool(
        lowering,
        node,
        greatest,
        kernel,
        stride,
        padding,
        dilation,
        given.get("count_include_pad", True),
        divisor,
    )


@lowers("aten.adaptive_avg_pool2d.default")
def adaptive(lowering: Lowering, node: Node) -> Value:
    """Take the means over windows that divide the image."""
    shape = lowering.shape(node)
    if shape[-2:] == (1, 1):
        return _mean(lowering, node, [-2, -1], shape)
    height, width = lowering.value(node.args[0]).shape[-2:]
    if height % shape[-2] == 0 and width % shape[-1] == 0:
        kernel = (height // shape[-2], width // shape[-1])
        return _pool(lowering, node, False, kernel, kernel, (0, 0), ONE, True, 0)
    return _pool(lowering, node, False, None, ONE, (0, 0), ONE, True, 0)


def _pool(
    lowering: Lowering,
    node: Node,
    greatest: bool,
    kernel: tuple[int, int] | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    count_padding: bool,
    divisor: int,
) -> Value:
    """Add a step of pooling; without a `kernel` the windows divide the image."""
    shape = lowering.shape(node)
    if len(shape) != 4:
        raise Unsupported("pooling of other than [N, C, H, W]")
    x = lowering.value(node.args[0])
    x, seen = lowering.in_planes(x, 1, pixels=x.shape[2] * x.shape[3])
    y = Value.planes(shape, 1)
    made = Planes.of(y.form, 1)
    assert made is not None
    reach = (kernel[1] - 1) * dilation[1] if kernel else 0
    row = max(padding[1] + max(x.shape[3], shape[3]), shape[3] * stride[1] + reach)
    scratch = rounded(row) + 3 * LINE
    lowering.need_scratch(3 * scratch)
    lowering.add(
        steps.Pool(
            x.place,
            y.place,
            seen.images,
            seen.channels,
            seen.image,
            seen.plane,
            made.image,
            made.plane,
            int(greatest),
            int(kernel is None),
            int(count_padding),
            (x.shape[2], x.shape[3]),
            (shape[2], shape[3]),
            kernel or ONE,
            stride,
            padding,
            dilation,
            divisor,
            scratch,
        )
    )
    return y


@lowers("aten.mean.dim", "aten.mean.default")
def mean(lowering: Lowering, node: Node) -> Value:
    """Take the mean over pixels."""
    given = _arguments(node, ("dim", "keepdim") if node.op.endswith("dim") else ())
    if given.get("dtype") not in (None, torch.float32):
        raise Unsupported("a mean of another type")
    dims = given.get("dim") or list(range(lowering.value(node.args[0]).form.dim()))
    return _mean(lowering, node, lowering.integers(dims), lowering.shape(node))


def _mean(lowering: Lowering, node: Node, dims: list[int], shape: tuple[int, ...]) -> Value:
    x = lowering.value(node.args[0])
    count = x.form.dim()
    over = sorted({d % count for d in dims}) if count else []
    rest = [d for d in range(count) if d not in over]
    sizes = [x.shape[d] for d in rest]
    flat = Value.planes(sizes, 1) if len(rest) == 2 else Value.contiguous(sizes)
    y = Value(flat.buffer, flat.form.view(shape))

    def outer() -> list[tuple[int, list[int]]]:
        pairs = zip((x.form.stride(d) for d in rest), flat.form.stride(), strict=True)
        return merged([(size, [*pair]) for size, pair in zip(sizes, pairs, strict=True)])

    pixels = _neighbours(x, over)
    if pixels is None or len(outer()) > 2:
        order = [*rest, *over]
        target = Value.contiguous([x.shape[d] for d in order])
        x = lowering.lay(x, Value(target.buffer, target.form.permute([order.index(d) for d in range(count)])))
        pixels = _neighbours(x, over)
        assert pixels is not None
    found = [(1, [0, 0])] * (2 - len(outer())) + outer()
    (images, (x_image, y_image)), (channels, (x_plane, y_plane)) = found
    lowering.add(steps.Mean(x.place, y.place, images, channels, pixels, x_image, x_plane, y_image, y_plane))
    return y


def _neighbours(x: Value, over: list[int]) -> int | None:
    """Return how many numbers dimensions hold, None if these do not follow one another."""
    pixels = 1
    for d in sorted((d for d in over if x.shape[d] != 1), key=x.form.stride):
        if x.form.stride(d) != pixels:
            return None
        pixels *= x.shape[d]
    return pixels


@lowers("aten.cat.default", "aten.stack.default")
def cat(lowering: Lowering, node: Node) -> Value:
    """Copy values into parts of a new one."""
    given = _arguments(node, ("dim",))
    shape = lowering.shape(node)
    dim = lowering.integer(given.get("dim", 0)) % len(shape)
    parts = [lowering.value(each) for each in node.args[0]]
    if "stack" in node.op:
        parts = [Value(each.buffer, each.form.unsqueeze(dim)) for each in parts]
    parts = [each for each in parts if each.shape != (0,)]
    if not parts:
        raise Unsupported("nothing to concatenate")
    y = Value.planes(shape, channel_of(max(parts, key=lambda each: each.form.numel())))
    begin = 0
    for each in parts:
        lowering.copy(each, Value(y.buffer, y.form.narrow(dim, begin, each.shape[dim])))
        begin += each.shape[dim]
    return y


@lowers("aten.constant_pad_nd.default", "aten.pad.default")
def pad(lowering: Lowering, node: Node) -> Value:
    """Copy a value into the middle of a new one that holds one number otherwise."""
    given = _arguments(node, ("pad", "value") if "constant" in node.op else ("pad", "mode", "value"))
    if given.get("mode", "constant") != "constant":
        raise Unsupported("borders other than constant ones")
    shape, borders = lowering.shape(node), lowering.integers(given["pad"])
    if any(each < 0 for each in borders):
        raise Unsupported("negative borders")
    x = lowering.value(node.args[0])
    value = float(given.get("value") or 0.0)
    number = lowering.read(
        lowering.keep(("number", value), lambda: torch.tensor(value, dtype=torch.float32, device="cpu"))
    )
    y = Value.planes(shape, channel_of(x))
    add_map(lowering, shape, number, into=y)
    form = y.form
    for i, before in enumerate(borders[::2]):
        dim = len(shape) - 1 - i
        form = form.narrow(dim, before, x.shape[dim])
    lowering.copy(x, Value(y.buffer, form))
    return y
