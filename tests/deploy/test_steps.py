"""The steps between the layers of an inference program, against torch's operators in float64."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from machine import ISAS, threads, using
from torch import Tensor

from regrow.deploy.graph import AFFINE, Graph, Node, Ref
from regrow.deploy.plan import Call, Plan
from regrow.deploy.reference import interpret
from regrow.ops import native

pytestmark = pytest.mark.skipif(not native.available(), reason="the kernels were not built")

SIZES = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 40])
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


def graph_of(nodes: Sequence[Node], shapes: Sequence[tuple[int, ...]], constants: dict[str, Tensor]) -> Graph:
    """A graph with inputs x0, x1 and so on, whose output is the last node's value."""
    inputs = [Ref(f"x{i}") for i in range(len(shapes))]
    return Graph(
        inputs,
        [Ref(nodes[-1].name)],
        list(nodes),
        constants,
        {},
        list(shapes),
        [torch.float32] * len(shapes),
        {"tuple": []},
        {"tensor": 0},
    )


def check(
    nodes: Sequence[Node], inputs: Sequence[Tensor], tolerance: float = 1e-5, **constants: Tensor
) -> Tensor:
    """Run a program on each instruction set, with one thread and with two, in memory full of nan; compare."""
    shapes = [tuple(x.shape) for x in inputs]
    graph = graph_of(nodes, shapes, constants)
    wide = graph_of(nodes, shapes, {name: tensor.double() for name, tensor in constants.items()})
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
TURN = node("aten.permute.default", X0, [0, 2, 3, 1], name="turned")  # channels last
LAYOUTS = ("images", "last", "tokens", "vectors")


def value(
    layout: str, seed: int, batch: int, channels: int, height: int, width: int, strange: bool
) -> tuple[list[Node], Tensor, Ref]:
    """An input that lies in one of several ways, and the nodes that make it so."""
    if layout == "images":
        return [], random(batch, channels, height, width, seed=seed, strange=strange), X0
    if layout == "last":
        return [TURN], random(batch, channels, height, width, seed=seed, strange=strange), Ref("turned")
    if layout == "tokens":
        return [], random(batch, height, channels, seed=seed, strange=strange), X0
    return [], random(batch, channels, seed=seed, strange=strange), X0


shapes = {"seed": SEEDS, "batch": FEW, "channels": SIZES, "height": SIDES, "width": SIDES}
ACTIVATIONS = ("relu", "relu6", "silu", "gelu", "hardswish", "hardsigmoid", "sigmoid", "tanh")


@settings(deadline=None, max_examples=60)
@given(layout=st.sampled_from(LAYOUTS), op=st.sampled_from(ACTIVATIONS), strange=st.booleans(), **shapes)
def test_activations(layout: str, op: str, strange: bool, **sizes: int) -> None:
    before, x, ref = value(layout, strange=strange, **sizes)
    check([*before, node(f"aten.{op}.default", ref)], [x])


@pytest.mark.parametrize(
    ("op", "limits"),
    [
        ("hardtanh", (0, 6)),
        ("hardtanh", (0.0, 6.0)),
        ("clamp", (0, None)),
        ("clamp", (0.0,)),
        ("clamp_min", (0,)),
    ],
)
def test_limits(op: str, limits: tuple[float, ...]) -> None:
    check([node(f"aten.{op}.default", X0, *limits)], [random(2, 5, 7, 7, strange=True) * 3])


@settings(deadline=None, max_examples=80)
@given(
    layout=st.sampled_from(LAYOUTS),
    op=st.sampled_from(["add", "sub", "mul", "div"]),
    act=st.sampled_from([None, *ACTIVATIONS]),
    strange=st.booleans(),
    **shapes,
)
def test_two_values(layout: str, op: str, act: str | None, strange: bool, **sizes: int) -> None:
    before, x, ref = value(layout, strange=strange, **sizes)
    other = random(*x.shape, seed=sizes["seed"] + 1)
    if layout == "last":
        other = other.permute(0, 2, 3, 1).contiguous()
    nodes = [*before, node(f"aten.{op}.Tensor", ref, X1, name="s")]
    nodes.append(node(f"aten.{act}.default", Ref("s")) if act else node("aten.alias.default", Ref("s")))
    check(nodes, [x, other], tolerance=1e-5 if act in (None, "relu") else 3e-5)


