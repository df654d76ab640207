"""`trace`: from a trained network to a `Graph`, by `torch.export`."""

from __future__ import annotations

import io
import logging
import operator
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor, fx, nn

from regrow._torch import Operator, guards_of
from regrow.errors import RegrowValueError
from regrow.inference.graph import Connections, Graph, Node, Ref, Weight, allowed, refs_in, weight_of
from regrow.inference.plain import as_float32, plain_copy
from regrow.inference.structure import Structure, flatten, unflatten

INTEGERS = {
    operator.add: "int.add",
    operator.sub: "int.sub",
    operator.mul: "int.mul",
    operator.floordiv: "int.floordiv",
    operator.mod: "int.mod",
}
RENAMED = {
    "aten._unsafe_view.default": "aten.view.default",
    "aten.empty_like.default": "aten.zeros_like.default",
    **{
        f"aten.__{name}__.{kind}": f"aten.bitwise_{name}.{kind}"
        for name in ("and", "or", "xor")
        for kind in ("Tensor", "Scalar")
    },
}
FACTORIES = {
    "aten.zeros.default": 0,
    "aten.ones.default": 1,
    "aten.empty.memory_format": 0,
    "aten.full.default": None,
}
"""Operators that make a tensor of a size, and what they fill it with, which the second argument says otherwise."""
DROPPED = ("device", "layout", "memory_format", "pin_memory")
"""Arguments that say where and how a tensor lies, which a graph leaves open."""
WEIGHED = ("aten.conv2d.default", "aten.conv2d.padding", "aten.linear.default")


class NotTraceable(RegrowValueError):
    """The network's code cannot be followed; the message says why."""


def trace(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    any_batch: bool = True,
) -> Graph:
    """Follow one forward pass of `model` in evaluation mode and return what it computes, batch norms still apart.

    The graph is in float32, whatever the model is in; sparse weights are connections, and so is any dense weight of a
    linear layer or 2-D convolution of which half is zero. The model is left as it is. Forward hooks are followed too,
    with tensors that have no data.

    Args:
        model: masked, compressed or dense.
        args: positional arguments of an example, with the batch as the first dimension of its tensors.
        kwargs: keyword arguments of it.
        any_batch: whether the graph is for batches of any size, where the code allows it.

    Raises:
        NotTraceable: the code decides by values, writes to its buffers or arguments, draws random numbers, or returns
            something besides tensors.
    """
    tensors: list[Tensor] = []
    try:
        signature = flatten((tuple(args), dict(kwargs or {})), tensors)
    except TypeError as error:
        raise NotTraceable(f"the example holds {error}") from error
    if not tensors:
        raise NotTraceable("the example holds no tensor")
    with _quietly():
        try:
            network, held = plain_copy(model)
        except Exception as error:  # of the user's __deepcopy__, or of what cannot be copied
            raise NotTraceable(f"{type(model).__name__} cannot be copied: {_reason(error)}") from error
        example = [as_float32(tensor.detach()) for tensor in tensors]
        return _traced(_Flat(network, signature), held, example, any_batch)


def _traced(flat: _Flat, held: dict[str, Weight], example: list[Tensor], any_batch: bool) -> Graph:
    """Trace for any batch, or for the example's alone where that fails or is not wanted."""
    graph = _dynamic(flat, held, example) if any_batch else None
    if graph is not None:
        return graph
    try:
        program = torch.export.export(flat, tuple(example)).run_decompositions({})
    except Exception as error:  # whatever the user's code raises
        raise NotTraceable(f"{type(flat.model).__name__} cannot be traced: {_reason(error)}") from error
    return _Reader(program, held, flat).graph(example)


def _dynamic(flat: _Flat, held: dict[str, Weight], example: list[Tensor]) -> Graph | None:
    """Trace for any batch, or return None where that fails, or where the inputs are not of one batch."""
    if len({len(tensor) for tensor in example if tensor.dim()}) > 1:
        return None
    doubled = [
        torch.cat([tensor, tensor]) if tensor.dim() and len(tensor) == 1 else tensor for tensor in example
    ]  # to torch.export, a batch of one is not a batch of any size
    sizes = tuple({0: torch.export.Dim.AUTO} if tensor.dim() else None for tensor in doubled)
    try:
        program = torch.export.export(flat, tuple(doubled), dynamic_shapes=(sizes,)).run_decompositions({})
        return _Reader(program, held, flat).graph(example) if is_dynamic(program) else None
    except Exception:  # the attempt for the example's batch says why
        return None


