"""Whether a deployed network computes what the network did that it was made of, and where not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from regrow.inference.engine import Engine
from regrow.inference.graph import Graph, Ref
from regrow.inference.reference import interpret

ALLOWED = 1e-5
"""Largest difference in float32, of outputs up to 1 in magnitude; of larger ones relative to the largest."""


def difference(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Return the largest difference between outputs, relative to the largest of `wanted` where that is more than 1.

    Infinite where shapes differ, or where one is not a number and the other is.
    """
    if len(found) != len(wanted):
        return float("inf")
    return max((_difference(one, other) for one, other in zip(found, wanted, strict=True)), default=0.0)


def _difference(found: Any, wanted: Any) -> float:
    if not isinstance(found, Tensor) or not isinstance(wanted, Tensor):  # the size of a batch
        return 0.0 if isinstance(found, Tensor) == isinstance(wanted, Tensor) else float("inf")
    if found.shape != wanted.shape:
        return float("inf")
    one, other = found.detach().double(), wanted.detach().double()
    same = (one == other) | (one.isnan() & other.isnan())
    apart = torch.where(same, 0.0, (one - other).abs()).nan_to_num(nan=float("inf"), posinf=float("inf"))
    largest = other[other.isfinite()].abs().max() if bool(other.isfinite().any()) else other.new_zeros(())
    return float(apart.max() / largest.clamp(min=1)) if apart.numel() else 0.0


def first_difference(traced: Graph, graph: Graph, inputs: Sequence[Tensor]) -> str:
    """Name the first layer whose output is none of those of the graph as it was traced, or differs in the kernels.

    Args:
        traced: the graph before it was simplified.
        graph: that is deployed.
        inputs: of both.
    """
    known = _values(traced, inputs).values()
    simplified = _values(graph, inputs)
    for node in graph.nodes:
        value = simplified[node.name]
        if (node.layer or node.name) in graph.cut:  # it has fewer outputs than it had
            continue
        if not any(_difference(value, each) <= ALLOWED for each in known):
            return f"`{node.layer or node.name}`, which was simplified"
    for place, node in enumerate(graph.nodes):
        part = replace(graph, nodes=graph.nodes[: place + 1], outputs=[Ref(node.name)])
        if _difference(Engine(part)(inputs)[0], simplified[node.name]) > ALLOWED:
            return f"`{node.layer or node.name}`, in the kernels"
    return "no layer by itself, since small differences add up"


def _values(graph: Graph, inputs: Sequence[Tensor]) -> dict[str, Any]:
    """Return the value of each node."""
    found: dict[str, Any] = {}
    interpret(graph, inputs, watch=found.__setitem__)
    return found