@settings(deadline=None, max_examples=80)
@given(
    layout=st.sampled_from(LAYOUTS),
    op=st.sampled_from(["add", "sub", "mul", "div", "rsub"]),
    what=st.sampled_from(["number", "whole", "channel", "row", "positions", "one"]),
    constant=st.booleans(),
    **shapes,
)
def test_a_value_and_something_smaller(layout: str, op: str, what: str, constant: bool, **sizes: int) -> None:
    before, x, ref = value(layout, strange=False, **sizes)
    shape = (x.permute(0, 2, 3, 1) if layout == "last" else x).shape
    channel = 1 if layout == "images" else len(shape) - 1
    if what in ("number", "whole"):
        number = 3 if what == "whole" else -1.5
        check([*before, node(f"aten.{op}.{'Scalar' if op == 'rsub' else 'Tensor'}", ref, number)], [x])
        return
    small = {
        "channel": [s if d in (0, channel) else 1 for d, s in enumerate(shape)],
        "row": [shape[-1]],
        "positions": [1, *shape[1:]],
        "one": [1],
    }[what]
    other = random(*small, seed=sizes["seed"] + 1)
    nodes = [*before, node(f"aten.{op}.Tensor", ref, Ref("c") if constant else X1)]
    check(nodes, [x] if constant else [x, other], **({"c": other} if constant else {}))


@settings(deadline=None, max_examples=20)
@given(alpha=st.sampled_from([2, -0.5]), op=st.sampled_from(["add", "sub"]), **shapes)
def test_a_multiple_is_added(alpha: float, op: str, **sizes: int) -> None:
    _, x, _ = value("images", strange=False, **sizes)
    check([node(f"aten.{op}.Tensor", X0, X1, alpha=alpha)], [x, x.flip(0) + 1])


@settings(deadline=None, max_examples=30)
@given(
    layout=st.sampled_from(LAYOUTS[:1] + LAYOUTS[3:]), act=st.sampled_from([None, "relu", "silu"]), **shapes
)
def test_affine(layout: str, act: str | None, **sizes: int) -> None:
    before, x, ref = value(layout, strange=True, **sizes)
    scale, shift = (random(x.shape[1], seed=sizes["seed"] + i) for i in (1, 2))
    check([*before, node(AFFINE, ref, Ref("a"), Ref("b"), act)], [x], a=scale, b=shift)


def test_an_activation_leaves_a_sum_that_others_read() -> None:
    nodes = [
        node("aten.add.Tensor", X0, X1, name="s"),
        node("aten.relu.default", Ref("s"), name="r"),
        node("aten.mul.Tensor", Ref("s"), Ref("r")),
    ]
    check(nodes, [random(1, 3, 5, 5), random(1, 3, 5, 5, seed=1)])
    nodes = [
        node("aten.add.Tensor", X0, X1, name="s"),
        node("aten.view.default", Ref("s"), [1, 3, 25], name="v"),
        node("aten.relu.default", Ref("v"), name="r"),
        node("aten.view.default", Ref("r"), [1, 3, 5, 5], name="w"),
        node("aten.mul.Tensor", Ref("s"), Ref("w")),
    ]
    check(nodes, [random(1, 3, 5, 5), random(1, 3, 5, 5, seed=1)])


