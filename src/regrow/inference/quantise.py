"""`quantise`: a graph in int8, with a scale for each row of a weight and one for the input of a layer."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from regrow.errors import RegrowValueError
from regrow.inference.bundles import MOST
from regrow.inference.graph import CONV, LINEAR, Connections, Graph, Node
from regrow.inference.layers import DENSE
from regrow.inference.reference import compute, interpret, sizes_of
from regrow.inference.rounding import HIGHEST, Rounding

PIXELS = 40
"""Outputs of a channel, below which int8 takes longer than float32."""
PER_CHANNEL = 8
"""Connections for each channel, of input or output, below which it does too: most of it is to round and to scale."""
CLIPPED = 1e-4
"""The share of the largest inputs that are clipped where that makes a layer more exact."""


def quantise(graph: Graph, batches: Iterable[Sequence[Tensor]]) -> Graph:
    """Return `graph` with its connections in int8, and layers that round their inputs to int8 where that is faster.

    Values of connections are int8 everywhere. Inputs are rounded where the kernel of int8 is the faster one: not
    those of single vectors, which take as long as it takes to read the weight, nor where connections or pixels are
    few. Dense weights, those of most first layers among them, stay float32; so do sums, biases and activations.

    Args:
        graph: in float32.
        batches: inputs of `graph`; each is computed twice.

    Raises:
        RegrowValueError: weights or activations that are not finite.
    """
    batches = list(batches)
    weights = {
        name: _in_int8(name, weight) if isinstance(weight, Connections) else weight
        for name, weight in graph.weights.items()
    }
    found = replace(graph, weights=weights, precision="int8")
    inputs: dict[str, _Input] = {}
    for node in _rounding(found):
        inputs.setdefault(node.args[0], _Input(node.args[0])).layers.append(node)
    dense: dict[str, Tensor] = {}

    def see(name: str, value: Any) -> None:
        if name in inputs:
            inputs[name].see(value)

    def compare(name: str, value: Any) -> None:
        if name in inputs:
            inputs[name].compare(value, dense)

    _each(found, batches, dense, see)
    _each(found, batches, dense, compare)
    chosen = {name: rounding for each in inputs.values() for name, rounding in each.chosen().items()}
    nodes = [
        replace(node, kwargs=chosen[node.name].kwargs()) if node.name in chosen else node
        for node in graph.nodes
    ]
    return replace(found, nodes=nodes)


def _in_int8(name: str, weight: Connections) -> Connections:
    if not bool(weight.values.isfinite().all()):
        raise RegrowValueError(
            f"`precision` int8 needs finite weights, and those of `{name}` are not\nDeploy it in float32."
        )
    rows = weight.rows()
    largest = torch.zeros(weight.shape[0], dtype=torch.float32, device="cpu").scatter_reduce_(
        0, rows, weight.values.abs(), "amax"
    )
    scale = torch.where(largest > 0, largest / HIGHEST, 1.0)
    values = (weight.values / scale[rows]).round().clamp(-HIGHEST, HIGHEST)
    return replace(weight, values=values.to(torch.int8), scale=scale)


def _rounding(graph: Graph) -> Iterable[Node]:
    """Yield the layers whose inputs are rounded."""
    sizes = sizes_of(graph, graph.shapes)
    for node in graph.nodes:
        weight = graph.weights.get(node.args[1]) if node.op in (CONV, LINEAR) else None
        if not isinstance(weight, Connections) or weight.density >= DENSE or len(weight.values) == 0:
            continue
        groups, size = node.args[6] if node.op == CONV else 1, sizes[node.name].shape
        pixels = math.prod(size[2:] if node.op == CONV else size[1:-1])
        enough = PER_CHANNEL * (weight.shape[1] * groups + weight.shape[0])
        if pixels >= PIXELS and len(weight.values) >= enough and int(weight.crow.diff().max()) <= MOST:
            yield node


def _each(
    graph: Graph,
    batches: Sequence[Sequence[Tensor]],
    dense: dict[str, Tensor],
    watch: Callable[[str, Any], None],
) -> None:
    """Call `watch` with each value, batch by batch; `dense` keeps the dense weights."""
    for batch in batches:
        for name, tensor in zip(graph.inputs, batch, strict=True):
            watch(name, tensor)
        interpret(graph, batch, watch=watch, dense=dense)


@dataclass
class _Input:
    """A value that layers round, and what is known of it from the batches seen."""

    name: str
    layers: list[Node] = field(default_factory=list)
    largest: float = 0.0
    """Magnitude."""
    clipped: float = 0.0
    """The same, but for a small share of each batch."""
    signed: bool = False
    errors: dict[str, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0]))
    """Squared, of the output of each layer, by each of the candidates."""

    def see(self, value: Tensor) -> None:
        """Take one batch into account."""
        magnitude = value.abs().flatten()
        largest = float(magnitude.max())
        if not math.isfinite(largest):
            raise RegrowValueError(
                f"`calibration` leads to activations that are not finite, at `{self.name}`\n"
                "Give batches of your data."
            )
        rank = len(magnitude) - int(len(magnitude) * CLIPPED)
        self.largest = max(self.largest, largest)
        self.clipped = max(self.clipped, float(magnitude.kthvalue(rank).values))
        self.signed = self.signed or bool((value < 0).any())

    def candidates(self) -> list[Rounding]:
        """Return how it may be rounded: such that nothing is clipped, or little."""
        bounds = (self.largest, self.clipped or self.largest)
        return [Rounding((bound or 1.0) / HIGHEST, self.signed) for bound in bounds]

    def compare(self, value: Tensor, dense: dict[str, Tensor]) -> None:
        """Add the errors that the candidates lead to, for one batch, once all have been seen."""
        for at, rounding in enumerate(self.candidates()):
            wrong = rounding(value) - value
            for node in self.layers:
                args = list(node.args)
                args[:3], args[-2:] = [wrong, dense[node.args[1]], None], [None, None]
                self.errors[node.name][at] += float(compute(node, args, {}).square().sum())

    def chosen(self) -> dict[str, Rounding]:
        """Return how each layer is to round it."""
        largest, clipped = self.candidates()
        return {name: clipped if errors[1] < errors[0] else largest for name, errors in self.errors.items()}
