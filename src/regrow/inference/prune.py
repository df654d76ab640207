"""Pruning: outputs of a layer that are constant, or that nothing reads, are cut, as `regrow.compact` cuts units."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from regrow.inference.edit import Editor
from regrow.inference.fold import product
from regrow.inference.graph import CONV, LINEAR, Connections, Node, Weight
from regrow.inference.reference import ACTIVATIONS


def prune(editor: Editor) -> None:
    """Cut outputs of layers that one layer alone reads; `graph.cut` tells how many of which.

    An output that no connection reaches is its bias through the activation, and goes into the bias of the layer behind;
    where that pads its input with zeros, only if it is zero too. A layer keeps one output at least.
    """
    pairs = [pair for node in editor if (pair := _pair(editor, node)) is not None]
    for before, after in pairs:
        _cut(editor, before, after, _constant(editor, before, after))
    for before, after in reversed(pairs):
        _cut(editor, before, after, ~_read(editor.graph.weights[after.args[1]]))


def _pair(editor: Editor, after: Node) -> tuple[Node, Node] | None:
    """Return a layer and the one that alone reads it, where cutting its outputs is possible."""
    before = editor.node(after.args[0]) if after.op in (CONV, LINEAR) else None
    if before is None or before.op != after.op or before.args[-2] is not None:
        return None
    if after.args[-2] == before.name or any(
        node.op == CONV and node.args[6] != 1 for node in (before, after)
    ):
        return None
    shared = editor.times(before.args[1]) > 1 or editor.times(after.args[1]) > 1
    return None if shared else (before, after)


def _constant(editor: Editor, before: Node, after: Node) -> Tensor:
    """Return which outputs of `before` no connection reaches, once their value is in the bias of `after`, [out]."""
    weight, later = editor.graph.weights[before.args[1]], editor.graph.weights[after.args[1]]
    empty = ~_reached(weight)
    bias = editor.constant(before.args[2])
    value = torch.zeros(len(empty), dtype=torch.float64, device="cpu") if bias is None else bias.double()
    value = ACTIVATIONS[before.args[-1]](value)
    if after.op == CONV and any(after.args[4]):
        empty &= value == 0
    if empty.all():
        empty[0] = False
    moved = product(later, torch.where(empty, value, 0.0).repeat_interleave(_taps(later)))
    if bool(moved.any()):
        own = editor.constant(after.args[2])
        total = moved if own is None else own.double() + moved
        editor.set(after, 2, editor.make(f"{after.layer or after.name}.bias", total))
    return empty


def _cut(editor: Editor, before: Node, after: Node, gone: Tensor) -> None:
    """Take these outputs of `before`, [out], away from both layers, but for one that must stay."""
    if gone.all():
        gone[0] = False
    count = int(gone.sum())
    if not count:
        return
    weights = editor.graph.weights
    weights[before.args[1]] = _without_rows(weights[before.args[1]], gone)
    weights[after.args[1]] = _without_columns(weights[after.args[1]], gone)
    bias = editor.constant(before.args[2])
    if bias is not None:
        editor.set(before, 2, editor.make(f"{before.layer or before.name}.bias", bias[~gone]))
    shape = list(editor.shapes[before.name])
    shape[1 if before.op == CONV else -1] -= count
    editor.shapes[before.name] = tuple(shape)
    layer = before.layer or before.name
    editor.graph.cut[layer] = editor.graph.cut.get(layer, 0) + count


def _taps(weight: Weight) -> int:
    return torch.Size(weight.shape[2:]).numel()


def _reached(weight: Weight) -> Tensor:
    """Return which rows have a connection."""
    return weight.crow.diff() > 0 if isinstance(weight, Connections) else (weight.flatten(1) != 0).any(1)


def _read(weight: Weight) -> Tensor:
    """Return which channels of the input have a connection."""
    if not isinstance(weight, Connections):
        return (weight.flatten(2) if weight.dim() > 2 else weight[..., None]).ne(0).any(2).any(0)
    found = torch.zeros(weight.shape[1], dtype=torch.bool, device="cpu")
    found[weight.col.long() // _taps(weight)] = True
    return found


def _without_rows(weight: Weight, gone: Tensor) -> Weight:
    if not isinstance(weight, Connections):
        return weight[~gone]
    stay = ~gone[weight.rows()]
    shape = (int((~gone).sum()), *weight.shape[1:])
    crow = torch.zeros(shape[0] + 1, dtype=torch.int32, device="cpu")
    crow[1:] = weight.crow.diff()[~gone].cumsum(0)
    col = weight.col.int()[stay].to(weight.col.dtype)
    return replace(weight, shape=shape, crow=crow, col=col, values=weight.values[stay])


def _without_columns(weight: Weight, gone: Tensor) -> Weight:
    if not isinstance(weight, Connections):
        return weight[:, ~gone]
    taps = _taps(weight)
    channel, tap = weight.col.long() // taps, weight.col.long() % taps
    stay = ~gone[channel]
    number = (~gone).cumsum(0) - 1
    rows, columns = weight.rows()[stay], number[channel[stay]] * taps + tap[stay]
    shape = (weight.shape[0], int((~gone).sum()), *weight.shape[2:])
    return Connections.of(shape, rows, columns, weight.values[stay])
