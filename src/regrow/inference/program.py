"""The program of a deployed network as text: JSON of plain data, checked whole when it is read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import torch

from regrow.errors import RegrowRuntimeError
from regrow.inference.graph import CONV, LINEAR, Connections, Graph, Node, Ref, allowed
from regrow.inference.structure import VALUES, Structure

LONGEST = 2**23
"""Bytes of a program; that of a network of 1,000 layers has a fortieth."""
DEEPEST = 8
"""Lists in lists: of an argument, of what a network takes and gives."""
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float32,
        torch.float64,
        torch.bfloat16,
        torch.float16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
}
PRECISIONS = ("float32", "bfloat16", "int8")
_KEYS = (
    "inputs",
    "outputs",
    "signature",
    "structure",
    "constants",
    "weights",
    "nodes",
    "dynamic",
    "cut",
    "precision",
)


class Damaged(Exception):
    """A program that nobody has written."""


def to_text(graph: Graph) -> str:
    """Return `graph` as text, but for its tensors.

    Raises:
        RegrowRuntimeError: it holds what a file cannot.
    """
    inputs = [
        {"name": name, "shape": list(shape), "dtype": _name_of(dtype)}
        for name, shape, dtype in zip(graph.inputs, graph.shapes, graph.dtypes, strict=True)
    ]
    weights = {
        name: list(weight.shape) if isinstance(weight, Connections) else None
        for name, weight in graph.weights.items()
    }
    nodes = [
        [node.name, node.op, [_plain(each) for each in node.args], _all_plain(node.kwargs), node.layer]
        for node in graph.nodes
    ]
    values = (
        inputs,
        graph.outputs,
        graph.signature,
        graph.structure,
        list(graph.constants),
        weights,
        nodes,
        graph.dynamic,
        graph.cut,
        graph.precision,
    )
    text = json.dumps(dict(zip(_KEYS, values, strict=True)), separators=(",", ":"))
    if len(text) > LONGEST:
        raise RegrowRuntimeError(f"a program of {len(text):,} bytes has no place in a file of {LONGEST:,}")
    return text


def _plain(value: Any) -> Any:
    """Return an argument as JSON has it."""
    if isinstance(value, Ref):
        return {"ref": str(value)}
    if isinstance(value, torch.dtype):
        return {"dtype": _name_of(value)}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, tuple):
        return {"tuple": [_plain(each) for each in value]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise RegrowRuntimeError(f"an argument of {type(value).__name__} has no place in a file")


def _all_plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _plain(value) for key, value in values.items()}


def _name_of(dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise RegrowRuntimeError(f"{name} has no place in a file, which takes {', '.join(DTYPES)}")
    return name


def _counts(found: Any) -> dict[str, int]:
    """Return numbers by name."""
    counts: dict[str, int] = _is(found, dict, "`cut`")
    _require(all(type(count) is int and count > 0 for count in counts.values()), "`cut` counts outputs")
    return counts


def from_text(text: str) -> tuple[Graph, dict[str, tuple[int, ...] | None]]:
    """Return the graph in `text` without its tensors, and the shape of each weight that is connections, else None.

    Raises:
        Damaged: what `to_text` does not return.
    """
    _require(len(text) <= LONGEST, f"a program has at most {LONGEST:,} bytes")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Damaged("its program is not JSON") from error
    _require(isinstance(found, dict) and found.keys() == set(_KEYS), f"a program is {', '.join(_KEYS)}")
    inputs, outputs = _list(found["inputs"], "inputs"), _list(found["outputs"], "outputs")
    for one in inputs:
        _require(isinstance(one, dict) and one.keys() == {"name", "shape", "dtype"}, "an input has no shape")
    graph = Graph(
        inputs=[Ref(_text(one["name"], "an input")) for one in inputs],
        outputs=[Ref(_text(one, "an output")) for one in outputs],
        nodes=[_node(one) for one in _list(found["nodes"], "nodes")],
        constants=dict.fromkeys(
            (_text(one, "a constant") for one in _list(found["constants"], "constants")),
            torch.empty(0, dtype=torch.float32, device="cpu"),
        ),
        weights={},
        signature=_structure(found["signature"], len(inputs)),
        structure=_structure(found["structure"], len(outputs)),
        shapes=[_shape(one["shape"]) for one in inputs],
        dtypes=[_dtype(one["dtype"]) for one in inputs],
        dynamic=_is(found["dynamic"], bool, "`dynamic`"),
        cut=_counts(found["cut"]),
        precision=_is(found["precision"], str, "`precision`"),
    )
    _require(graph.precision in PRECISIONS, f"`precision` is one of {', '.join(PRECISIONS)}")
    _require(bool(inputs) and bool(outputs), "a program has inputs and outputs")
    parts = graph.signature.get("tuple", [])
    _require([*map(list, parts)] == [["tuple"], ["dict"]], "`signature` is not that of a call")
    weights = {
        _text(name, "a weight"): None if shape is None else _shape(shape)
        for name, shape in _is(found["weights"], dict, "`weights`").items()
    }
    _check_order(graph, weights)
    return graph, weights


def _check_order(graph: Graph, weights: Mapping[str, Any]) -> None:
    """Refuse names that are there twice, and values that are used before they are there."""
    given = [*graph.inputs, *graph.constants, *weights]
    known = set(given)
    _require(len(known) == len(given), "it has two values of one name")
    for node in graph.nodes:
        for name in node.refs():
            _require(name in known, f"`{_short(node.name)}` uses `{_short(name)}` before it is there")
        _require(node.name not in known, f"it has two values of the name `{_short(node.name)}`")
        known.add(node.name)
    for output in graph.outputs:
        _require(output in known, f"its output `{_short(output)}` is not there")


def _node(found: Any) -> Node:
    _require(isinstance(found, list) and len(found) == 5, "an operation is name, op, arguments and layer")
    name, op, args, kwargs, layer = found
    _require(isinstance(op, str) and allowed(op), f"the operation {_short(op)!r} is not one of a network's")
    node = Node(
        name=_text(name, "an operation"),
        op=op,
        args=tuple(_argument(each) for each in _list(args, "arguments")),
        kwargs={key: _argument(value) for key, value in _is(kwargs, dict, "arguments").items()},
        layer=_is(layer, str, "a layer"),
    )
    if op in (CONV, LINEAR) and node.kwargs:
        _check_rounding(node)
    return node


def _check_rounding(node: Node) -> None:
    """Refuse a rounding of inputs that none is."""
    name = _short(node.name)
    right = node.kwargs.keys() == {"input_scale", "input_signed"} and isinstance(
        node.kwargs["input_signed"], bool
    )
    _require(right, f"`{name}` takes input_scale and input_signed")
    scale = node.kwargs["input_scale"]
    fits = isinstance(scale, float) and 1e-30 < scale < 1e30
    _require(fits, f"`{name}` cannot round its input to multiples of {_short(scale)}")


def _argument(value: Any, depth: int = 0) -> Any:
    _require(depth <= DEEPEST, "an argument has lists in lists in lists")
    if isinstance(value, list):
        return [_argument(each, depth + 1) for each in value]
    if isinstance(value, dict):
        _require(len(value) == 1, "an argument is plain data")
        ((kind, inside),) = value.items()
        if kind == "ref":
            return Ref(_text(inside, "a reference"))
        if kind == "dtype":
            return _dtype(inside)
        if kind == "tuple":
            return tuple(_argument(each, depth + 1) for each in _list(inside, "a tuple"))
        _require(kind == "float" and inside in ("inf", "-inf", "nan"), "an argument is plain data")
        return float(inside)
    _require(not isinstance(value, int) or -(2**63) <= value < 2**63, "a whole number has 64 bits")
    return value


def _structure(value: Any, count: int) -> Structure:
    """Return a structure around so many tensors, each of which is in it once."""
    numbers: list[int] = []

    def look(inside: Any, depth: int) -> None:
        _require(
            depth <= DEEPEST and isinstance(inside, dict) and len(inside) == 1, "a structure is plain data"
        )
        ((kind, content),) = inside.items()
        if kind == "tensor":
            numbers.append(_is(content, int, "a tensor's number"))
        elif kind in ("tuple", "list", "dict"):
            parts = (
                list(_is(content, dict, "a structure").values())
                if kind == "dict"
                else _list(content, "structure")
            )
            for part in parts:
                look(part, depth + 1)
        else:
            _require(kind == "value" and isinstance(content, VALUES), "a structure is plain data")

    look(value, 0)
    _require(sorted(numbers) == list(range(count)), "a structure does not name each tensor once")
    return dict(value)


def _shape(value: Any) -> tuple[int, ...]:
    sides = _list(value, "a shape")
    _require(all(type(side) is int and 0 <= side < 2**31 for side in sides), "a shape is whole numbers")
    _require(math.prod(side for side in sides if side) < 2**62, "a shape is too large")
    return tuple(sides)


def _dtype(value: Any) -> torch.dtype:
    _require(isinstance(value, str) and value in DTYPES, f"{_short(value)!r} is not a dtype")
    return DTYPES[value]


def _text(value: Any, what: str) -> str:
    _require(isinstance(value, str) and value != "", f"{what} has no name")
    return str(value)


def _list(value: Any, what: str) -> list[Any]:
    return list(_is(value, list, f"`{what}`"))


def _is(value: Any, kind: type, what: str) -> Any:
    _require(type(value) is kind, f"{what} is not a {kind.__name__}")
    return value


def _short(value: Any) -> str:
    return str(value)[:40]


def _require(good: bool, why: str) -> None:
    if not good:
        raise Damaged(why)
