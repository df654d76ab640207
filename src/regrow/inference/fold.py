"""Folding: what multiplies or moves the channels of a layer's output goes into its weight and bias."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regrow.inference.edit import Editor, arguments
from regrow.inference.graph import AFFINE, CONV, LINEAR, Connections, Node, Ref, Weight

ARITHMETIC = {
    f"aten.{name}.{overload}" for name in ("mul", "div", "add", "sub") for overload in ("Tensor", "Scalar")
}
ORDER = ("aten.permute.default", "aten.transpose.int")


@dataclass
class Scaling:
    """``x * scale + shift`` along one dimension of x."""

    x: Ref
    scale: Tensor
    """float64, of one number or of as many as there are channels."""
    shift: Tensor
    """Likewise."""
    dim: int | None
    """None where `scale` and `shift` are one number each."""


def fold_affines(editor: Editor) -> None:
    """Fold each batch norm, and each constant for each channel, into the one layer that it follows, or precedes."""
    for node in editor:
        scaling = scaling_of(editor, node)
        if scaling is None:
            continue
        layer = _layer_before(editor, scaling)
        if layer is not None:
            _scale_rows(editor, layer, scaling)
            editor.bypass(node, scaling.x)
        elif node.op == AFFINE:
            _into_linear(editor, node, scaling)


def scaling_of(editor: Editor, node: Node) -> Scaling | None:
    """Return what `node` does to channels, or None if it does something else."""
    if node.op == AFFINE:
        x, scale, shift, activation = node.args
        constants = editor.graph.constants
        return (
            Scaling(x, constants[scale].double(), constants[shift].double(), 1)
            if activation is None
            else None
        )
    if node.op not in ARITHMETIC or editor.types.get(node.name) != torch.float32:
        return None
    given = arguments(node)
    x, other = given["self"], given["other"]
    if given.get("alpha", 1) != 1:
        return None
    kind = node.op.split(".")[1]
    if kind in ("mul", "add") and editor.constant(x) is not None:
        x, other = other, x
    constant = (
        torch.tensor(float(other), dtype=torch.float64, device="cpu")
        if isinstance(other, int | float)
        else editor.constant(other)
    )
    if constant is None or not isinstance(x, Ref) or editor.types.get(x) != torch.float32:
        return None
    if editor.shapes[x] != editor.shapes[node.name]:
        return None
    wide = [dim - constant.dim() for dim, size in enumerate(constant.shape) if size != 1]
    if len(wide) > 1:
        return None
    dim = wide[0] + len(editor.shapes[x]) if wide else None
    one, value = torch.ones(1, dtype=torch.float64, device="cpu"), constant.double().reshape(-1)
    if not bool(value.isfinite().all()) or (kind == "div" and not bool(value.all())):
        return None  # infinite weights would make nan of sums that are infinite
    if kind == "mul":
        return Scaling(x, value, torch.zeros_like(value), dim)
    if kind == "div":
        return Scaling(x, 1 / value, torch.zeros_like(value), dim)
    value = -value if kind == "sub" else value
    return Scaling(x, one.expand_as(value), value, dim)


def _layer_before(editor: Editor, scaling: Scaling) -> Node | None:
    """Return the layer whose rows are the channels that `scaling` is about, where nothing else reads its output."""
    node, dim = editor.node(scaling.x), scaling.dim
    while node is not None and node.op in ORDER:
        if dim is not None:
            dim = _dim_before(node, dim, len(editor.shapes[node.name]))
        node = editor.node(node.args[0])
    if node is None or node.op not in (CONV, LINEAR, AFFINE) or node.args[-1] is not None:
        return None
    if node.op != AFFINE and node.args[-2] is not None:
        return None
    rows = len(editor.shapes[node.name]) - 1 if node.op == LINEAR else 1
    return node if dim in (None, rows) else None


def _dim_before(node: Node, dim: int, rank: int) -> int:
    """Return where dimension `dim` of the output of a permutation is in its input."""
    if node.op == "aten.permute.default":
        return int(node.args[1][dim]) % rank
    one, other = (int(each) % rank for each in node.args[1:3])
    return {one: other, other: one}.get(dim, dim)


def _scale_rows(editor: Editor, layer: Node, scaling: Scaling) -> None:
    scale, shift = scaling.scale, scaling.shift
    if layer.op == AFFINE:
        before, moved = (editor.graph.constants[name].double() for name in layer.args[1:3])
        editor.set(layer, 1, editor.make(f"{layer.args[1]}", before * scale))
        editor.set(layer, 2, editor.make(f"{layer.args[2]}", moved * scale + shift))
        return
    weight = editor.own_weight(layer)
    rows = weight.shape[0]
    if not bool((scale == 1).all()):
        editor.graph.weights[layer.args[1]] = scaled(weight, rows=scale.expand(rows))
    bias = editor.constant(layer.args[2])
    moved = shift.expand(rows) if bias is None else bias.double() * scale + shift
    if bias is not None or bool(moved.any()):
        editor.set(layer, 2, editor.make(f"{layer.layer or layer.name}.bias", moved.contiguous()))


def _into_linear(editor: Editor, node: Node, scaling: Scaling) -> None:
    """Fold a batch norm of [N, C] into the linear layer that reads it, if nothing else does."""
    readers = editor.readers(node.name)
    if len(editor.shapes[node.name]) != 2 or editor.times(node.name) != 1 or readers[0].op != LINEAR:
        return
    layer = readers[0]
    if layer.args[0] != node.name:  # it is what is added
        return
    weight = editor.own_weight(layer)
    bias = editor.constant(layer.args[2])
    moved = product(weight, scaling.shift.expand(weight.shape[1]))
    editor.graph.weights[layer.args[1]] = scaled(weight, columns=scaling.scale.expand(weight.shape[1]))
    total = moved if bias is None else bias.double() + moved
    editor.set(layer, 2, editor.make(f"{layer.layer or layer.name}.bias", total))
    editor.bypass(node, scaling.x)


def scaled(weight: Weight, *, rows: Tensor | None = None, columns: Tensor | None = None) -> Weight:
    """Return a weight with its rows or, of a matrix, its columns multiplied by float64 factors."""
    factors = columns if rows is None else rows
    assert factors is not None
    if not isinstance(weight, Connections):
        shape = (-1, *[1] * (weight.dim() - 1)) if factors is rows else (-1,)
        return (weight.double() * factors.reshape(shape)).float()
    at = weight.col.long() if rows is None else weight.rows()
    values = (weight.values.double() * factors[at]).float()
    if bool((values != 0).all()):
        return replace(weight, values=values)
    return Connections.of(weight.shape, weight.rows(), weight.col.int(), values)


def product(weight: Weight, x: Tensor) -> Tensor:
    """Return a weight, as a matrix of its first dimension and all the others, times a vector in float64."""
    if not isinstance(weight, Connections):
        return weight.flatten(1).double() @ x
    terms = weight.values.double() * x[weight.col.long()]
    return torch.zeros(weight.shape[0], dtype=torch.float64, device="cpu").index_add_(0, weight.rows(), terms)
