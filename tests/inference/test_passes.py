"""What is folded and fused, and what must not be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from inference.traced import check, ops, run, stir
from torch import Tensor, nn
from torch.nn import functional as F

import regrow
from regrow.inference.graph import ACTIVATIONS, Connections, Graph
from regrow.inference.passes import simplify
from regrow.inference.trace import trace


class Calls(nn.Module):
    """A convolution, a linear layer and norms, used as a function says."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], sparse: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.c, self.d = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1, bias=False)
        self.n, self.m = nn.BatchNorm2d(8), nn.BatchNorm2d(8, affine=False)
        self.l, self.n1 = nn.Linear(8, 8), nn.BatchNorm1d(8)
        self.gamma = nn.Parameter(torch.randn(8))
        self._does = (forward,)
        stir(self)
        if sparse:
            regrow.sparsify(
                self,
                sparsity=0.6,
                distribution="uniform",
                include=["c", "d", "l"],
                init="random",
                storage="masked",
            )

    def forward(self, x: Tensor) -> Any:
        return self._does[0](self, x)


IMAGE = torch.randn(1, 8, 6, 5, generator=torch.Generator().manual_seed(2))
ROW = torch.randn(1, 8, generator=torch.Generator().manual_seed(2))
CONV, LINEAR, AFFINE = "regrow.conv2d", "regrow.linear", "regrow.affine"


def layers(graph: Graph) -> list[Any]:
    """Each operation; of a layer, with what is fused to it."""
    found: list[Any] = []
    for node in graph.nodes:
        fused = [node.args[-1]] if node.op.startswith("regrow.") else []
        if node.op in (CONV, LINEAR):
            fused.append("sum" if node.args[-2] is not None else None)
        found.append((node.op, *[each for each in fused if each]) if any(fused) else node.op)
    return found


