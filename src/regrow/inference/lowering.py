"""`Lowering`: from operations on named values to steps of an inference program; layers and views."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from regrow.inference.graph import Connections, Graph, Node, Ref
from regrow.inference.steps import DIMENSIONS, NONE, SLACK, Buffer, Copy, Program, rounded
from regrow.inference.values import Planes, Value, merged

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
    name: str = ""
    """Of the node being lowered."""
    maker: str = ""
    """Name of the node that the last step belongs to."""
    _uses: Counter[str] = field(default_factory=Counter)

    def lower(self, node: Node) -> None:
        """Add the steps of one operation.

        Raises:
            Unsupported: the kernels do not do it; no step was added.
        """
        function = LOWER.get(node.op)
        if function is None:
            raise Unsupported(f"there is no kernel for {node.op}")
        made, scratch, maker = len(self.program.steps), self.program.scratch, self.maker
        self.name, self.layer = node.name, node.layer or node.name
        try:
            self.values[node.name] = function(self, node)
        except Unsupported:
            del self.program.steps[made:], self.program.layers[made:]
            self.program.scratch, self.maker = scratch, maker
            raise

    def add(self, step: Any) -> None:
        """Add a step."""
        self.program.steps.append(step)
        self.program.layers.append(self.layer)
        self.maker = self.name

    def need_scratch(self, floats: int) -> None:
        """Ask for so many floats for each thread."""
        self.program.scratch = max(self.program.scratch, rounded(floats))

    def value(self, argument: Any) -> Value:
        """Return the value that an argument names: a constant too.

        Raises:
            Unsupported: it is not in float32.
        """
        found = self.values.get(argument) if isinstance(argument, Ref) else None
        if isinstance(found, Value):
            return found
        constant = self.graph.constants.get(argument) if isinstance(argument, Ref) else None
        if constant is None or constant.dtype != torch.float32:
            raise Unsupported(f"{argument!r} is not a value in float32")
        return self.read(constant)

    def read(self, tensor: Tensor, form: Tensor | None = None) -> Value:
        """Return a value that steps read from a constant; `form` says how it lies there."""
        buffer = Buffer(tensor.numel(), NONE - 1 - self.program.constant(tensor))
        return Value(buffer, torch.empty(tensor.shape, device="meta") if form is None else form)

    def is_used_once(self, name: Ref) -> bool:
        """Return whether one node alone reads a value."""
        if not self._uses:
            self._uses.update(ref for node in self.graph.nodes for ref in node.refs())
            self._uses.update(self.graph.outputs)
        return self._uses[name] == 1

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

    def lay(self, source: Value, target: Value) -> Value:
        """Return `source` as it is laid out in `target`, a new value: copied by a step, or a constant now and once."""
        if source.buffer.space >= NONE:
            return self.copy(source, target)
        tensor = self.program.constants[NONE - 1 - source.buffer.space]

        def make() -> tuple[Tensor, Tensor]:
            memory = torch.zeros(target.buffer.size + SLACK, dtype=torch.float32, device="cpu")
            _as(memory, target.form).copy_(_as(tensor, source.form))
            return memory, tensor  # which stays alive, and so keeps its id

        key = ("laid", id(tensor), *(_key(form) for form in (source.form, target.form)))
        memory: Tensor = self.keep(key, make)[0]
        return self.read(memory, target.form)

    def in_planes(
        self, value: Value, channel: int, *, pixels: int | None = None, slack: bool = True
    ) -> tuple[Value, Planes]:
        """Return a value as planes, copied if it is not laid out so.

        Args:
            value: any.
            channel: the dimension whose planes they are.
            pixels: how many there must be in an image. Default: any.
            slack: whether kernels read whole vectors, and so beyond the last pixel.
        """
        found = Planes.of(value.form, channel)
        if found is None or (pixels or found.pixels) != found.pixels or (slack and value.buffer.space):
            return self.laid_in_planes(value, channel)
        return value, found

    def laid_in_planes(self, value: Value, channel: int) -> tuple[Value, Planes]:
        """Return a value copied into planes of its own."""
        value = self.lay(value, Value.planes(value.shape, channel))
        found = Planes.of(value.form, channel)
        assert found is not None
        return value, found


def _as(tensor: Tensor, form: Tensor) -> Tensor:
    return tensor.as_strided(form.shape, form.stride(), int(form.storage_offset()))


def _key(form: Tensor) -> tuple[Any, ...]:
    return (tuple(form.shape), form.stride(), form.storage_offset())


def add_copy(lowering: Lowering, source: Value, target: Value) -> None:
    """Add a step that copies `source` into `target`, the dimensions merged and ordered for the kernel."""
    strides = zip(source.form.stride(), target.form.stride(), strict=True)
    dims = [(size, [*pair]) for size, pair in zip(source.shape, strides, strict=True)]
    found = merged(sorted(dims, key=lambda d: -d[1][1]))  # the target's inner dimension last
    if len(found) > 2:  # the other dimension of the inner matrix is the source's inner one
        inner = min(range(len(found) - 1), key=lambda d: found[d][1][0])
        found.insert(len(found) - 2, found.pop(inner))
    if len(found) > DIMENSIONS:
        raise Unsupported("a copy of more than six dimensions")
    found = [(1, [0, 0])] * (DIMENSIONS - len(found)) + found
    x_stride, y_stride = (tuple(each[i] for _, each in found) for i in (0, 1))
    lowering.add(Copy(source.place, target.place, tuple(size for size, _ in found), x_stride, y_stride))


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
            value = lowering.lay(value, Value.contiguous(value.shape))
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
        raise Unsupported("it takes one of several results of torch")
    piece: Value = found[node.args[1]]
    return piece


def _function(op: str) -> Any:
    """Return torch's operator of this name."""
    namespace, name, overload = op.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), name), overload)
