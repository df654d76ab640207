"""The steps between the layers of an inference program, against torch's operators in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inference.programs import (
    ACTS,
    FEW,
    LAYOUTS,
    SEEDS,
    SHAPES,
    WAYS,
    X0,
    X1,
    check,
    graph_of,
    node,
    random,
    value,
)

from regrow.inference.graph import AFFINE, Ref
from regrow.inference.plan import Plan
from regrow.ops import native

pytestmark = pytest.mark.skipif(not native.available(), reason="the kernels were not built")


@settings(deadline=None, max_examples=60)
@given(layout=st.sampled_from(LAYOUTS), op=st.sampled_from(ACTS), strange=st.booleans(), **SHAPES)
def test_activations(layout: str, op: str, strange: bool, **sizes: int) -> None:
    before, x, ref, _ = value(layout, strange=strange, **sizes)
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
    act=st.sampled_from([None, *ACTS]),
    strange=st.booleans(),
    **SHAPES,
)
def test_two_values(layout: str, op: str, act: str | None, strange: bool, **sizes: int) -> None:
    before, x, ref, shape = value(layout, strange=strange, **sizes)
    other = random(*shape, seed=sizes["seed"] + 1)
    nodes = [*before, node(f"aten.{op}.Tensor", ref, X1, name="s")]
    nodes.append(node(f"aten.{act}.default", Ref("s")) if act else node("aten.alias.default", Ref("s")))
    check(nodes, [x, other], tolerance=1e-5 if act in (None, "relu") else 3e-5)


@settings(deadline=None, max_examples=80)
@given(
    layout=st.sampled_from(LAYOUTS),
    op=st.sampled_from(["add", "sub", "mul", "div", "rsub"]),
    what=st.sampled_from(["number", "whole", "channel", "row", "positions", "one"]),
    constant=st.booleans(),
    **SHAPES,
)
def test_a_value_and_something_smaller(layout: str, op: str, what: str, constant: bool, **sizes: int) -> None:
    before, x, ref, shape = value(layout, strange=False, **sizes)
    channel = 1 if layout in ("images", "planes", "some channels") else len(shape) - 1
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
@given(alpha=st.sampled_from([2, -0.5]), op=st.sampled_from(["add", "sub"]), **SHAPES)
def test_a_multiple_is_added(alpha: float, op: str, **sizes: int) -> None:
    _, x, _, _ = value("images", strange=False, **sizes)
    check([node(f"aten.{op}.Tensor", X0, X1, alpha=alpha)], [x, x.flip(0) + 1])


@settings(deadline=None, max_examples=30)
@given(layout=st.sampled_from(LAYOUTS), act=st.sampled_from([None, "relu", "silu"]), **SHAPES)
def test_affine(layout: str, act: str | None, **sizes: int) -> None:
    before, x, ref, shape = value(layout, strange=True, **sizes)
    scale, shift = (random(shape[1], seed=sizes["seed"] + i) for i in (1, 2))
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
@given(out=st.tuples(st.integers(1, 9), st.integers(1, 9)), **SHAPES)
def test_adaptive_pool(out: tuple[int, int], **sizes: int) -> None:
    before, x, ref, _ = value("planes", strange=False, **sizes)
    check([*before, node("aten.adaptive_avg_pool2d.default", ref, list(out))], [x])


@settings(deadline=None, max_examples=80)
@given(
    layout=st.sampled_from(LAYOUTS),
    dims=st.sets(st.integers(-2, 1), min_size=1),
    keep=st.booleans(),
    strange=st.booleans(),
    **SHAPES,
)
def test_mean(layout: str, dims: set[int], keep: bool, strange: bool, **sizes: int) -> None:
    before, x, ref, shape = value(layout, strange=strange, **sizes)
    over = sorted({d % len(shape) for d in dims})
    check([*before, node("aten.mean.dim", ref, over, keep)], [x])


@settings(deadline=None, max_examples=60)
@given(
    layout=st.sampled_from(LAYOUTS),
    dim=st.integers(-2, 1),
    parts=st.integers(1, 3),
    stack=st.booleans(),
    **SHAPES,
)
def test_cat(layout: str, dim: int, parts: int, stack: bool, **sizes: int) -> None:
    before, x, ref, _ = value(layout, strange=False, **sizes)
    name = "stack" if stack else "cat"
    scaled = [node("aten.mul.Tensor", ref, i + 2, name=f"part{i}") for i in range(parts)]
    nodes = [*before, *scaled, node(f"aten.{name}.default", [ref, *(Ref(each.name) for each in scaled)], dim)]
    check(nodes, [x])


def test_a_token_goes_before_the_others() -> None:
    nodes = [
        *WAYS["patches"],
        node("aten.expand.default", Ref("c"), [3, -1, -1], name="token"),
        node("aten.cat.default", [Ref("token"), Ref("v")], 1),
    ]
    check(nodes, [random(3, 5, 4, 4)], c=random(1, 1, 5, seed=1))


@settings(deadline=None, max_examples=30)
@given(
    layout=st.sampled_from(["images", "planes", "last of planes"]),
    borders=st.lists(st.integers(0, 3), min_size=4, max_size=4),
    number=st.sampled_from([None, 0.5]),
    **SHAPES,
)
def test_borders(layout: str, borders: list[int], number: float | None, **sizes: int) -> None:
    before, x, ref, _ = value(layout, strange=False, **sizes)
    check([*before, node("aten.pad.default", ref, borders, "constant", number)], [x])


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