FOLDED = [
    ("conv norm", IMAGE, lambda s, x: s.n(s.c(x)), [CONV]),
    ("conv norm without bias", IMAGE, lambda s, x: s.n(s.d(x)), [CONV]),
    ("conv norm norm", IMAGE, lambda s, x: s.m(s.n(s.c(x))), [CONV]),
    ("conv norm relu", IMAGE, lambda s, x: F.relu(s.n(s.c(x))), [(CONV, "relu")]),
    ("in place", IMAGE, lambda s, x: s.n(s.c(x)).relu_().mul_(2), [(CONV, "relu"), "aten.mul.Tensor"]),
    ("norm conv", IMAGE, lambda s, x: s.c(s.n(x)), [AFFINE, CONV]),
    ("norm relu conv", IMAGE, lambda s, x: s.c(F.relu(s.n(x))), [(AFFINE, "relu"), CONV]),
    ("norm norm", IMAGE, lambda s, x: s.m(s.n(x)), [AFFINE]),
    ("linear norm", ROW, lambda s, x: s.n1(s.l(x)), [LINEAR]),
    ("norm linear", ROW, lambda s, x: s.l(s.n1(x)), [LINEAR]),
    ("norm linear norm", ROW, lambda s, x: s.n1(s.l(s.n1(x))), [LINEAR]),
    ("norm read twice", ROW, lambda s, x: s.l(y := s.n1(x)) + y, [AFFINE, (LINEAR, "sum")]),
    ("linear scale", ROW, lambda s, x: s.l(x) * s.gamma + 1, [LINEAR]),
    ("linear over", ROW, lambda s, x: (2 - s.gamma + s.l(x)) / s.gamma - s.gamma, [LINEAR]),
    ("conv scale", IMAGE, lambda s, x: s.gamma.view(1, 8, 1, 1) * s.c(x) * 0.5, [CONV]),
    ("conv scale of another dimension", IMAGE, lambda s, x: s.c(x) * s.gamma[:5], [CONV, "aten.mul.Tensor"]),
    ("scale of no channel", IMAGE, lambda s, x: s.c(x) * s.gamma[:5, None].new_ones(6, 1), [CONV, "aten.mul.Tensor"]),
    ("two dimensions", IMAGE, lambda s, x: s.c(x) + s.gamma[:5] * s.gamma[:6, None], [CONV, "aten.add.Tensor"]),
    ("made larger", ROW, lambda s, x: s.l(x) * s.gamma.view(8, 1, 1), [LINEAR, "aten.mul.Tensor"]),
    ("scale behind a permutation", ROW[:, None], lambda s, x: s.l(x).permute(2, 0, 1) * s.gamma.view(8, 1, 1), None),
    ("scale behind a transposition", ROW[:, None], lambda s, x: s.l(x).transpose(1, 2) * s.gamma[:, None], None),
    ("conv read twice", IMAGE, lambda s, x: (y := s.c(x), s.n(y)), [CONV, AFFINE]),
    ("conv added to its norm", IMAGE, lambda s, x: s.n(y := s.c(x)) + y, None),
    ("norm returned too", IMAGE, lambda s, x: (y := s.n(s.c(x)), F.relu(y)), [CONV, "aten.relu.default"]),
    ("dropout", IMAGE, lambda s, x: F.dropout(s.c(x), training=s.training), [CONV]),
    ("relu in place", IMAGE, lambda s, x: (y := s.c(x)).relu_() + y, [(CONV, "relu"), "aten.add.Tensor"]),
    ("norm of three dimensions", ROW[:, :, None], lambda s, x: s.n1(x), [AFFINE]),
    ("linear norm of tokens", ROW[:, None].expand(1, 8, 8), lambda s, x: s.n1(s.l(x)), [LINEAR, AFFINE]),
    ("zeros around", IMAGE, lambda s, x: s.c(F.pad(x, (2, 2, 1, 1))), [CONV]),
    ("zeros at one side", IMAGE, lambda s, x: s.c(F.pad(x, (0, 1, 0, 2))), [CONV]),
    ("ones around", IMAGE, lambda s, x: s.c(F.pad(x, (1, 1, 1, 1), value=1.0)), ["aten.pad.default", CONV]),
    ("same", IMAGE, lambda s, x: F.conv2d(x, s.c.weight, padding="same"), [CONV]),
    ("same, even", IMAGE, lambda s, x: F.conv2d(x, s.c.weight[:, :, :2], padding="same"), [CONV]),
    ("valid", IMAGE, lambda s, x: F.conv2d(x, s.c.weight, padding="valid"), [CONV]),
    ("one image", IMAGE, lambda s, x: s.c(x[0])[None], None),
    ("product", ROW, lambda s, x: x @ s.l.weight + s.l.bias, [LINEAR]),
    ("addmm", ROW, lambda s, x: torch.addmm(s.l.bias, x, s.l.weight), [LINEAR]),
    ("addmm, scaled", ROW, lambda s, x: torch.addmm(s.l.bias, x, s.l.weight, alpha=2), ["aten.addmm.default"]),
    ("double inside", ROW, lambda s, x: F.linear(x.double(), s.l.weight.double()).float() * s.gamma, None),
    ("weight of an input", ROW, lambda s, x: F.linear(s.gamma, x), ["aten.linear.default"]),
    ("grouped", IMAGE, lambda s, x: s.n(F.conv2d(x, s.c.weight[:, :2], groups=4)), [CONV]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("index", "x", "forward", "expected"),
    [(index, *row[1:]) for index, row in enumerate(FOLDED)],
    ids=[row[0] for row in FOLDED],
)
def test_folding(index: int, x: Tensor, forward: Any, expected: list[Any] | None) -> None:
    simple = check(Calls(forward, sparse=index % 3 != 2), x, batches=(1, 4))
    if expected is not None:
        assert layers(simple) == expected


SUMS = [
    ("conv and input", IMAGE, lambda s, x: s.c(x) + x, [(CONV, "sum")]),
    ("input and conv", IMAGE, lambda s, x: x + s.c(x), [(CONV, "sum")]),
    ("then relu", IMAGE, lambda s, x: F.relu(x + s.n(s.c(x))), [(CONV, "relu", "sum")]),
    ("relu before", IMAGE, lambda s, x: F.relu(s.c(x)) + x, [(CONV, "relu"), "aten.add.Tensor"]),
    ("two convs", IMAGE, lambda s, x: s.c(x) + s.d(x), [CONV, (CONV, "sum")]),
    ("the other later", IMAGE, lambda s, x: s.c(x) + F.relu(s.d(x)), [(CONV, "relu"), (CONV, "sum")]),
    ("three", IMAGE, lambda s, x: s.c(x) + s.d(x) + x, [CONV, (CONV, "sum"), "aten.add.Tensor"]),
    ("twice itself", IMAGE, lambda s, x: (y := s.c(x)) + y, [CONV, "aten.add.Tensor"]),
    ("input twice", IMAGE, lambda s, x: x + x, ["aten.add.Tensor"]),
    ("weighted", IMAGE, lambda s, x: torch.add(x, s.c(x), alpha=0.5), [CONV, "aten.add.Tensor"]),
    ("broadcast", IMAGE, lambda s, x: s.c(x) + x[:, :1], [CONV, "aten.slice.Tensor", "aten.add.Tensor"]),
    ("read too", IMAGE, lambda s, x: (y := s.c(x), F.relu(y + x)), [CONV, "aten.add.Tensor", "aten.relu.default"]),
    ("constant", ROW, lambda s, x: s.l(x) + s.gamma[None], [LINEAR]),
    ("constant of one example", IMAGE, lambda s, x: s.c(x) + s.c.weight[:1, :, :1, :1], [CONV]),
    ("linear", ROW, lambda s, x: s.l(F.gelu(s.l(x))) + x, [(LINEAR, "gelu"), (LINEAR, "sum")]),
    ("scaled", ROW, lambda s, x: s.gamma * s.l(x) + x, [(LINEAR, "sum")]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("x", "forward", "expected"), [row[1:] for row in SUMS], ids=[row[0] for row in SUMS]
)
def test_sums(x: Tensor, forward: Any, expected: list[Any]) -> None:
    assert layers(check(Calls(forward), x)) == expected


FUNCTIONS: list[tuple[str, Callable[[Tensor], Tensor]]] = [
    ("relu", F.relu),
    ("relu", lambda x: x.clamp(min=0)),
    ("relu", lambda x: x.clamp_min(0)),
    ("relu6", F.relu6),
    ("relu6", lambda x: F.hardtanh(x, 0.0, 6.0)),
    ("relu6", lambda x: x.clamp(0, 6)),
    ("silu", F.silu),
    ("silu", lambda x: x * torch.sigmoid(x)),
    ("silu", lambda x: torch.sigmoid(x) * x),
    ("gelu", F.gelu),
    ("hardswish", F.hardswish),
    ("hardswish", lambda x: x * F.hardsigmoid(x)),
    ("hardswish", lambda x: x * F.relu6(x + 3) / 6),
    ("hardsigmoid", F.hardsigmoid),
    ("sigmoid", torch.sigmoid),
    ("tanh", torch.tanh),
]


@pytest.mark.parametrize(("name", "function"), FUNCTIONS)
def test_activations(name: str, function: Callable[[Tensor], Tensor]) -> None:
    assert name in ACTIVATIONS
    model = Calls(lambda s, x: [function(s.c(x)), function(s.l(x[:, :, 0, 0])), function(s.n(x))])
    fused = [each for each in layers(check(model, IMAGE * 8)) if "regrow" in each[0]]
    assert fused == [(CONV, name), (LINEAR, name), (AFFINE, name)]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.gelu(x, approximate="tanh"),
        lambda x: F.hardtanh(x),
        lambda x: x.clamp(0, 5),
        lambda x: x.clamp(min=0.1),
        lambda x: x.clamp(max=0),
        F.elu,
        lambda x: F.leaky_relu(x, 0.1),
    ],
)
def test_other_functions_stay(function: Callable[[Tensor], Tensor]) -> None:
    graph = check(Calls(lambda s, x: function(s.c(x))), IMAGE)
    assert layers(graph)[0] == CONV
    assert len(graph.nodes) == 2


