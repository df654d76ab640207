"""Convolutions and linear layers in int8, against sums of whole numbers; and what `quantise` makes of a network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inference.graphs import connections
from machine import ISAS, threads, using
from torch import Tensor, nn
from torch.nn import functional as F

import regrow
from regrow.data.mnist import idx
from regrow.errors import RegrowValueError
from regrow.inference.bundles import LARGEST, OFFSET, ZERO, bundle
from regrow.inference.graph import CONV, LINEAR, Connections, Graph, Node, Ref
from regrow.inference.layers import _size
from regrow.inference.packing import window_of
from regrow.inference.plan import Plan, Segment
from regrow.inference.quantise import quantise
from regrow.inference.reference import interpret
from regrow.inference.rounding import Rounding

KERNELS = pytest.mark.skipif(not ISAS, reason="the kernels were not built here")
KINDS = ("normal", "largest", "positive", "negative", "alternating", "ones")


def whole(shape: tuple[int, ...], kind: str, density: float, seed: int) -> Tensor:
    """A weight of whole numbers of -127 to 127; every fifth row is empty."""
    generator = torch.Generator().manual_seed(seed)
    some = torch.rand(shape, generator=generator) < density
    some[4::5] = False
    normal = (torch.randn(shape, generator=generator) * 40).round().clamp(-127, 127)
    by_kind = {
        "normal": normal,
        "largest": torch.where(normal > 0, 127.0, -127.0),
        "positive": torch.full(shape, 127.0),
        "negative": torch.full(shape, -127.0),
        "alternating": torch.arange(normal.numel()).reshape(shape) % 2 * 254.0 - 127,
        "ones": torch.ones(shape),
    }
    return by_kind[kind] * some


def graph_of(op: str, weight: Connections, x: Tensor, rest: tuple[Any, ...], **more: Any) -> Graph:
    """A graph of one layer, which rounds its input; `more`: bias, residual, activation, rounding."""
    bias, residual = more.get("bias"), more.get("residual")
    behind = (None if residual is None else Ref("r"), more.get("activation"))
    node = Node(
        "y",
        op,
        (Ref("x"), Ref("w"), None if bias is None else Ref("b"), *rest, *behind),
        more["rounding"].kwargs(),
    )
    inputs = [x] if residual is None else [x, residual]
    return Graph(
        inputs=[Ref("x"), Ref("r")][: len(inputs)],
        outputs=[Ref("y")],
        nodes=[node],
        constants={} if bias is None else {"b": bias},
        weights={"w": weight},
        shapes=[tuple(each.shape) for each in inputs],
        dtypes=[torch.float32] * len(inputs),
        signature={},
        structure={},
        precision="int8",
    )


def run(graph: Graph, *inputs: Tensor) -> Tensor:
    """What the kernels make of it."""
    plan = Plan(graph, graph.shapes)
    assert [type(call) for call in plan.calls] == [Segment]
    return plan(inputs)[0]


def scaled(weight: Tensor, scale: Tensor | None = None) -> Connections:
    """Connections of whole numbers, with scales for the rows."""
    found = connections(weight)
    return replace(
        found,
        values=found.values.to(torch.int8),
        scale=torch.ones(weight.shape[0]) if scale is None else scale,
    )


@KERNELS
@settings(max_examples=60, deadline=None)
@given(
    st.data(),
    st.sampled_from(ISAS or [""]),
    st.sampled_from(KINDS),
    st.booleans(),
    st.sampled_from([0.05, 0.3, 1.0]),
    st.integers(0, 2**16),
)
def test_sums_are_exact(data: Any, isa: str, kind: str, signed: bool, density: float, seed: int) -> None:
    """Of any shape: the largest of weights and inputs included, no sum overflows, and none is rounded."""
    groups = data.draw(st.sampled_from([1, 1, 2, 4]), "groups")
    channels, outputs = data.draw(st.integers(1, 13), "channels"), data.draw(st.integers(1, 9), "outputs")
    kernel = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)), "kernel")
    stride = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)), "stride")
    padding = data.draw(st.tuples(st.integers(0, 3), st.integers(0, 3)), "padding")
    dilation = data.draw(st.tuples(st.integers(1, 2), st.integers(1, 2)), "dilation")
    least = [max(1, (k - 1) * d + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    size = [data.draw(st.integers(side, side + 20), "side") for side in least]
    images, number = data.draw(st.integers(1, 3), "images"), data.draw(st.sampled_from([1, 2]), "threads")

    weight = whole((groups * outputs, channels, *kernel), kind, density, seed)
    x = torch.randint(-200, 201, (images, groups * channels, *size)).float()
    if kind != "normal":
        x = torch.where(x > 0, 127.0, -127.0)
    rounding = Rounding(1.0, signed)
    wanted = F.conv2d(
        x.clamp(rounding.lowest, 127).double(), weight.double(), None, stride, padding, dilation, groups
    )
    graph = graph_of(CONV, scaled(weight), x, (stride, padding, dilation, groups), rounding=rounding)
    with using(isa), threads(number):
        assert torch.equal(run(graph, x), wanted.float())


@KERNELS
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_long_rows_are_exact(kind: str, signed: bool, isa: str) -> None:
    """Many bundles: of 5,000 and 4,999 connections a row, whose sums are larger than 16 and 24 bits hold."""
    weight = whole((6, 5000), kind, 1.0, 0)
    weight[1, 0] = 0
    x = torch.full((2, 33, 5000), 127.0)
    x[1] = torch.randint(-127, 128, (33, 5000))
    rounding = Rounding(1.0, signed)
    wanted = F.linear(x.clamp(rounding.lowest, 127).double(), weight.double())
    with using(isa):
        found = run(graph_of(LINEAR, scaled(weight), x, (), rounding=rounding), x)
    assert torch.equal(found, wanted.float())


@KERNELS
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize("shape", [(1, 16, 56, 56), (2, 40, 14, 14), (3, 64, 7, 7)])
def test_scales_biases_and_sums_behind(shape: tuple[int, ...], activation: str | None, isa: str) -> None:
    torch.manual_seed(0)
    weight = whole((24, shape[1], 3, 3), "normal", 0.1, 1)
    layer = scaled(weight, torch.rand(24) + 0.1)
    x, residual = torch.randn(shape), torch.randn(shape[0], 24, *shape[2:])
    given = {"bias": torch.randn(24), "residual": residual, "activation": activation}
    graph = graph_of(CONV, layer, x, ((1, 1), (1, 1), (1, 1), 1), rounding=Rounding(0.02, True), **given)
    wanted = interpret(graph, [x, residual])[0]
    with using(isa):
        with threads(1):
            found = run(graph, x, residual)
        with threads(2):
            assert torch.equal(run(graph, x, residual), found)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)


@KERNELS
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("signed", [False, True])
def test_inputs_are_rounded_as_the_reference_does(signed: bool, isa: str) -> None:
    """To even, in the same direction for all, and what is too large, infinite or nan, to a number of the range."""
    special = torch.tensor([0.0, -0.0, 1e-45, 1e30, -1e30, float("inf"), float("-inf"), float("nan")])
    x = torch.cat([torch.arange(-260, 261) / 2, torch.randn(5000) * 60, special]).reshape(1, 1, 1, -1)
    rounding = Rounding(0.37, signed)
    x = x * rounding.scale
    graph = graph_of(CONV, scaled(torch.ones(1, 1, 1, 1)), x, ((1, 1), (0, 0), (1, 1), 1), rounding=rounding)
    with using(isa):
        found = run(graph, x)
    assert torch.equal(found, rounding(x))
    assert torch.equal(interpret(graph, [x])[0], found)
    assert found.min() == rounding.lowest * torch.tensor(0.37)
    assert found.max() == 127 * torch.tensor(0.37)


@KERNELS
def test_a_weight_that_is_not_int8_is_left_to_torch() -> None:
    x = torch.randn(1, 3, 9, 9)
    layer = connections(whole((4, 3, 3, 3), "normal", 0.3, 0))
    graph = graph_of(CONV, layer, x, ((1, 1), (0, 0), (1, 1), 1), rounding=Rounding(0.1, False))
    plan = Plan(graph, graph.shapes)
    assert "its weight is not in int8" in plan.calls[0].reason
    assert torch.equal(plan([x])[0], interpret(graph, [x])[0])


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(KINDS), st.booleans(), st.integers(1, 300), st.integers(0, 2**16))
def test_bundles_hold_each_connection_once_and_cannot_overflow(
    kind: str, signed: bool, columns: int, seed: int
) -> None:
    weight = whole((7, columns), kind, 0.6, seed)
    window = window_of((1, 64), (1, 64), (1, 1), (1, 1), (0, 0), (1, 1), columns, _size(Rounding(1, signed)))
    found = bundle(scaled(weight), 1, window, Rounding(0.5, signed))
    pairs = found.pairs.reshape(-1, 3)
    values = pairs[:, 2].clone(memory_format=torch.contiguous_format).view(torch.int8).reshape(-1, 4)
    assert torch.equal(values[:, :2], values[:, 2:])
    highest = 127 + (ZERO if signed else 0)
    laid, bundles = torch.zeros_like(weight), torch.zeros(7, dtype=torch.int64)
    for i, row in enumerate(found.order.flatten().tolist()):
        begin, end = found.start[0, i], found.start[0, i + 1]
        size = int(found.bundle.flatten()[i])
        assert 1 <= size <= LARGEST
        assert (end - begin) % size == 0
        bundles[row] = (end - begin) // size
        for slot in range(2):
            at = (pairs[begin:end, slot] // window.channel).long()
            laid[row].index_add_(0, at, values[begin:end, slot].float())
        sums = values[begin:end, :2].reshape(-1, 2 * size).int()
        if len(sums):
            assert int(sums.clamp(min=0).sum(1).max()) * highest < OFFSET
            assert int((-sums).clamp(min=0).sum(1).max()) * highest <= OFFSET
    assert torch.equal(laid, weight)
    assert torch.equal(
        found.correction, (-OFFSET * bundles - (ZERO * weight.sum(1) if signed else 0)).to(torch.int32)
    )
    slots, rows = 2 * len(pairs), int((weight != 0).sum())
    assert slots >= rows
    if kind == "normal" and columns > 100:
        assert slots < 1.25 * rows + 2 * LARGEST * 7


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.SiLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def rounded(graph: Graph) -> dict[str, Rounding]:
    """How layers round their inputs, by the layer's name."""
    return {node.layer: rounding for node in graph.nodes if (rounding := Rounding.of(node))}


