"""Fusing: activations, and sums with an earlier value, become part of the layer that they follow."""

from __future__ import annotations

from typing import Any

import torch

from regrow.inference.edit import Editor, arguments
from regrow.inference.graph import AFFINE, CONV, LINEAR, Node, Ref
from regrow.inference.normalize import is_relu6

PLAIN = {
    f"aten.{name}.default": name for name in ("relu", "silu", "hardswish", "hardsigmoid", "sigmoid", "tanh")
}
"""Activations without arguments."""


def fuse(editor: Editor) -> None:
    """Let layers add what is added to their output, then apply the activation that follows, where nothing else reads
    what is between.
    """
    for node in editor:
        if node.op == "aten.add.Tensor":
            _add(editor, node)
            continue
        activation = activation_of(node)
        layer = editor.node(node.args[0]) if activation is not None else None
        if layer is not None and layer.op in (CONV, LINEAR, AFFINE) and layer.args[-1] is None:
            editor.absorb(layer, node, (*layer.args[:-1], activation))


def activation_of(node: Node) -> str | None:
    """Return which of `ACTIVATIONS` a node is, if one."""
    if node.op in PLAIN:
        return PLAIN[node.op]
    if is_relu6(node):
        return "relu6"
    if node.op == "aten.gelu.default":
        return "gelu" if arguments(node)["approximate"] == "none" else None
    limits = arguments(node) if node.op in ("aten.clamp.default", "aten.clamp_min.default") else {}
    return "relu" if limits.get("min") == 0 and limits.get("max") is None else None


def _add(editor: Editor, node: Node) -> None:
    given = arguments(node)
    one, other = given["self"], given["other"]
    if given["alpha"] != 1 or not _is_like(editor, one, node) or not _is_like(editor, other, node):
        return
    order = {name: index for index, name in enumerate(editor.nodes)}
    # the later of two, so that fewer values are alive at once
    for value, residual in sorted([(one, other), (other, one)], key=lambda pair: -order.get(pair[0], -1)):
        layer = editor.node(value)
        if layer is not None and layer.op in (CONV, LINEAR) and layer.args[-2:] == (None, None):
            editor.absorb(layer, node, (*layer.args[:-2], residual, None))
            return


def _is_like(editor: Editor, value: Any, node: Node) -> bool:
    """Return whether `value` is computed, or an input, and of the shape and dtype of `node`."""
    if not isinstance(value, Ref) or editor.constant(value) is not None or value not in editor.shapes:
        return False  # a number, a constant, or a size
    return editor.shapes[value] == editor.shapes[node.name] and editor.types[value] == torch.float32