def test_a_gate_of_something_else_stays() -> None:
    graph = check(Calls(lambda s, x: s.c(x) * torch.sigmoid(s.d(x))), IMAGE)
    assert layers(graph) == [CONV, (CONV, "sigmoid"), "aten.mul.Tensor"]


def test_a_graph_is_left_as_it_is() -> None:
    model = Calls(lambda s, x: F.relu(s.n(s.c(x)) + x))
    graph = trace(model, (IMAGE,))
    nodes = [(node.name, node.op, node.args) for node in graph.nodes]
    values = {name: w.values.clone() for name, w in graph.weights.items() if isinstance(w, Connections)}
    before = run(graph, IMAGE)
    simplify(graph)
    assert [(node.name, node.op, node.args) for node in graph.nodes] == nodes
    assert torch.equal(run(graph, IMAGE), before)
    for name, kept in values.items():
        assert torch.equal(graph.weights[name].values, kept)  # type: ignore[union-attr, operator]


def test_only_what_is_read_stays() -> None:
    simple = check(Calls(lambda s, x: F.relu(s.n(s.c(x)))), IMAGE)
    assert list(simple.weights) == ["c.weight"]
    assert list(simple.constants) == ["c.bias:2"] or list(simple.constants) == ["c.bias"]
    assert {tensor.dtype for tensor in simple.constants.values()} == {torch.float32}
    assert simple.nodes[0].layer == "c"