@KERNELS
def test_accuracy_of_a_trained_network() -> None:
    """It is within half a point of that of float32, though three of four convolutions round their inputs."""
    try:
        data = idx("/usr/share/datasets/fashion-mnist", limit=12000)
    except RegrowValueError:
        pytest.skip("Fashion-MNIST is not here")
    model = regrow.sparsify(network(), sparsity=0.8, distribution="uniform")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    images, test = (F.avg_pool2d(x, 2) for x in (data.train_inputs, data.test_inputs))
    for at in torch.randperm(12000).split(32):
        optimizer.zero_grad()
        F.cross_entropy(model(images[at]), data.train_targets[at]).backward()
        optimizer.step()
    model.eval()

    def accuracy(**precision: Any) -> tuple[float, Graph]:
        deployed = regrow.deploy(model, test[:500], **precision)
        assert deployed.graph is not None
        right = sum(
            int((deployed(x).argmax(1) == y).sum())
            for x, y in zip(test.split(500), data.test_targets.split(500), strict=True)
        )
        return right / len(test), deployed.graph

    exact, _ = accuracy()
    found, graph = accuracy(precision="int8", calibration=images[:512].split(128))
    assert {name: each.signed for name, each in rounded(graph).items()} == {"3": False, "6": True, "9": False}
    assert exact > 0.75
    assert abs(found - exact) < 0.005


