"""`Plan`: a graph laid out for inputs of certain shapes, in programs of the kernels and calls of torch between them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from regrow.inference import attention, elementwise, layers, pooling  # noqa: F401  (register what they lower)
from regrow.inference.graph import Graph, Node, Ref
from regrow.inference.lowering import Lowering, Unsupported
from regrow.inference.reference import compute, sizes_of
from regrow.inference.steps import Program
from regrow.inference.values import Value
from regrow.ops import native


@dataclass(frozen=True)
class Segment:
    """A program of the kernels: named values in, named values out."""

    inputs: tuple[Ref, ...]
    outputs: tuple[Ref, ...]
    program: Program
    code: Tensor
    shapes: list[int]
    """Of the outputs: of each the number of dimensions, and these."""

    def run(self, values: dict[str, Any]) -> None:
        """Add the outputs to `values`, which has the inputs."""
        found = torch.ops.regrow_native.infer.default(*self._arguments(values))
        values.update(zip(self.outputs, found, strict=True))

    def time(self, values: dict[str, Any]) -> list[float]:
        """Return how long each step takes with these inputs, in seconds."""
        times: Tensor = torch.ops.regrow_native.infer_times.default(*self._arguments(values))
        return [float(seconds) for seconds in times.diff()]

    def _arguments(self, values: dict[str, Any]) -> tuple[Any, ...]:
        inputs = [values[name].contiguous() for name in self.inputs]
        return self.code, self.program.constants, inputs, self.shapes


@dataclass(frozen=True)
class Call:
    """An operation that torch does."""

    node: Node
    reason: str
    """Why the kernels do not."""


@dataclass(frozen=True)
class Work:
    """One step of a plan, or one call of torch, and how long it took."""

    layer: str
    """Name of the module whose work it is."""
    kernel: str
    reason: str
    """Why it is not done by the kernels, for calls of torch."""
    seconds: float


class Plan:
    """What runs for inputs of these shapes; several threads may call it at once.

    Args:
        graph: simplified.
        shapes: of its inputs.
        packed: constants that other plans of the same graph have laid out, to which this one adds its own.
    """

    def __init__(
        self, graph: Graph, shapes: Sequence[tuple[int, ...]], packed: dict[Any, Any] | None = None
    ) -> None:
        self.graph = graph
        self._dense: dict[str, Tensor] = {}
        self.sizes = sizes_of(graph, shapes)
        _describe_operator()
        self.calls: list[Segment | Call] = []
        packed = {} if packed is None else packed
        reasons: dict[str, str] = {}
        while (refused := self._lower(packed, reasons)) is not None:
            reasons[refused[0]] = refused[1]

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Return the outputs."""
        values: dict[str, Any] = dict(zip(self.graph.inputs, inputs, strict=True))
        for call in self.calls:
            self._run(call, values)
        return [self._look_up(name, values) for name in self.graph.outputs]

    def time(self, inputs: Sequence[Tensor]) -> list[Work]:
        """Return how long each step takes, in the order in which they run."""
        values: dict[str, Any] = dict(zip(self.graph.inputs, inputs, strict=True))
        found = []
        for call in self.calls:
            if isinstance(call, Segment):
                steps, layers = call.program.steps, call.program.layers
                took = call.time(values)
                found += [Work(y, step.NAME, "", t) for y, step, t in zip(layers, steps, took, strict=True)]
            start = time.perf_counter()
            self._run(call, values)
            if isinstance(call, Call):
                node, took_all = call.node, time.perf_counter() - start
                found.append(Work(node.layer or node.name, f"torch {node.op}", call.reason, took_all))
        return found

    def _run(self, call: Segment | Call, values: dict[str, Any]) -> None:
        if isinstance(call, Segment):
            call.run(values)
            return
        node = call.node
        args = [self._look_up(each, values) for each in node.args]
        kwargs = {key: self._look_up(each, values) for key, each in node.kwargs.items()}
        values[node.name] = compute(node, args, kwargs)

    def _look_up(self, given: Any, values: dict[str, Any]) -> Any:
        if isinstance(given, list | tuple):
            return [self._look_up(each, values) for each in given]
        if not isinstance(given, Ref):
            return given
        if given in values:
            return values[given]
        if isinstance(self.sizes.get(given), int):
            return self.sizes[given]
        if given in self.graph.constants:
            return self.graph.constants[given]
        weight = self.graph.weights[given]
        if isinstance(weight, Tensor):
            return weight
        if given not in self._dense:
            self._dense[given] = weight.dense()
        return self._dense[given]

    def _lower(self, packed: dict[Any, Any], reasons: dict[str, str]) -> tuple[str, str] | None:
        """Make the calls, those in `reasons` by torch; return a node that turned out to be another of them, and why."""
        self.calls = []
        ours: list[Node] = []
        for node in [*self.graph.nodes, None]:
            if node is not None and self._is_size(node):
                continue
            if node is not None and self._is_ours(node, reasons):
                ours.append(node)
                continue
            if ours:
                try:
                    self.calls += self._segment(ours, packed)
                except _Refused as refused:
                    return refused.name, refused.reason
                ours = []
            if node is not None:
                self.calls.append(Call(node, reasons.get(node.name, "")))
        return None

    def _is_size(self, node: Node) -> bool:
        """Return whether a node computes a number, which a plan knows."""
        return isinstance(self.sizes[node.name], int)

    def _is_ours(self, node: Node, reasons: dict[str, str]) -> bool:
        made = self.sizes[node.name]
        if node.name in reasons:
            return False
        tensors = made if isinstance(made, list | tuple) else [made]
        if not all(isinstance(t, Tensor) and t.dtype == torch.float32 for t in tensors):
            reasons[node.name] = "its result is not float32"
            return False
        return True

    def _segment(self, nodes: list[Node], packed: dict[Any, Any]) -> list[Segment]:
        made = {node.name for node in nodes}
        others = [node for node in self.graph.nodes if node.name not in made and not self._is_size(node)]
        later = {name for node in others for name in node.refs()} | set(self.graph.outputs)
        inputs = tuple(
            dict.fromkeys(
                name
                for node in nodes
                for name in node.refs()
                if name not in made
                and isinstance(self.sizes.get(name), Tensor)
                and name not in self.graph.constants
                and name not in self.graph.weights
            )
        )
        outputs = tuple(Ref(node.name) for node in nodes if node.name in later)
        if not outputs:
            return []
        lowering = Lowering(
            self.graph, self.sizes, torch.ops.regrow_native.infer_pixels.default(), packed=packed
        )
        for space, name in enumerate(inputs, 1):
            lowering.values[name] = Value.contiguous(self.sizes[name].shape, space)
        for node in nodes:
            try:
                lowering.lower(node)
            except Unsupported as why:
                raise _Refused(node.name, str(why)) from why
        shapes: list[int] = []
        lowering.layer = "output"
        for space, name in enumerate(outputs, len(inputs) + 1):
            value = lowering.values[name]
            if not isinstance(value, Value):
                raise _Refused(name, "torch needs all of its results")
            lowering.copy(value, Value.contiguous(value.shape, space))
            shapes += [len(value.shape), *value.shape]
        return [Segment(inputs, outputs, lowering.program, lowering.program.encode(), shapes)]


class _Refused(Exception):
    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason


@cache
def _describe_operator() -> None:
    """Load the kernels, and tell torch.export and torch.compile what their operator returns."""
    native.load()

    @torch.library.register_fake("regrow_native::infer")  # type: ignore[untyped-decorator]
    def infer(
        program: Tensor, constants: list[Tensor], inputs: list[Tensor], shapes: list[int]
    ) -> list[Tensor]:
        found, at = [], 0
        while at < len(shapes):
            dimensions = shapes[at]
            found.append(program.new_empty(shapes[at + 1 : at + 1 + dimensions], dtype=torch.float32))
            at += 1 + dimensions
        return found