def test_a_norm_of_zero_takes_connections_away() -> None:
    model = Calls(lambda s, x: s.n(s.c(x)))
    simple = check(model, IMAGE)
    weight = simple.weights["c.weight"]
    assert isinstance(weight, Connections)
    assert int(weight.crow[1]) == 0  # the norm's first weight is zero
    assert bool((weight.values != 0).all())


@pytest.mark.parametrize("approach", ["conv", "linear", "into"])
def test_folding_is_done_in_float64(approach: str) -> None:
    """One rounding a number: what a norm of large statistics cancels is not lost."""
    model = Calls(
        {
            "conv": lambda s, x: s.n(s.c(x)),
            "linear": lambda s, x: s.n1(s.l(x)),
            "into": lambda s, x: s.l(s.n1(x)),
        }[approach]
    ).eval()
    for norm in (model.n, model.n1):
        norm.running_mean.fill_(1000.0)
        model.c.bias.data.fill_(1000.0 if approach == "conv" else 0.0)
        model.l.bias.data.fill_(1000.0 if approach == "linear" else 0.0)
    x = IMAGE if approach == "conv" else ROW + (1000 if approach == "into" else 0)
    simple = simplify(trace(model, (x,)))
    with torch.no_grad():
        exact = model.double()(x.double())
    assert ops(simple) == [CONV if approach == "conv" else LINEAR]
    got = run(simple, x)
    limit = 2e-6 if approach != "into" else 2e-3  # there the sum itself cancels, in float32
    assert float((got - exact).abs().max()) < limit * float(exact.abs().max())


def test_constants_are_not_made_large() -> None:
    graph = check(Calls(lambda s, x: x + s.gamma.view(8, 1).expand(8, 2**20)[:, 3]), ROW)
    assert max(tensor.numel() for tensor in graph.constants.values()) <= 2**20


def test_columns_beyond_16_bits() -> None:
    model = nn.Sequential(nn.Linear(70_000, 4))
    regrow.sparsify(model, sparsity=0.99, distribution="uniform", include=["0"], storage="masked")
    simple = check(model, torch.rand(1, 70_000))
    assert simple.weights["0.weight"].col.dtype == torch.int32  # type: ignore[union-attr]