def deployed_of(model: nn.Module, x: Tensor, *calibration: Tensor) -> Graph:
    graph = regrow.deploy(model.eval(), x, precision="int8", calibration=calibration or [x]).graph
    assert graph is not None
    return graph


def test_what_is_rounded() -> None:
    """Not the inputs of dense weights, of vectors, of few pixels and of few connections: int8 is not faster there."""
    torch.manual_seed(0)

    def sparse(layer: Any, density: float = 0.2) -> nn.Module:
        with torch.no_grad():
            layer.weight.mul_(torch.rand_like(layer.weight) < density)
        return layer

    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        sparse(nn.Conv2d(32, 32, 3, padding=1)),
        nn.ReLU(),
        sparse(nn.Conv2d(32, 32, 3, padding=1, groups=32)),
        nn.ReLU(),
        sparse(nn.Conv2d(32, 64, 1), 0.02),
        nn.ReLU(),
        sparse(nn.Conv2d(64, 64, 3, stride=2)),
        nn.ReLU(),
        nn.Flatten(),
        sparse(nn.Linear(1600, 100)),
    )
    assert list(rounded(deployed_of(model, torch.randn(2, 3, 12, 12)))) == ["2"]
    assert list(rounded(deployed_of(sparse(nn.Linear(64, 64), 0.3), torch.randn(2, 50, 64)))) == [""]
    assert rounded(deployed_of(sparse(nn.Linear(64, 64), 0.3), torch.randn(50, 64))) == {}
    assert rounded(deployed_of(sparse(nn.Linear(64, 64), 0.3), torch.randn(2, 20, 64))) == {}


