"""Inference programs of a few operations, against torch's operators in float64."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from hypothesis import strategies as st
from machine import ISAS, threads, using
from torch import Tensor

from regrow.inference.graph import Connections, Graph, Node, Ref, Weight
from regrow.inference.plan import Call, Plan
from regrow.inference.reference import interpret

SIZES = st.sampled_from([1, 2, 3, 5, 8, 9, 15, 16, 17, 33, 40])
FEW = st.integers(1, 5)
SIDES = st.integers(1, 20)
SEEDS = st.integers(0, 10**6)
M_PERTURB = -6


@contextmanager
def garbage() -> Iterator[None]:
    """Let malloc give memory full of nan, where it is glibc's."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        yield
        return
    mallopt(M_PERTURB, 0x100)
    try:
        yield
    finally:
        mallopt(M_PERTURB, 0)


def graph_of(
    nodes: Sequence[Node],
    shapes: Sequence[tuple[int, ...]],
    constants: dict[str, Tensor],
    weights: dict[str, Weight] | None = None,
) -> Graph:
    """A graph with inputs x0, x1 and so on, whose output is the last node's value."""
    inputs = [Ref(f"x{i}") for i in range(len(shapes))]
    return Graph(
        inputs,
        [Ref(nodes[-1].name)],
        list(nodes),
        constants,
        weights or {},
        list(shapes),
        [torch.float32] * len(shapes),
        {"tuple": []},
        {"tensor": 0},
    )


def check(
    nodes: Sequence[Node],
    inputs: Sequence[Tensor],
    tolerance: float = 1e-5,
    weights: dict[str, Weight] | None = None,
    **constants: Tensor,
) -> Tensor:
    """Run a program on each instruction set, with one thread and with two, in memory full of nan; compare."""
    shapes = [tuple(x.shape) for x in inputs]
    graph = graph_of(nodes, shapes, constants, weights)
    wide = graph_of(
        nodes,
        shapes,
        {name: tensor.double() for name, tensor in constants.items()},
        {
            name: (weight.dense() if isinstance(weight, Connections) else weight).double()
            for name, weight in (weights or {}).items()
        },
    )
    (wanted,) = interpret(wide, [x.double() for x in inputs])
    found = None
    for isa in ISAS:
        with using(isa), garbage():
            plan = Plan(graph, shapes)
            assert not [call.reason for call in plan.calls if isinstance(call, Call)]
            results = []
            for number in (1, 2):
                with threads(number):
                    results += plan(inputs)
        assert torch.equal(results[0].view(torch.int32), results[1].view(torch.int32)), isa
        found = results[0]
        assert found.shape == wanted.shape
        finite = wanted[wanted.isfinite()]
        scale = max(1.0, float(finite.abs().max())) if len(finite) else 1.0
        torch.testing.assert_close(
            found.double(),
            wanted,
            rtol=tolerance,
            atol=tolerance * scale,
            equal_nan=True,
            msg=lambda m, i=isa: f"{i}: {m}",
        )
    assert found is not None
    return found


def random(*shape: int, seed: int = 0, strange: bool = False) -> Tensor:
    """Normal numbers, with some nan and inf."""
    torch.manual_seed(seed)
    x = torch.randn(shape) * 2
    if strange:
        for each in (float("nan"), float("inf"), -float("inf")):
            x[torch.rand(shape) < 0.02] = each
    return x


def node(op: str, *args: Any, name: str = "y", **kwargs: Any) -> Node:
    return Node(name, op, args, kwargs)


X0, X1, X2 = Ref("x0"), Ref("x1"), Ref("x2")
MADE = node("aten.add.Tensor", X0, 0, name="made")
"""The first input in memory of the program."""
WAYS = {
    "images": [],
    "planes": [MADE],
    "last": [node("aten.permute.default", X0, [0, 2, 3, 1], name="v")],
    "last of planes": [MADE, node("aten.permute.default", Ref("made"), [0, 2, 3, 1], name="v")],
    "some channels": [MADE, node("aten.slice.Tensor", Ref("made"), 1, 1, 2**31, name="v")],
    "patches": [
        MADE,
        node("aten.flatten.using_ints", Ref("made"), 2, name="f"),
        node("aten.transpose.int", Ref("f"), 1, 2, name="v"),
    ],
    "tokens": [],
    "vectors": [],
    "vectors made": [MADE],
}
LAYOUTS = tuple(WAYS)


def value(
    layout: str, seed: int, batch: int, channels: int, height: int, width: int, strange: bool
) -> tuple[list[Node], Tensor, Ref, tuple[int, ...]]:
    """An input, nodes that make it lie in some way, the value that they make, and its shape."""
    x = random(batch, channels + 1, height, width, seed=seed, strange=strange)
    if layout == "tokens":
        x = x[:, 1:, :, 0].transpose(1, 2).contiguous()
    elif layout.startswith("vectors"):
        x = x[:, 1:, 0, 0].contiguous()
    nodes = WAYS[layout]
    ref = Ref(nodes[-1].name) if nodes else X0
    found = x
    if nodes:
        found = interpret(graph_of(nodes, [tuple(x.shape)], {}), [x])[0]
    return list(nodes), x, ref, tuple(found.shape)


SHAPES = {"seed": SEEDS, "batch": FEW, "channels": SIZES, "height": SIDES, "width": SIDES}
ACTS = ("relu", "relu6", "silu", "gelu", "hardswish", "hardsigmoid", "sigmoid", "tanh")