def is_dynamic(program: Any) -> bool:
    """Return whether a program computes the model for any batch, the same of all inputs that have one."""
    nodes = {node.name: node for node in program.graph.nodes}
    inputs = [nodes[name].meta["val"] for name in program.graph_signature.user_inputs]
    free = all(isinstance(tensor.shape[0], torch.SymInt) for tensor in inputs if tensor.dim())
    equal = all(_says_equal(guard) for guard in guards_of(program))
    ranges = program.range_constraints.values()
    return free and equal and all(each.lower <= 2 and each.upper > 2**40 for each in ranges)


def _says_equal(guard: str) -> bool:
    """Return whether a guard says that the batches of two inputs are equal, which they are anyway."""
    sides = guard.split(" == ")
    return len(sides) == 2 and all(side.startswith("L['") and side.endswith("].size()[0]") for side in sides)


def _reason(error: BaseException) -> str:
    """Return what an error says, in a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]


@contextmanager
def _quietly() -> Iterator[None]:
    """Trace without gradients, autocast and fused operators, and keep random numbers, warnings and messages to
    itself.
    """
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with (
            without_fast_attention(),
            torch.no_grad(),
            torch.autocast("cpu", enabled=False),
            torch.random.fork_rng(devices=[]),
            warnings.catch_warnings(),
            redirect_stderr(io.StringIO()),  # torch prints the graph so far when it gives up
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def without_fast_attention() -> Iterator[bool]:
    """Run torch's transformers operator by operator, as in training; yield whether fused operators were allowed.

    These leave out what is masked: those outputs are zero, or not there at all.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield fast
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class _Returned:
    """The structure of what the model returned: an object of its own, since export undoes what a module notes."""

    structure: Structure


class _Flat(nn.Module):
    """Calls `model` with a row of tensors and returns a row of tensors."""

    def __init__(self, model: nn.Module, signature: Structure) -> None:
        super().__init__()
        self.model = model
        self.signature = signature
        self.returned = _Returned()
        self.train(False)

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        args, kwargs = unflatten(self.signature, tensors)
        outputs: list[Tensor] = []
        self.returned.structure = flatten(self.model(*args, **kwargs), outputs)
        return outputs


