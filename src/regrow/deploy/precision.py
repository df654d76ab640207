"""Values of connections in fewer bytes: bfloat16, or int8 with a scale for each row."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from regrow.deploy.graph import CONV, LINEAR, Connections, Graph, Weight
from regrow.deploy.reference import interpret
from regrow.errors import RegrowValueError

LARGEST = 127
"""Of an int8 value; -128 is not used, so that the values lie symmetrically."""


def convert(graph: Graph, precision: str, batches: Iterable[Sequence[Tensor]]) -> Graph:
    """Return `graph` with the values of its connections in `precision`; dense weights and biases stay float32.

    Args:
        graph: in float32.
        precision: ``float32``, ``bfloat16`` or ``int8``.
        batches: inputs of `graph`, which int8 measures the ranges of activations on.

    Raises:
        RegrowValueError: int8 of values or activations that are not finite.
    """
    if precision == "float32":
        return graph
    by_precision = {"bfloat16": _in_bfloat16, "int8": _in_int8}
    weights = {name: by_precision[precision](name, weight) for name, weight in graph.weights.items()}
    ranges = _ranges(graph, batches) if precision == "int8" else {}
    return replace(graph, weights=weights, precision=precision, ranges=ranges)


def _in_bfloat16(name: str, weight: Weight) -> Weight:
    return replace(weight, values=weight.values.bfloat16()) if isinstance(weight, Connections) else weight


def _in_int8(name: str, weight: Weight) -> Weight:
    if not isinstance(weight, Connections):
        return weight
    if not bool(weight.values.isfinite().all()):
        raise RegrowValueError(
            f"`precision` int8 needs finite weights, and those of `{name}` are not\nDeploy it in float32."
        )
    rows = weight.rows()
    largest = torch.zeros(weight.shape[0]).scatter_reduce_(0, rows, weight.values.abs(), "amax")
    scale = torch.where(largest > 0, largest / LARGEST, 1.0)
    values = (weight.values / scale[rows]).round().clamp(-LARGEST, LARGEST)
    return replace(weight, values=values.to(torch.int8), scale=scale)


def _ranges(graph: Graph, batches: Iterable[Sequence[Tensor]]) -> dict[str, float]:
    """Return the largest magnitude of each value that a layer of connections reads, over all batches."""
    read = {
        str(node.args[0])
        for node in graph.nodes
        if node.op in (CONV, LINEAR) and isinstance(graph.weights.get(node.args[1]), Connections)
    }
    found: dict[str, float] = {}

    def see(name: str, value: Any) -> None:
        if name not in read:
            return
        largest = float(value.abs().max())
        if not math.isfinite(largest):
            raise RegrowValueError(
                f"`calibration` leads to activations that are not finite, at `{name}`\nGive batches of your data."
            )
        found[name] = max(found.get(name, 0.0), largest)

    dense: dict[str, Tensor] = {}
    for batch in batches:
        for name, tensor in zip(graph.inputs, batch, strict=True):
            see(name, tensor)
        interpret(graph, batch, watch=see, dense=dense)
    return found
