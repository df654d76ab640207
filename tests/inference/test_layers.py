"""Convolutions and linear layers of inference programs, against torch's operators in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inference.graphs import connections
from inference.programs import ACTS, FEW, SEEDS, X0, X1, check, node, random
from torch.nn import functional as F

from regrow.inference.graph import CONV, LINEAR, Ref, Weight
from regrow.ops import native

pytestmark = pytest.mark.skipif(not native.available(), reason="the kernels were not built")

DENSITIES = st.sampled_from([0.0, 0.02, 0.1, 0.5, 0.8, 1.0])
TYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.int8])


def weight_of(*shape: int, density: float, seed: int, dtype: torch.dtype = torch.float32) -> Weight:
    """A weight of some density: connections, or dense from 0.7 on."""
    dense = random(*shape, seed=seed) / 10
    if density > 0.7 and dtype == torch.float32:
        return dense * (torch.rand(shape) < density)
    mask = torch.rand(shape) < density
    if dtype == torch.int8:
        mask.view(shape[0], -1)[:, 0] = True  # a row of none has no scale
    return connections(dense * mask, dtype)


@st.composite
def convolutions(draw: st.DrawFn) -> dict[str, Any]:
    kernel = [draw(st.integers(1, 4)), draw(st.sampled_from([1, 2, 3, 5, 7]))]
    dilation = [draw(st.integers(1, 2)), draw(st.integers(1, 2))]
    padding = [draw(st.integers(0, 3)), draw(st.integers(0, 3))]
    least = [(k - 1) * d + 1 - 2 * p for k, d, p in zip(kernel, dilation, padding, strict=True)]
    groups = draw(st.sampled_from([1, 1, 2, 5]))
    return {
        "batch": draw(FEW),
        "size": [max(1, each) + draw(st.integers(0, 24)) for each in least],
        "channels": groups * draw(st.integers(1, 6)),
        "outputs": groups * draw(st.integers(1, 9)),
        "kernel": kernel,
        "stride": draw(st.sampled_from([(1, 1), (2, 2), (1, 2), (3, 1)])),
        "padding": tuple(padding),
        "dilation": tuple(dilation),
        "groups": groups,
        "density": draw(DENSITIES),
        "bias": draw(st.booleans()),
        "residual": draw(st.sampled_from([None, "input", "made"])),
        "act": draw(st.sampled_from([None, None, *ACTS])),
        "made": draw(st.booleans()),
        "seed": draw(SEEDS),
    }


@settings(deadline=None, max_examples=150)
@given(c=convolutions())
def test_convolutions(c: dict[str, Any]) -> None:
    x = random(c["batch"], c["channels"], *c["size"], seed=c["seed"])
    shape = (c["outputs"], c["channels"] // c["groups"], *c["kernel"])
    weight = weight_of(*shape, density=c["density"], seed=c["seed"] + 1)
    how = (c["stride"], c["padding"], c["dilation"], c["groups"])
    inputs, residual = [x], None
    nodes = [node("aten.relu.default", X0, name="made")] if c["made"] else []
    if c["residual"]:
        inputs.append(random(*F.conv2d(x, torch.zeros(shape), None, *how).shape, seed=c["seed"] + 2))
        residual = X1
        if c["residual"] == "made":
            nodes.append(node("aten.mul.Tensor", X1, 2, name="other"))
            residual = Ref("other")
    bias = {"b": random(c["outputs"], seed=c["seed"] + 3)} if c["bias"] else {}
    ref, given_bias = Ref("made") if c["made"] else X0, Ref("b") if bias else None
    nodes.append(node(CONV, ref, Ref("w"), given_bias, *how, residual, c["act"]))
    check(nodes, inputs, weights={"w": weight}, **bias)


@settings(deadline=None, max_examples=100)
@given(
    leading=st.sampled_from(
        [(1,), (2,), (9,), (16,), (33,), (1, 1), (2, 1), (1, 7), (3, 16), (3, 5), (2, 2, 3)]
    ),
    columns=st.sampled_from([1, 2, 7, 31, 64, 300]),
    rows=st.integers(1, 40),
    density=DENSITIES,
    dtype=TYPES,
    bias=st.booleans(),
    residual=st.booleans(),
    act=st.sampled_from([None, None, *ACTS]),
    way=st.sampled_from(["as given", "made", "flat", "turned"]),
    seed=SEEDS,
)
def test_linear(
    leading: tuple[int, ...],
    columns: int,
    rows: int,
    density: float,
    dtype: torch.dtype,
    bias: bool,
    residual: bool,
    act: str | None,
    way: str,
    seed: int,
) -> None:
    x = random(*leading, columns, seed=seed)
    nodes, ref = [], X0
    if way in ("made", "flat", "turned"):
        nodes, ref = [node("aten.add.Tensor", X0, 0, name="made")], Ref("made")
    if way == "flat":
        leading = (torch.Size(leading).numel(),)
        nodes.append(node("aten.view.default", ref, [*leading, columns], name="flat"))
        ref = Ref("flat")
    if way == "turned" and len(leading) > 1:
        leading = (leading[1], leading[0], *leading[2:])
        nodes.append(node("aten.transpose.int", ref, 0, 1, name="turned"))
        ref = Ref("turned")
    inputs = [x, random(*leading, rows, seed=seed + 1)] if residual else [x]
    constants = {"b": random(rows, seed=seed + 2)} if bias else {}
    weight = weight_of(rows, columns, density=density, seed=seed + 3, dtype=dtype)
    nodes.append(node(LINEAR, ref, Ref("w"), Ref("b") if bias else None, X1 if residual else None, act))
    check(nodes, inputs, weights={"w": weight}, **constants)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("batch", [1, 3])
def test_more_columns_than_sixteen_bits_number(dtype: torch.dtype, batch: int) -> None:
    columns = 2**16 + 300
    weight = torch.zeros(5, columns)
    weight[:, [0, 1, 77, 2**16 - 1, 2**16, columns - 1]] = random(5, 6)
    weight[3] = weight[3].flip(0)
    found = connections(weight, dtype)
    assert found.col.dtype == torch.int32
    nodes = [node(LINEAR, X0, Ref("w"), None, None, None)]
    check(nodes, [random(batch, columns, seed=1)], weights={"w": found})


def test_two_layers_one_pixel_and_many() -> None:
    """Squeeze-and-excitation, whose layers are convolutions of one pixel of each image."""
    weights = {
        "a": weight_of(4, 16, 1, 1, density=0.5, seed=1),
        "b": weight_of(16, 4, 1, 1, density=0.9, seed=2),
    }
    how = ((1, 1), (0, 0), (1, 1), 1, None)
    nodes = [
        node("aten.relu.default", X0, name="x"),
        node("aten.mean.dim", Ref("x"), [2, 3], True, name="m"),
        node(CONV, Ref("m"), Ref("a"), Ref("c"), *how, "silu", name="s"),
        node(CONV, Ref("s"), Ref("b"), None, *how, "sigmoid", name="e"),
        node("aten.mul.Tensor", Ref("x"), Ref("e")),
    ]
    for batch in (1, 2, 5):
        check(nodes, [random(batch, 16, 7, 5)], weights=weights, c=random(4, seed=3))
