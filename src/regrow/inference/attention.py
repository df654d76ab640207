"""Layer norms, softmax and attention as steps of an inference program."""

from __future__ import annotations

import math
from typing import Any

from regrow.inference import steps
from regrow.inference.graph import Node, Ref
from regrow.inference.lowering import Lowering, Unsupported, lowers
from regrow.inference.values import Planes, Value, like, plane_of


def _norm(
    lowering: Lowering,
    x: Value,
    channel: int,
    weight: Ref | None = None,
    bias: Ref | None = None,
    epsilon: float | None = None,
) -> Value:
    """Add a layer norm over dimension `channel`, or without an `epsilon` a softmax."""
    x, seen = lowering.in_planes(x, channel)
    y = like(x, channel)
    made = Planes.of(y.form, channel)
    if made is None or (seen.pixels, seen.plane == 1) != (made.pixels, made.plane == 1):
        x, seen = lowering.laid_in_planes(x, channel)
        y, made = Value.planes(x.shape, channel), seen
    constant = lowering.program.constant
    lowering.add(
        steps.Norm(
            x.place,
            y.place,
            seen.images,
            seen.channels,
            seen.pixels,
            seen.image,
            seen.plane,
            made.image,
            made.plane,
            constant(lowering.constant(weight)),
            constant(lowering.constant(bias)),
            int(epsilon is None),
            0.0 if epsilon is None else float(epsilon),
        )
    )
    return y


@lowers("aten.layer_norm.default")
def layer_norm(lowering: Lowering, node: Node) -> Value:
    """Norm each token."""
    names = ("normalized_shape", "weight", "bias", "eps")
    given: dict[str, Any] = dict(zip(names, node.args[1:], strict=False)) | node.kwargs
    if len(given["normalized_shape"]) != 1:
        raise Unsupported("a norm over more than the last dimension")
    return _norm(
        lowering,
        lowering.value(node.args[0]),
        -1,
        given.get("weight"),
        given.get("bias"),
        given.get("eps", 1e-5),
    )


@lowers("aten.softmax.int", "aten._softmax.default")
def softmax(lowering: Lowering, node: Node) -> Value:
    """Make shares that add up to 1 along a dimension."""
    x, dim = lowering.value(node.args[0]), lowering.integer(node.args[1])
    return _norm(lowering, x, dim % len(x.shape))


@lowers("aten.scaled_dot_product_attention.default")
def attention(lowering: Lowering, node: Node) -> Value:
    """Add an attention whose heads have planes of their own."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given: dict[str, Any] = dict(zip(names, node.args, strict=False)) | node.kwargs
    if given.get("attn_mask") is not None or given.get("dropout_p") or given.get("enable_gqa"):
        raise Unsupported("an attention with a mask, dropout or shared keys")
    values = [lowering.value(given[name]) for name in names[:3]]
    if any(len(value.shape) != 4 for value in values):
        raise Unsupported("an attention of other than [images, heads, tokens, channels]")
    if any(value.shape[:2] != values[0].shape[:2] for value in values):
        raise Unsupported("an attention of queries, keys and values of different shapes")
    q, k, v = (_by_heads(lowering, value) for value in values)
    images, heads, queries, size = q.shape
    keys, out_size = v.shape[2:]
    scale = given.get("scale")
    scale = 1 / math.sqrt(size) if scale is None else float(scale)
    if not scale > 0:
        raise Unsupported("an attention whose scale is not positive")
    y = _heads((images, heads, queries, out_size))
    strides = [each.form.stride(d) for each in (q, k, v, y) for d in (0, 1, 3)]
    lowering.need_scratch(keys * QUERIES)
    lowering.add(
        steps.Attention(
            q.place,
            k.place,
            v.place,
            y.place,
            tuple(strides),
            images,
            heads,
            queries,
            keys,
            size,
            out_size,
            int(bool(given.get("is_causal", False))),
            scale,
        )
    )
    return y


QUERIES = 32
"""That the kernel takes at a time, at most."""


def _heads(shape: tuple[int, ...]) -> Value:
    """Return a new value [images, heads, tokens, channels] in planes, those of the heads one after another."""
    images, heads, tokens, channels = shape
    plane = max(plane_of(tokens), steps.LINE)
    flat = Value.contiguous((images, heads, channels, plane))
    return Value(flat.buffer, flat.form[..., :tokens].transpose(2, 3))


def _by_heads(lowering: Lowering, value: Value) -> Value:
    """Return a value whose tokens follow one another."""
    if value.buffer.space == 0 and (value.form.stride(2) == 1 or value.shape[2] == 1):
        return value
    return lowering.lay(value, _heads(value.shape))