@st.composite
def windows(draw: st.DrawFn, greatest: bool) -> dict[str, Any]:
    kernel = [draw(st.integers(1, 5)), draw(st.integers(1, 5))]
    dilation = [draw(st.integers(1, 2)), draw(st.integers(1, 3))] if greatest else [1, 1]
    padding = [draw(st.integers(0, k // 2)) for k in kernel]
    least = [(k - 1) * d + 1 - 2 * p for k, d, p in zip(kernel, dilation, padding, strict=True)]
    size = [max(1, least[i]) + draw(st.integers(0, 20)) for i in range(2)]
    return {
        "shape": [draw(FEW), draw(st.integers(1, 6)), *size],
        "kernel": kernel,
        "stride": draw(st.sampled_from([[], [1, 1], [2, 2], [1, 2], [2, 1], [3, 4]])),
        "padding": padding,
        "dilation": dilation,
        "ceil": draw(st.booleans()),
        "count": draw(st.booleans()),
        "divisor": draw(st.sampled_from([None, None, 3])),
        "seed": draw(SEEDS),
    }


@settings(deadline=None, max_examples=100)
@given(case=windows(True), strange=st.booleans())
def test_max_pool(case: dict[str, Any], strange: bool) -> None:
    x = random(*case["shape"], seed=case["seed"], strange=strange)
    args = (case["kernel"], case["stride"], case["padding"], case["dilation"], case["ceil"])
    check([node("aten.max_pool2d.default", X0, *args)], [x])


@settings(deadline=None, max_examples=100)
@given(case=windows(False), strange=st.booleans())
def test_average_pool(case: dict[str, Any], strange: bool) -> None:
    x = random(*case["shape"], seed=case["seed"], strange=strange)
    args = (case["kernel"], case["stride"], case["padding"], case["ceil"], case["count"], case["divisor"])
    check([node("aten.avg_pool2d.default", X0, *args)], [x])


@settings(deadline=None, max_examples=60)
@given(out=st.tuples(st.integers(1, 9), st.integers(1, 9)), **shapes)
def test_adaptive_pool(out: tuple[int, int], **sizes: int) -> None:
    before, x, ref = value("images", strange=False, **sizes)
    check([*before, node("aten.adaptive_avg_pool2d.default", ref, list(out))], [x])


@settings(deadline=None, max_examples=80)
@given(
    layout=st.sampled_from(LAYOUTS),
    dims=st.sets(st.integers(-2, 1), min_size=1),
    keep=st.booleans(),
    strange=st.booleans(),
    **shapes,
)
def test_mean(layout: str, dims: set[int], keep: bool, strange: bool, **sizes: int) -> None:
    before, x, ref = value(layout, strange=strange, **sizes)
    over = sorted({d % x.dim() for d in dims})
    check([*before, node("aten.mean.dim", ref, over, keep)], [x])


def test_squeeze_and_excitation() -> None:
    nodes = [
        node("aten.relu.default", X0, name="x"),
        node("aten.mean.dim", Ref("x"), [2, 3], True, name="m"),
        node("aten.hardsigmoid.default", Ref("m"), name="s"),
        node("aten.mul.Tensor", Ref("x"), Ref("s")),
    ]
    for shape in ((1, 16, 7, 7), (3, 5, 9, 4), (2, 7, 1, 1)):
        check(nodes, [random(*shape)])


def test_a_program_that_writes_outside_is_refused() -> None:
    graph = graph_of([node("aten.add.Tensor", X0, X1)], [(1, 3, 5, 5)] * 2, {})
    plan = Plan(graph, graph.shapes)
    (call,) = plan.calls
    inputs = [random(1, 3, 5, 5)] * 2
    refused = 0
    for i in range(4, len(call.code)):
        for number in (-1, 2**20, 2**62, -(2**62)):
            code = call.code.clone()
            code[i] = number
            try:
                torch.ops.regrow_native.infer(code, call.program.constants, inputs, call.shapes)
            except RuntimeError:
                refused += 1
    assert refused > len(call.code)
