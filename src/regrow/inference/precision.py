"""Values of connections in fewer bytes: bfloat16, or int8 with a scale for each row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch import Tensor

from regrow.inference.graph import Connections, Graph, Weight
from regrow.inference.quantise import quantise


def convert(graph: Graph, precision: str, batches: Iterable[Sequence[Tensor]]) -> Graph:
    """Return `graph` with the values of its connections in `precision`; dense weights and biases stay float32.

    Args:
        graph: in float32.
        precision: ``float32``, ``bfloat16`` or ``int8``.
        batches: inputs of `graph`, which int8 measures the ranges of activations on.

    Raises:
        RegrowValueError: int8 of values or activations that are not finite.
    """
    if precision == "int8":
        return quantise(graph, batches)
    if precision == "float32":
        return graph
    weights = {name: _in_bfloat16(weight) for name, weight in graph.weights.items()}
    return replace(graph, weights=weights, precision=precision)


def _in_bfloat16(weight: Weight) -> Weight:
    return replace(weight, values=weight.values.bfloat16()) if isinstance(weight, Connections) else weight
