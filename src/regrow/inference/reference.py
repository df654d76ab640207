"""`interpret`: a graph, by torch's operators."""

from __future__ import annotations

import operator as python
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from regrow.inference.graph import AFFINE, CONV, LINEAR, Connections, Graph, Node, Ref, operator
from regrow.inference.rounding import Rounding

ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "gelu": F.gelu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
INTEGERS = {name: getattr(python, name) for name in ("add", "sub", "mul", "floordiv", "mod")}


@torch.no_grad()
def interpret(
    graph: Graph,
    inputs: Sequence[Tensor],
    *,
    watch: Callable[[str, Any], None] | None = None,
    dense: dict[str, Tensor] | None = None,
) -> list[Tensor]:
    """Compute the outputs of `graph`, at dense cost.

    Args:
        graph: as it was traced, or simplified.
        inputs: of the shapes and types that it takes; on the meta device, shapes alone are computed.
        watch: called with the name and the value of each node.
        dense: keeps the dense weights from one call to the next; otherwise they are made anew.
    """
    device = inputs[0].device
    values: dict[str, Any] = dict(zip(graph.inputs, inputs, strict=True))
    last = {ref: index for index, node in enumerate(graph.nodes) for ref in node.refs()}
    kept = {*graph.outputs, *graph.inputs}

    def value(given: Any) -> Any:
        if isinstance(given, Ref):
            if given in values:
                return values[given]
            if given in graph.constants:
                return graph.constants[given].to(device)
            return _weight(graph, given, device, dense)
        if isinstance(given, list | tuple):
            return [value(each) for each in given]
        return given

    for index, node in enumerate(graph.nodes):
        result = compute(
            node, [value(each) for each in node.args], {k: value(v) for k, v in node.kwargs.items()}
        )
        values[node.name] = result
        if watch is not None:
            watch(node.name, result)
        for ref in node.refs():
            if last[ref] == index and ref not in kept:
                values.pop(ref, None)
    return [value(ref) for ref in graph.outputs]


def sizes_of(graph: Graph, shapes: Sequence[tuple[int, ...]]) -> dict[str, Any]:
    """Return each value of the graph on the meta device, and whole numbers as they are."""
    inputs = [
        torch.empty(shape, dtype=dtype, device="meta")
        for shape, dtype in zip(shapes, graph.dtypes, strict=True)
    ]
    found: dict[str, Any] = dict(zip(graph.inputs, inputs, strict=True))
    interpret(graph, inputs, watch=found.__setitem__)
    return found


def compute(node: Node, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Compute one node of these arguments."""
    rounding = Rounding.of(node)
    if rounding is not None:
        args = [rounding(args[0]), *args[1:]]
    if node.op == CONV:
        x, weight, bias, stride, padding, dilation, groups, residual, activation = args
        if len(padding) == 4:  # top, bottom, left, right
            x, padding = F.pad(x, (*padding[2:], *padding[:2])), (0, 0)
        return _finish(F.conv2d(x, weight, bias, stride, padding, dilation, groups), residual, activation)
    if node.op == LINEAR:
        x, weight, bias, residual, activation = args
        return _finish(F.linear(x, weight, bias), residual, activation)
    if node.op == AFFINE:
        x, scale, shift, activation = args
        shape = (-1, *[1] * (x.dim() - 2))
        return _finish(x * scale.view(shape) + shift.view(shape), None, activation)
    if node.op == "getitem":
        return args[0][args[1]]
    if node.op.startswith("int."):
        return INTEGERS[node.op.removeprefix("int.")](*args)
    if node.op == "aten.view.default":  # a graph leaves open how tensors lie
        return args[0].reshape(args[1])
    return operator(node.op)(*args, **kwargs)


def _finish(x: Tensor, residual: Tensor | None, activation: str | None) -> Tensor:
    return ACTIVATIONS[activation](x if residual is None else x + residual)


def _weight(graph: Graph, name: str, device: torch.device, dense: dict[str, Tensor] | None) -> Tensor:
    weight = graph.weights[name]
    if device.type == "meta":
        return torch.empty(tuple(weight.shape), device=device)
    if not isinstance(weight, Connections):
        return weight.to(device)
    if dense is None:
        return weight.dense().to(device)
    if name not in dense:
        dense[name] = weight.dense().to(device)
    return dense[name]
