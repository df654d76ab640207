"""`Editor`: a graph that is being changed, with what its passes ask of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from regrow._torch import schema_of
from regrow.inference.graph import Connections, Graph, Node, Ref, Weight, operator
from regrow.inference.reference import interpret

BATCH = 1009
"""The batch for which shapes are computed: a prime, so that no other size is equal to it by chance."""


class Editor:
    """A copy of a graph in which passes replace nodes; tensors are shared with the graph it is made of.

    What passes compute for biases and the like is float64 until `finish`.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = replace(
            graph,
            outputs=list(graph.outputs),
            nodes=[],
            constants=dict(graph.constants),
            weights=dict(graph.weights),
            cut=dict(graph.cut),
        )
        self.nodes: dict[str, Node] = {node.name: replace(node) for node in graph.nodes}
        """By name, in order."""
        self.matrices: dict[tuple[str, bool], Ref] = {}
        """Weights made of constants, by the constant's name and whether it is transposed."""
        self._made: set[str] = set()
        self._readers: dict[str, list[Node]] = {}
        for node in self.nodes.values():
            self._note(node)
        self.shapes, self.types = shapes_and_types(graph)

    def __iter__(self) -> Iterator[Node]:
        """Yield the nodes that are there when they are due, in order."""
        for name in list(self.nodes):
            if name in self.nodes:
                yield self.nodes[name]

    def _note(self, node: Node) -> None:
        for ref in node.refs():
            self._readers.setdefault(ref, []).append(node)

    def _forget(self, node: Node) -> None:
        for ref in node.refs():
            # by identity: equal nodes are not the same
            self._readers[ref] = [each for each in self._readers[ref] if each is not node]

    def readers(self, name: str) -> list[Node]:
        """Return the nodes that read a value, each once."""
        return list({id(node): node for node in self._readers.get(name, ())}.values())

    def times(self, name: str) -> int:
        """Return how often a value is read, as an output too."""
        return len(self._readers.get(name, ())) + self.graph.outputs.count(Ref(name))

    def node(self, value: Any, *, alone: bool = True) -> Node | None:
        """Return the node that makes a value; if `alone`, only where nothing else reads the value."""
        found = self.nodes.get(value) if isinstance(value, Ref) else None
        return None if found is None or (alone and self.times(value) != 1) else found

    def constant(self, value: Any) -> Tensor | None:
        """Return the constant that a reference names, or None."""
        return self.graph.constants.get(value) if isinstance(value, Ref) else None

    def change(
        self, node: Node, op: str, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> None:
        """Make `node` another operation with the same result; what it was the last to read goes."""
        before = node.refs()
        self._forget(node)
        node.op, node.args, node.kwargs = op, args, kwargs or {}
        self._note(node)
        self._sweep(before)

    def set(self, node: Node, index: int, value: Any) -> None:
        """Replace one argument of `node`."""
        self.change(node, node.op, (*node.args[:index], value, *node.args[index + 1 :]), node.kwargs)

    def bypass(self, node: Node, value: Any) -> None:
        """Let all who read `node` read `value`, a reference or a number, which leaves the node to go."""
        name = Ref(node.name)
        self.graph.outputs = [value if each == name else each for each in self.graph.outputs]
        for reader in self.readers(name):
            args = _exchanged(list(reader.args), name, value)
            kwargs = {key: _exchanged(each, name, value) for key, each in reader.kwargs.items()}
            self.change(reader, reader.op, tuple(args), kwargs)
        self._sweep([name])

    def absorb(self, node: Node, later: Node, args: tuple[Any, ...]) -> None:
        """Let `node`, with other arguments, compute what `later` does, in its place and under its name."""
        later.layer = node.layer
        self.change(later, node.op, args)

    def _sweep(self, names: Iterable[str]) -> None:
        """Remove those of these nodes that nothing reads, and what only they have read."""
        waiting = list(names)
        while waiting:
            node = self.nodes.get(waiting.pop())
            if node is not None and not self.times(node.name):
                waiting += node.refs()
                self._forget(node)
                del self.nodes[node.name]

    def make(self, name: str, tensor: Tensor, *, exact: bool = True) -> Ref:
        """Add a constant; one that is `exact`, in float64, becomes float32 in the end."""
        name = self.unused(name)
        self.graph.constants[name] = tensor
        self.shapes[name], self.types[name] = tuple(tensor.shape), tensor.dtype
        if exact:
            self._made.add(name)
        return Ref(name)

    def unused(self, name: str) -> str:
        """Return `name`, or one like it that nothing has."""
        graph, number, found = self.graph, 1, name
        while (
            found in graph.constants or found in graph.weights or found in self.nodes or found in graph.inputs
        ):
            number += 1
            found = f"{name}:{number}"
        return found

    def own_weight(self, node: Node) -> Weight:
        """Return the weight of a layer, which nothing else reads afterwards: `replace_weight` may follow."""
        name = node.args[1]
        if self.times(name) > 1:
            own = Ref(self.unused(name))
            self.graph.weights[own] = self.graph.weights[name]
            self.set(node, 1, own)
        return self.graph.weights[node.args[1]]

    def finish(self) -> Graph:
        """Return the graph, without what nothing needs."""
        needed = {*self.graph.outputs, *(ref for node in self.nodes.values() for ref in node.refs())}
        graph = self.graph
        graph.nodes = list(self.nodes.values())
        graph.weights = {name: weight for name, weight in graph.weights.items() if name in needed}
        graph.constants = {
            name: tensor.float() if name in self._made and tensor.dtype == torch.float64 else tensor
            for name, tensor in graph.constants.items()
            if name in needed
        }
        return graph


def shapes_and_types(graph: Graph) -> tuple[dict[str, tuple[int, ...]], dict[str, torch.dtype]]:
    """Compute shape and dtype of each tensor in `graph`, for a batch of `BATCH` where it may be any."""
    shapes: dict[str, tuple[int, ...]] = {}
    types: dict[str, torch.dtype] = {}

    def note(name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            shapes[name], types[name] = tuple(value.shape), value.dtype

    inputs = []
    for ref, shape, dtype in zip(graph.inputs, graph.shapes, graph.dtypes, strict=True):
        size = (BATCH, *shape[1:]) if graph.dynamic and shape else shape
        inputs.append(torch.empty(size, dtype=dtype, device="meta"))
        note(ref, inputs[-1])
    for name, constant in graph.constants.items():
        note(name, constant)
    interpret(graph, inputs, watch=note)
    return shapes, types


def arguments(node: Node) -> dict[str, Any]:
    """Return the arguments of one of torch's operators by name, with the defaults of those that are left out."""
    schema = schema_of(operator(node.op))
    given = dict(zip((each.name for each in schema.arguments), node.args, strict=False)) | node.kwargs
    return {each.name: given.get(each.name, each.default_value) for each in schema.arguments}


def dense_of(weight: Weight) -> Tensor:
    """Return a weight as a dense tensor."""
    return weight.dense() if isinstance(weight, Connections) else weight


def _exchanged(values: Any, name: Ref, value: Any) -> Any:
    """Return nested arguments with `value` where `name` was."""
    if isinstance(values, list | tuple):
        return [_exchanged(each, name, value) for each in values]
    return value if isinstance(values, Ref) and values == name else values
