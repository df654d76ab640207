"""The first pass: what does nothing goes, what depends on no input is computed, layers have one form each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regrow.inference.edit import Editor, arguments, dense_of
from regrow.inference.graph import AFFINE, CONV, LINEAR, Node, Ref, weight_of
from regrow.inference.reference import compute

SAME = {
    "aten.clone.default",
    "aten.alias.default",
    "aten.detach.default",
    "aten.contiguous.default",
    "aten.lift_fresh_copy.default",
}
"""Operators that return what they are given."""
SAME_IF_OF_THAT_SHAPE = {
    "aten.view.default",
    "aten.reshape.default",
    "aten.expand.default",
    "aten.slice.Tensor",
    "aten._to_copy.default",
    "aten.flatten.using_ints",
}
"""Operators that return what they are given if its shape and dtype stay."""
DROPOUTS = {"aten.dropout.default", "aten.feature_dropout.default", "aten.alpha_dropout.default"}
COPIED = 2**20
"""Numbers up to which a constant may become larger by being computed in advance."""
GATES = {"aten.sigmoid.default": "aten.silu.default", "aten.hardsigmoid.default": "aten.hardswish.default"}
"""What times its own argument is which activation."""


def normalize(editor: Editor) -> None:
    """Bring a traced graph into the form that the other passes expect."""
    drop_identities(editor)
    compute_constants(editor)
    for node in editor:
        if node.op in ("aten.conv2d.default", "aten.conv2d.padding"):
            _convolution(editor, node)
        elif node.op in (
            "aten.linear.default",
            "aten.addmm.default",
            "aten.mm.default",
            "aten.matmul.default",
        ):
            _linear(editor, node)
        elif node.op in ("aten._native_batch_norm_legit_no_training.default", "aten.batch_norm.default"):
            _batch_norm(editor, node)
        elif node.op == "aten.mul.Tensor":
            _gate(editor, node)
        elif node.op == "aten.div.Tensor":
            _hardswish(editor, node)


def drop_identities(editor: Editor) -> None:
    """Remove what returns its argument."""
    for node in editor:
        x = node.args[0] if node.args else None
        if not isinstance(x, Ref):
            continue
        stays = editor.shapes.get(node.name) == editor.shapes.get(x) and editor.types.get(
            node.name
        ) == editor.types.get(x)
        idle = node.op in DROPOUTS and not arguments(node)["train"]
        if node.op in SAME or idle or (stays and node.op in SAME_IF_OF_THAT_SHAPE):
            editor.bypass(node, x)


def compute_constants(editor: Editor) -> None:
    """Compute what depends on no input, unless that makes it much larger."""
    known: dict[str, Any] = {}

    def value(given: Any) -> Any:
        if isinstance(given, list | tuple):
            return [value(each) for each in given]
        if not isinstance(given, Ref):
            return given
        if given in known:
            return known[given]
        constant = editor.constant(given)
        return dense_of(editor.graph.weights[given]) if constant is None else constant

    for node in editor:
        refs = node.refs()
        if not refs or any(r in editor.graph.inputs or (r in editor.nodes and r not in known) for r in refs):
            continue
        args = [value(each) for each in node.args]
        result = compute(node, args, {key: value(each) for key, each in node.kwargs.items()})
        read = sum(x.numel() for x in args if isinstance(x, Tensor))
        if isinstance(result, Tensor) and result.numel() > max(read, COPIED):
            continue
        known[node.name] = result
    for name, result in known.items():
        made = editor.nodes.get(name)  # None if only others that are known have read it
        if made is not None and isinstance(result, Tensor):
            editor.bypass(made, editor.make(f"{name}:constant", result.contiguous(), exact=False))
        elif made is not None and isinstance(result, int):
            editor.bypass(made, result)


def _weight(editor: Editor, node: Node, value: Any, *, transposed: bool = False) -> Ref | None:
    """Return the name of the weight that `value` is to `node`, or None if it is no constant in float32."""
    weights, constant = editor.graph.weights, editor.constant(value)
    if not isinstance(value, Ref) or not (value in weights or constant is not None):
        return None
    if value in weights and not transposed:
        return value
    key = (value, transposed)
    if key not in editor.matrices:
        dense = dense_of(weights[value]) if constant is None else constant
        if dense.dtype != torch.float32:
            return None
        name = Ref(editor.unused(f"{node.layer or node.name}.weight"))
        weights[name] = weight_of(dense.t().contiguous() if transposed else dense)
        editor.matrices[key] = name
    return editor.matrices[key]


def _is_float(editor: Editor, *values: Any) -> bool:
    """Return whether these values, but for None, are float32."""
    return all(editor.types.get(value) == torch.float32 for value in values if value is not None)


def _convolution(editor: Editor, node: Node) -> None:
    given = arguments(node)
    x, bias, stride = given["input"], given["bias"], _pair(given["stride"])
    if len(editor.shapes[x]) != 4 or not _is_float(editor, x, bias):
        return
    if bias is not None and editor.constant(bias) is None:
        return
    weight = _weight(editor, node, given["weight"])
    if weight is None:
        return
    dilation, kernel = _pair(given["dilation"]), editor.graph.weights[weight].shape[2:]
    if not isinstance(given["padding"], str):
        rows, columns = _pair(given["padding"])
        sides = [rows, rows, columns, columns]
    elif given["padding"] == "valid":
        sides = [0, 0, 0, 0]
    else:
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        sides = [side for each in total for side in (each // 2, each - each // 2)]
    before = editor.node(x, alone=False)
    padded = _zeros_around(before) if before is not None else None
    if before is not None and padded is not None:
        x, sides = before.args[0], [own + more for own, more in zip(sides, padded, strict=True)]
    padding = sides[::2] if sides[::2] == sides[1::2] else sides
    args = (x, weight, bias, stride, padding, dilation, given["groups"], None, None)
    editor.change(node, CONV, args)


def _zeros_around(node: Node) -> list[int] | None:
    """Return how many zeros a node puts above, below, left and right of images, if it does nothing else."""
    if node.op not in ("aten.pad.default", "aten.constant_pad_nd.default"):
        return None
    given = arguments(node)
    pad = given["pad"]
    if given.get("mode", "constant") != "constant" or given["value"] or len(pad) != 4 or min(pad) < 0:
        return None
    return [pad[2], pad[3], pad[0], pad[1]]


def _linear(editor: Editor, node: Node) -> None:
    given = arguments(node)
    bias = given.get("bias")
    if node.op == "aten.linear.default":
        x, weight = given["input"], _weight(editor, node, given["weight"])
    elif node.op == "aten.addmm.default":
        x, matrix, bias = given["mat1"], given["mat2"], given["self"]
        if given["alpha"] != 1 or given["beta"] != 1 or len(editor.shapes[bias]) != 1:
            return
        weight = _weight(editor, node, matrix, transposed=True)
    else:
        x, matrix = node.args
        if len(editor.shapes.get(matrix, ())) != 2:
            return
        weight = _weight(editor, node, matrix, transposed=True)
    if weight is None or len(editor.graph.weights[weight].shape) != 2 or not _is_float(editor, x, bias):
        return
    if bias is not None and (
        editor.constant(bias) is None or editor.shapes[bias] != editor.shapes[node.name][-1:]
    ):
        return
    editor.change(node, LINEAR, (x, weight, bias, None, None))


def _batch_norm(editor: Editor, node: Node) -> None:
    given = arguments(node)
    names = ("weight", "bias", "running_mean", "running_var")
    weight, bias, mean, variance = (editor.constant(given[name]) for name in names)
    if given.get("training") or mean is None or variance is None:
        return
    if any(given[name] is not None and editor.constant(given[name]) is None for name in names):
        return
    scale = (variance.double() + given["eps"]).rsqrt()
    if weight is not None:
        scale = scale * weight.double()
    shift = -mean.double() * scale
    if bias is not None:
        shift = shift + bias.double()
    layer = node.layer or node.name
    scale_ref, shift_ref = editor.make(f"{layer}.scale", scale), editor.make(f"{layer}.shift", shift)
    args = (given["input"], scale_ref, shift_ref, None)
    if node.op == "aten.batch_norm.default":
        editor.change(node, AFFINE, args)
        return
    outputs = editor.readers(node.name)
    if any(each.op != "getitem" or each.args[1] != 0 for each in outputs):
        return  # statistics, which nobody reads in evaluation mode
    for output in outputs:
        editor.change(output, AFFINE, args)
        output.layer = node.layer


def _gate(editor: Editor, node: Node) -> None:
    """Make ``x * sigmoid(x)`` SiLU, and likewise hard-swish."""
    for x, gate in (node.args[:2], node.args[1::-1]):
        inner = editor.node(gate)
        if inner is not None and inner.op in GATES and inner.args[0] == x and isinstance(x, Ref):
            editor.change(node, GATES[inner.op], (x,))
            return


def _hardswish(editor: Editor, node: Node) -> None:
    """Make ``x * relu6(x + 3) / 6`` hard-swish."""
    product = editor.node(node.args[0])
    if node.args[1] != 6 or product is None or product.op != "aten.mul.Tensor":
        return
    for x, gate in (product.args[:2], product.args[1::-1]):
        clipped = editor.node(gate)
        if clipped is None or not is_relu6(clipped):
            continue
        moved = editor.node(clipped.args[0])
        if moved is not None and moved.op == "aten.add.Tensor" and moved.args == (x, 3) and not moved.kwargs:
            editor.change(node, "aten.hardswish.default", (x,))
            return


def is_relu6(node: Node) -> bool:
    """Return whether a node limits its argument to [0, 6]."""
    if node.op == "aten.relu6.default":
        return True
    if node.op == "aten.hardtanh.default":
        given = arguments(node)
        return (given["min_val"], given["max_val"]) == (0, 6)
    if node.op == "aten.clamp.default":
        given = arguments(node)
        return (given["min"], given["max"]) == (0, 6)
    return False


def _pair(size: Any) -> list[int]:
    return [*size] * (1 if len(size) == 2 else 2) if isinstance(size, list | tuple) else [size, size]
