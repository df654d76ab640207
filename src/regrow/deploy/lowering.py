"""`Lowering`: from operations on named values to steps of an inference program; layers and views."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from regrow.deploy.graph import Connections, Graph, Node, Ref
from regrow.deploy.steps import Copy, Program, rounded
from regrow.deploy.values import Planes, Value

Lower = Callable[["Lowering", Node], "Value | list[Value]"]
LOWER: dict[str, Lower] = {}
"""How the operations that the kernels know become steps."""


class Unsupported(Exception):
    """The kernels do not do this operation, or not on these shapes: torch does it. The text says why."""


def lowers(*ops: str) -> Callable[[Lower], Lower]:
    """Register how operations become steps."""

    def register(function: Lower) -> Lower:
        LOWER.update(dict.fromkeys(ops, function))
        return function

    return register


@dataclass
class Lowering:
    """One program in the making."""

    graph: Graph
    sizes: dict[str, Any]
    """Of each value of the graph a tensor on the meta device, or a whole number, for the shapes at hand."""
    run: int
    """Pixels that a kernel holds at a time."""
    program: Program = field(default_factory=Program)
    values: dict[str, Value | list[Value]] = field(default_factory=dict)
    packed: dict[Any, Any] = field(default_factory=dict)
    """Constants that were laid out for the kernels, by what they were made of: kept from plan to plan."""
    layer: str = ""
    """That the steps being added do the work of."""

    def lower(self, node: Node) -> None:
        """Add the steps of one operation.

        Raises:
            Unsupported: the kernels do not do it; no step was added.
        """
        function = LOWER.get(node.op)
        if function is None:
            raise Unsupported(f"no kernel does {node.op}")
        made, scratch, self.layer = len(self.program.steps), self.program.scratch, node.layer or node.name
        try:
            self.values[node.name] = function(self, node)
        except Unsupported:
            del self.program.steps[made:], self.program.layers[made:]
            self.program.scratch = scratch
            raise

    def add(self, step: Any) -> None:
        """Add a step."""
        self.program.steps.append(step)
        self.program.layers.append(self.layer)

    def need_scratch(self, floats: int) -> None:
        """Ask for so many floats for each thread."""
        self.program.scratch = max(self.program.scratch, rounded(floats))

    def value(self, argument: Any) -> Value:
        """Return the value that an argument names.

        Raises:
            Unsupported: it is not one, but a constant, or not in float32.
        """
        found = self.values.get(argument) if isinstance(argument, Ref) else None
        if isinstance(found, Value):
            return found
        constant = self.graph.constants.get(argument) if isinstance(argument, Ref) else None
        if constant is None or constant.dtype != torch.float32:
            raise Unsupported(f"{argument!r} is not a value in float32")
        raise Unsupported(f"{argument} is a constant")

    def integer(self, argument: Any) -> int:
        """Return a size that an argument is or names."""
        found = self.sizes[argument] if isinstance(argument, Ref) else argument
        if not isinstance(found, int):
            raise Unsupported(f"{argument!r} is not a whole number")
        return found

    def integers(self, arguments: Iterable[Any]) -> list[int]:
        """Return sizes that arguments are or name."""
        return [self.integer(each) for each in arguments]

    def constant(self, argument: Any) -> Tensor | None:
        """Return a constant that an argument names, None for None."""
        if argument is None:
            return None
        return self.graph.constants[argument]

    def weight(self, argument: Any) -> Tensor | Connections:
        """Return a weight that an argument names."""
        return self.graph.weights[argument]

    def shape(self, node: Node) -> tuple[int, ...]:
        """Return the shape of what a node makes."""
        return tuple(self.sizes[node.name].shape)

    def keep(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return what was made before of the same `key`, or make it."""
        if key not in self.packed:
            self.packed[key] = make()
        return self.packed[key]

    def copy(self, source: Value, target: Value) -> Value:
        """Add a copy of one value into another of the same shape, and return that."""
        add_copy(self, source, target)
        return target

    def in_planes(self, value: Value, channel: int, *, padded: bool = True) -> tuple[Value, Planes]:
        """Return a value as planes, copied if it is not laid out so, or if kernels may not read whole lines of it."""
        found = Planes.of(value.form, channel)
        if found is None or (padded and not (found.padded and value.buffer.space == 0)):
            value = self.copy(value, Value.planes(value.shape, channel, wide=padded))
            found = Planes.of(value.form, channel)
            assert found is not None
        return value, found