class _Reader:
    """Reads a graph of torch.fx."""

    def __init__(self, program: Any, held: dict[str, Weight], flat: _Flat) -> None:
        self._program = program
        self._flat = flat
        self._held = held
        self._names: dict[fx.Node, Ref] = {}
        self._taken: set[str] = set()
        self._constants: dict[str, Tensor] = {}
        self._nodes: list[Node] = []
        self._inputs: list[Ref] = []

    def graph(self, example: list[Tensor]) -> Graph:
        """Return the graph."""
        self._refuse_writes()
        nodes = list(self._program.graph.nodes)
        outputs = next(node for node in nodes if node.op == "output").args[0]
        needed = self._needed(outputs)
        targets = {spec.arg.name: spec for spec in self._program.graph_signature.input_specs}
        users = set(self._program.graph_signature.user_inputs)
        tensors: dict[str, Tensor] = {}
        for node in nodes:
            if node.op == "placeholder" and node.name not in users and node in needed:
                name = targets[node.name].target.removeprefix("model.")
                self._taken.add(name)
                self._names[node] = Ref(name)
                tensors[name] = self._tensor(targets[node.name].target)
        for node in nodes:
            if node.op == "placeholder" and node.name in users:
                self._inputs.append(self._name(node))
        for node in nodes:
            if node.op == "call_function" and node in needed:
                self._take(node)
        weights = self._weights(tensors, [self._ref(node) for node in outputs])
        self._constants |= {name: self._dense(name, tensors[name]) for name in tensors if name not in weights}
        return Graph(
            inputs=self._inputs,
            outputs=[self._ref(node) for node in outputs],
            nodes=self._nodes,
            constants=self._constants,
            weights=weights,
            shapes=[tuple(tensor.shape) for tensor in example],
            dtypes=[tensor.dtype for tensor in example],
            signature=self._flat.signature,
            structure=self._flat.returned.structure,
            dynamic=is_dynamic(self._program),
        )

    def _refuse_writes(self) -> None:
        for spec in self._program.graph_signature.output_specs:
            if spec.target is not None:
                what = spec.target.removeprefix("model.")
                raise NotTraceable(f"{self._model} writes to `{what}` in its forward pass")

    @property
    def _model(self) -> str:
        return type(self._flat.model).__name__

    def _needed(self, outputs: Sequence[fx.Node]) -> set[fx.Node]:
        """Return the nodes that the outputs need."""
        needed: set[fx.Node] = set()
        waiting = list(outputs)
        while waiting:
            node = waiting.pop()
            if node not in needed:
                needed.add(node)
                waiting += node.all_input_nodes
        return needed

    def _tensor(self, target: str) -> Tensor:
        program = self._program
        tensor = program.state_dict[target] if target in program.state_dict else program.constants[target]
        if not isinstance(tensor, Tensor):
            raise NotTraceable(f"{self._model} uses an object of {type(tensor).__name__}")
        return tensor.detach()

    def _name(self, node: fx.Node) -> Ref:
        name = node.name
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        self._names[node] = Ref(name)
        return self._names[node]

    def _take(self, node: fx.Node) -> None:
        """Take over one call of a function."""
        target: Any = node.target
        if target is operator.getitem:
            op = "getitem"
        elif target in INTEGERS:
            op = INTEGERS[target]
        else:
            op = str(target)
        op = RENAMED.get(op, op)
        args = [self._value(each) for each in node.args]
        kwargs = {key: self._value(each) for key, each in node.kwargs.items() if key not in DROPPED}
        name = self._name(node)
        layer = _layer(node, args if op in WEIGHED else ())
        if (
            isinstance(target, Operator)
            and not any(True for _ in node.all_input_nodes)
            and op.startswith("aten.")
        ):
            self._constants[name] = self._made(target, node, layer)
            return
        if op in FACTORIES and self._inputs:
            fill = args[1] if FACTORIES[op] is None else FACTORIES[op]
            op, args, kwargs = (
                "aten.new_full.default",
                [self._inputs[0], args[0], fill],
                {"dtype": node.meta["val"].dtype},
            )
        if not allowed(op):
            raise NotTraceable(
                f"{self._model} uses {op} in {_where(layer)}, which is no function of tensors alone"
            )
        if op == "aten.index.Tensor" and any(
            each.meta["val"].dtype in (torch.bool, torch.uint8) for each in node.all_input_nodes[1:]
        ):
            raise NotTraceable(
                f"{self._model} selects by a mask in {_where(layer)}: its values decide a shape"
            )
        if op.startswith("aten.scaled_dot_product_attention") and self._dropout(args, kwargs):
            raise NotTraceable(
                f"{self._model} drops attention at random in {_where(layer)}, in evaluation mode too"
            )
        self._nodes.append(Node(name, op, tuple(args), kwargs, layer))

    def _dropout(self, args: list[Any], kwargs: dict[str, Any]) -> Any:
        return args[4] if len(args) > 4 else kwargs.get("dropout_p", 0)

    def _made(self, target: Any, node: fx.Node, layer: str) -> Tensor:
        """Return the tensor that an operator makes of nothing, unless it does so at random."""
        if torch.Tag.nondeterministic_seeded in target.tags:
            raise NotTraceable(
                f"{self._model} draws random numbers in {_where(layer)}, in evaluation mode too"
            )
        made: Tensor = target(
            *node.args, **{**node.kwargs, **({"device": "cpu"} if "device" in node.kwargs else {})}
        )
        return made

    def _value(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            return self._ref(value)
        if isinstance(value, list | tuple):
            return [self._value(each) for each in value]
        if value is None or isinstance(value, bool | int | float | str | torch.dtype):
            return value
        if isinstance(value, torch.memory_format | torch.layout | torch.device):
            return None
        raise NotTraceable(f"{self._model} hands an operator a {type(value).__name__}")

    def _ref(self, node: fx.Node) -> Ref:
        return self._names[node]

    def _weights(self, tensors: dict[str, Tensor], outputs: list[Ref]) -> dict[str, Any]:
        """Return the tensors that are weights of linear layers and convolutions and nothing else."""
        elsewhere = set(outputs)
        read: dict[str, None] = {}
        for node in self._nodes:
            weighed = node.op in WEIGHED
            if weighed and isinstance(node.args[1], Ref) and node.args[1] in tensors:
                read[node.args[1]] = None
            others = [each for index, each in enumerate(node.args) if not (weighed and index == 1)]
            elsewhere |= set(refs_in([*others, *node.kwargs.values()]))
        sparse = {name: self._held.get(name, tensors[name]) for name in read if name not in elsewhere}
        return {name: weight_of(w) if isinstance(w, Tensor) else w for name, w in sparse.items()}

    def _dense(self, name: str, tensor: Tensor) -> Tensor:
        weight = self._held.get(name, tensor)
        return weight.dense() if isinstance(weight, Connections) else weight


def _layer(node: fx.Node, args: Sequence[Any]) -> str:
    """Return the name of the module that a node comes from; with `args`, of the one inside it that owns the weight."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    name = str(stack[-1][0]) if stack and isinstance(stack[-1], tuple) else ""
    inside, _, name = name.partition(".")
    if inside != "model":  # torch.export's own name for what is in no module
        name = ""
    owner = str(args[1]).rpartition(".")[0] if args else ""
    return owner if owner.startswith(f"{name}." if name else "") else name


def _where(layer: str) -> str:
    return f"`{layer}`" if layer else "its forward pass"
