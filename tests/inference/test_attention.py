"""Layer norms, softmax and attention of inference programs, against torch's operators in float64."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inference.programs import FEW, LAYOUTS, SEEDS, SHAPES, SIZES, X0, X1, X2, check, node, random, value

from regrow.inference.graph import Ref
from regrow.ops import native

pytestmark = pytest.mark.skipif(not native.available(), reason="the kernels were not built")


@settings(deadline=None, max_examples=80)
@given(layout=st.sampled_from(LAYOUTS), affine=st.booleans(), strange=st.booleans(), **SHAPES)
def test_layer_norm(layout: str, affine: bool, strange: bool, **sizes: int) -> None:
    before, x, ref, shape = value(layout, strange=strange, **sizes)
    weight, bias = (random(shape[-1], seed=sizes["seed"] + i) for i in (1, 2))
    named = (Ref("w"), Ref("b")) if affine else (None, None)
    nodes = [*before, node("aten.layer_norm.default", ref, [shape[-1]], *named, 1e-3)]
    check(nodes, [x], tolerance=3e-5, **({"w": weight, "b": bias} if affine else {}))


@settings(deadline=None, max_examples=80)
@given(layout=st.sampled_from(LAYOUTS), dim=st.integers(-2, 1), strange=st.booleans(), **SHAPES)
def test_softmax(layout: str, dim: int, strange: bool, **sizes: int) -> None:
    before, x, ref, _ = value(layout, strange=strange, **sizes)
    check([*before, node("aten.softmax.int", ref, dim)], [x])


@settings(deadline=None, max_examples=60)
@given(
    batch=FEW,
    heads=st.integers(1, 3),
    tokens=SIZES,
    keys=SIZES,
    size=st.sampled_from([1, 3, 6, 7, 16]),
    causal=st.booleans(),
    scale=st.sampled_from([None, 0.3]),
    together=st.booleans(),
    seed=SEEDS,
)
def test_attention(
    batch: int,
    heads: int,
    tokens: int,
    keys: int,
    size: int,
    causal: bool,
    scale: float | None,
    together: bool,
    seed: int,
) -> None:
    options = {"is_causal": causal, "scale": scale}
    name = "aten.scaled_dot_product_attention.default"
    if together:  # of one linear layer, as in timm
        x = random(batch, tokens, 3 * heads * size, seed=seed)
        nodes = [
            node("aten.add.Tensor", X0, 0, name="made"),
            node("aten.view.default", Ref("made"), [batch, tokens, 3, heads, size], name="r"),
            node("aten.permute.default", Ref("r"), [2, 0, 3, 1, 4], name="p"),
            node("aten.unbind.int", Ref("p"), name="u"),
            *(node("getitem", Ref("u"), i, name=f"part{i}") for i in range(3)),
            node(name, Ref("part0"), Ref("part1"), Ref("part2"), name="a", **options),
            node("aten.transpose.int", Ref("a"), 1, 2, name="t"),
            node("aten.reshape.default", Ref("t"), [batch, tokens, heads * size]),
        ]
        check(nodes, [x], tolerance=2e-5)
        return
    shapes = [(batch, heads, n, size) for n in (tokens, keys, keys)]
    inputs = [random(*shape, seed=seed + i) for i, shape in enumerate(shapes)]
    check([node(name, X0, X1, X2, **options)], inputs, tolerance=2e-5)