def add_copy(lowering: Lowering, source: Value, target: Value) -> None:
    """Add a step that copies `source` into `target`, the dimensions merged and ordered for the kernel."""
    dims = [
        (size, a, b)
        for size, a, b in zip(source.shape, source.form.stride(), target.form.stride(), strict=True)
        if size != 1
    ]
    dims.sort(key=lambda d: -d[2])  # the target's inner dimension last
    merged: list[tuple[int, int, int]] = []
    for size, a, b in dims:
        if merged and merged[-1][1] == size * a and merged[-1][2] == size * b:
            merged[-1] = (merged[-1][0] * size, a, b)
        else:
            merged.append((size, a, b))
    if len(merged) > 2:  # the other dimension of the inner matrix is the source's inner one
        inner = min(range(len(merged) - 1), key=lambda d: merged[d][1])
        merged.insert(len(merged) - 2, merged.pop(inner))
    if len(merged) > 6:
        raise Unsupported("a copy of more than six dimensions")
    merged = [(1, 0, 0)] * (6 - len(merged)) + merged
    size, x_stride, y_stride = (tuple(each) for each in zip(*merged, strict=True))
    lowering.add(Copy(source.place, target.place, size, x_stride, y_stride))


VIEWS = (
    "aten.view.default",
    "aten.reshape.default",
    "aten._unsafe_view.default",
    "aten.flatten.using_ints",
    "aten.unflatten.int",
    "aten.permute.default",
    "aten.transpose.int",
    "aten.t.default",
    "aten.unsqueeze.default",
    "aten.squeeze.dim",
    "aten.squeeze.dims",
    "aten.squeeze.default",
    "aten.expand.default",
    "aten.slice.Tensor",
    "aten.select.int",
    "aten.narrow.default",
    "aten.alias.default",
    "aten.detach.default",
    "aten.clone.default",
    "aten.contiguous.default",
)


@lowers(*VIEWS)
def view(lowering: Lowering, node: Node) -> Value:
    """Look at the same memory in another way; copy it only where the memory does not allow that."""
    value = lowering.value(node.args[0])
    wanted = lowering.shape(node)
    form = value.form
    if node.op.split(".")[1] in ("alias", "detach", "clone", "contiguous"):
        return value
    if node.op.split(".")[1] in ("view", "reshape", "_unsafe_view", "flatten", "unflatten"):
        try:
            return Value(value.buffer, form.view(wanted))
        except RuntimeError:
            value = lowering.copy(value, Value.contiguous(value.shape))
            return Value(value.buffer, value.form.view(wanted))
    rest = [
        lowering.integers(a) if isinstance(a, list | tuple) else _plain(lowering, a) for a in node.args[1:]
    ]
    options = {key: _plain(lowering, a) for key, a in node.kwargs.items()}
    found = _function(node.op)(form, *rest, **options)
    if tuple(found.shape) != wanted or any(s < 0 for s in found.stride()):
        raise Unsupported(f"{node.op} of this shape")
    return Value(value.buffer, found)


def _plain(lowering: Lowering, argument: Any) -> Any:
    return lowering.integer(argument) if isinstance(argument, Ref) else argument


@lowers("aten.unbind.int", "aten.split.Tensor", "aten.chunk.default", "aten.split_with_sizes.default")
def pieces(lowering: Lowering, node: Node) -> list[Value]:
    """Look at each piece where it is."""
    value = lowering.value(node.args[0])
    rest = [
        lowering.integers(a) if isinstance(a, list | tuple) else _plain(lowering, a) for a in node.args[1:]
    ]
    options = {key: _plain(lowering, a) for key, a in node.kwargs.items()}
    return [Value(value.buffer, form) for form in _function(node.op)(value.form, *rest, **options)]


@lowers("getitem")
def getitem(lowering: Lowering, node: Node) -> Value:
    """Take one of several values."""
    found = lowering.values.get(node.args[0])
    if not isinstance(found, list):
        raise Unsupported("it is one of several results of torch")
    return found[node.args[1]]


def _function(op: str) -> Any:
    """Return torch's operator of this name."""
    namespace, name, overload = op.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), name), overload)