def test_scales_come_from_all_batches_and_clip_where_that_is_more_exact() -> None:
    torch.manual_seed(0)
    model = nn.Linear(64, 64)
    with torch.no_grad():
        model.weight.mul_(torch.rand_like(model.weight) < 0.3)
    x, most = torch.rand(4, 500, 64), torch.rand(4, 500, 64)
    most[0, 0, 0] = 3.0
    ((_, found),) = rounded(deployed_of(model, x, x, most, x)).items()
    assert not found.signed
    assert found.scale == pytest.approx(
        float(x.max()) / 127, rel=1e-3
    )  # one of 128,000 is worth less than the others
    ((_, found),) = rounded(deployed_of(model, x, x, most * 100 - 50)).items()
    assert found.signed
    ((_, found),) = rounded(deployed_of(model, x, torch.zeros_like(x))).items()
    assert found.scale == pytest.approx(1 / 127)
    most[0, 0, 0] = 1e6
    ((_, found),) = rounded(deployed_of(model, x, most)).items()
    assert found.scale == pytest.approx(1e6 / 127)


def test_a_file_keeps_how_inputs_are_rounded(tmp_path: Any) -> None:
    torch.manual_seed(0)
    model, x = (
        regrow.sparsify(network(), sparsity=0.8, distribution="uniform").eval(),
        torch.randn(2, 1, 16, 16),
    )
    deployed = regrow.deploy(model, x, precision="int8", calibration=[x])
    assert deployed.graph is not None
    loaded = regrow.Deployed.load(deployed.save(tmp_path / "deployed"))
    assert rounded(loaded.graph) == rounded(deployed.graph) != {}
    assert torch.equal(loaded(x), deployed(x))


@pytest.mark.parametrize("where", ["weight", "calibration"])
def test_what_is_not_finite_is_refused(where: str) -> None:
    model = nn.Linear(64, 64).eval()
    with torch.no_grad():
        model.weight.mul_(torch.rand_like(model.weight) < 0.3)
    graph = regrow.deploy(model, torch.rand(2, 50, 64)).graph
    assert graph is not None
    x = torch.rand(2, 50, 64)
    if where == "weight":
        (weight,) = graph.weights.values()
        assert isinstance(weight, Connections)
        weight.values[3] = float("nan")
    else:
        x[0, 0, 0] = float("inf")
    with pytest.raises(RegrowValueError, match="not finite|finite weights"):
        quantise(graph, [[x]])
