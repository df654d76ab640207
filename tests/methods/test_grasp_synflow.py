"""GraSP and SynFlow: their scores by hand, what they keep, what scoring leaves as it was, and what they refuse."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from runs import data, mlp
from torch import Tensor, nn
from torch.nn import functional as F

import regrow
from regrow.sparsity.distributions import connections, erk
from regrow.weights import sparse_weights

SHAPES = {"0.weight": (10, 12), "3.weight": (4, 10)}


def half_square(output: Tensor, target: Tensor) -> Tensor:
    return 0.5 * (output - target).square().sum()


# --- GraSP


@pytest.mark.parametrize(("weight", "scores"), [([1.0, 1.0], [15.0, 30.0]), ([-1.0, 1.0], [-5.0, 10.0])])
def test_grasp_by_hand(weight: list[float], scores: list[float]) -> None:
    """For x = [1, 2] and target 0, g = (w x) x and H = x x': w (H g) with a sign of its own."""
    model = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([weight]))
    batch = torch.tensor([[1.0, 2.0]], dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    found = regrow.GraSP(half_square, batch, temperature=1.0)(model, {"weight": (1, 2)})
    assert found["weight"].tolist() == [scores]


def test_grasp_drops_what_the_gradient_flows_better_without() -> None:
    """A score is half of what the squared norm of the gradient loses when a little of its weight is taken away."""
    model, (x, y) = mlp().eval(), data()
    found = regrow.GraSP(F.cross_entropy, (x, y), temperature=1.0, mode="eval")(model, SHAPES)

    def flow(network: nn.Module) -> float:
        weights = [network.get_parameter(name) for name in SHAPES]
        gradients = torch.autograd.grad(F.cross_entropy(network(x), y), weights)
        return float(sum(g.square().sum() for g in gradients))

    little = 1e-6
    for name, at in (("0.weight", (3, 5)), ("3.weight", (2, 7))):
        less = copy.deepcopy(model)
        with torch.no_grad():
            less.get_parameter(name)[at] *= 1 - little
        assert (flow(model) - flow(less)) / (2 * little) == pytest.approx(float(found[name][at]), rel=1e-3)


def test_grasp_keeps_the_highest_of_all_layers_and_does_not_depend_on_the_scale_of_the_loss() -> None:
    kept = []
    for scale in (1.0, 37.0):
        model = mlp()
        criterion = regrow.GraSP(lambda out, y, by=scale: by * F.cross_entropy(out, y), data())
        scores = criterion(model, SHAPES)
        regrow.sparsify(model, 0.8, "uniform", include=["0", "3"], init=criterion)
        kept.append({w.name: w.positions().tolist() for w in sparse_weights(model)})
        left = torch.cat([scores[w.name].view(-1)[w.positions()] for w in sparse_weights(model)])
        everything = torch.cat([own.view(-1) for own in scores.values()]).sort(descending=True).values
        assert torch.equal(left.sort(descending=True).values, everything[:32])
    assert kept[0] == kept[1]
    model = mlp()
    regrow.sparsify(
        model, 0.8, "uniform", include=["0", "3"], init=regrow.GraSP(F.cross_entropy, data(), per_layer=True)
    )
    assert [w.nnz for w in sparse_weights(model)] == [24, 8]


def test_grasp_divides_the_output_by_its_temperature() -> None:
    x, y = data()
    hot = regrow.GraSP(F.cross_entropy, (x, y), temperature=5.0)(mlp(), SHAPES)
    by_hand = regrow.GraSP(lambda out, t: F.cross_entropy(out / 5, t), (x, y), temperature=1.0)(mlp(), SHAPES)
    for name in SHAPES:
        assert torch.equal(hot[name], by_hand[name])


def test_grasp_leaves_modes_and_statistics_as_they_were() -> None:
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    regrow.GraSP(F.cross_entropy, data())(model, SHAPES)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_grasp_refuses_what_it_cannot_score() -> None:
    linear, batch = nn.Linear(12, 4).double(), data()
    with pytest.raises(regrow.RegrowError, match=r"`init`: GraSP needs second derivatives.*\nGive the loss"):
        regrow.sparsify(linear, 0.5, init=regrow.GraSP(lambda output, target: output.sum(), batch))
    linear.weight.requires_grad_(False)
    with pytest.raises(regrow.RegrowError, match=r"GraSP cannot score \['weight'\], which are frozen"):
        regrow.sparsify(linear, 0.5, init=regrow.GraSP(F.cross_entropy, batch))
    assert not regrow.is_sparse(linear)


# --- SynFlow


def without_biases(*sizes: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs, bias=False), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.named_parameters() if p.dim() > 1}


def test_synflow_conserves_the_signal_in_each_layer() -> None:
    model = without_biases(12, 20, 8, 4)
    signal = torch.ones(12, dtype=torch.float64)
    for name in shapes_of(model):
        signal = model.get_parameter(name).detach().double().abs() @ signal
    for own in regrow.SynFlow()(model, shapes_of(model)).values():
        assert own.dtype == torch.float64
        assert float(own.sum()) == pytest.approx(float(signal.sum()), rel=1e-12)


def by_the_book(model: nn.Module, sparsity: float, rounds: int) -> dict[str, Tensor]:
    """Masks by the published algorithm: the whole loop with thresholds, in float64."""
    own = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        for tensor in own.state_dict().values():
            tensor.abs_()
    weights = {name: own.get_parameter(name) for name in shapes_of(model)}
    masks = {name: torch.ones_like(w) for name, w in weights.items()}
    values = {name: w.detach().clone() for name, w in weights.items()}
    total = sum(w.numel() for w in weights.values())
    final = total - int(sparsity * total)
    for done in range(1, rounds + 1):
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(values[name] * masks[name])
        signal = own(torch.ones(1, 12, dtype=torch.float64)).sum()
        grads = torch.autograd.grad(signal, list(weights.values()))
        scores = torch.cat([(w * g).detach().view(-1) for w, g in zip(weights.values(), grads, strict=True)])
        gone = total - round(total * (final / total) ** (done / rounds))
        threshold = scores.kthvalue(gone).values if gone else scores.new_tensor(-1.0)
        for name, mask in zip(
            weights, (scores > threshold).split([w.numel() for w in weights.values()]), strict=True
        ):
            masks[name] = mask.view(weights[name].shape).double()
    return {name: mask.bool() for name, mask in masks.items()}


@pytest.mark.parametrize("storage", ["masked", "compressed"])
def test_synflow_is_the_published_loop(storage: str) -> None:
    model = without_biases(12, 20, 8, 4)
    expected = by_the_book(model, 0.9, 20)
    regrow.sparsify(
        model, 0.9, "uniform", include="*", init=regrow.SynFlow(rounds=20), storage=storage, rescale=False
    )
    found = regrow.masks(model)
    assert {name: found[name].equal(mask) for name, mask in expected.items()} == dict.fromkeys(expected, True)
    assert sum(int(mask.sum()) for mask in found.values()) == 432 - 388  # floor(0.9 * 432) are left out


def test_the_density_falls_by_one_factor_in_each_round() -> None:
    assert regrow.SynFlow(rounds=3)._budgets(1000, 1) == [100, 10, 1]
    assert regrow.SynFlow(rounds=2)._budgets(400, 100) == [200, 100]


def mnist_mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))


@pytest.mark.parametrize("distribution", ["erk", "global"])
def test_no_layer_collapses_at_99_9_percent(distribution: str) -> None:
    model = mnist_mlp()
    regrow.sparsify(model, 0.999, distribution, init=regrow.SynFlow())
    counts = [weight.nnz for weight in sparse_weights(model)]
    shapes = shapes_of(mnist_mlp())
    spread = erk(shapes, 0.999)
    each = sum(connections(shape, spread[name]) for name, shape in shapes.items())
    assert sum(counts) == (each if distribution == "erk" else connections((266_200,), 0.999))
    assert min(counts) > 0
    rows = [weight.mask().float() for weight in sparse_weights(model)]
    assert float((rows[2] @ rows[1] @ rows[0]).sum()) > 0  # paths from inputs to outputs


@pytest.mark.filterwarnings("ignore:.*leaves no connection at all")
def test_another_criterion_collapses_there() -> None:
    model = mnist_mlp()
    with torch.no_grad():
        model[4].weight.mul_(0.02)
    regrow.sparsify(copy.deepcopy(model), 0.999, "global", init=regrow.SynFlow())
    regrow.sparsify(model, 0.999, "global", init="magnitude")
    assert sparse_weights(model)[2].nnz == 0


def test_a_signal_that_float32_cannot_hold() -> None:
    model = without_biases(*[64] * 41)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    with torch.no_grad():
        positive = torch.ones(1, 64)
        for parameter in model.parameters():
            positive = positive @ parameter.abs().t()
    assert positive.isinf().any()
    regrow.sparsify(model, 0.99, "global", init=regrow.SynFlow(rounds=10))
    assert min(weight.nnz for weight in sparse_weights(model)) > 0
    with torch.no_grad():
        for parameter in (model := without_biases(*[64] * 41)).parameters():
            parameter.mul_(1e8)
    with pytest.raises(regrow.RegrowError, match="SynFlow's signal is .*, beyond what float64 can hold"):
        regrow.sparsify(model, 0.99, "global", init=regrow.SynFlow())
    assert not regrow.is_sparse(model)


def test_synflow_changes_nothing_and_takes_norms_as_they_are_in_evaluation() -> None:
    model = mlp()
    with torch.no_grad():
        model[1].running_mean.fill_(-0.3)
        model[1].running_var.copy_(torch.linspace(0.1, 3, 10))
    before = copy.deepcopy(model.state_dict())
    scores = regrow.SynFlow()(model, SHAPES)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    gain = model[1].weight.abs() / (model[1].running_var + model[1].eps).sqrt()
    carried = model[3].weight.abs().sum(0) * gain  # every unit is positive: ReLU lets it through
    assert torch.allclose(scores["0.weight"], model[0].weight.abs() * carried[:, None])


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(9, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.out(self.embedding(x))
        return result


@pytest.mark.parametrize(
    ("build", "example"),
    [
        (
            lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)),
            torch.randn(3, 2, 8, 8),
        ),
        (Words, torch.tensor([[1, 2, 3]])),
    ],
    ids=["images", "symbols"],
)
def test_an_example_tells_the_shape_of_an_input(build: Callable[[], nn.Module], example: Tensor) -> None:
    with pytest.raises(
        regrow.RegrowError, match=r"`example` is needed: the first layer is \w+, .*\nGive one"
    ):
        regrow.sparsify(build(), 0.5, init=regrow.SynFlow())
    model = regrow.sparsify(build(), 0.5, "global", init=regrow.SynFlow(example))
    sizes = [weight.numel for weight in sparse_weights(model)]
    assert sum(w.nnz for w in sparse_weights(model)) == sum(sizes) - sum(sizes) // 2


def no_gain(model: nn.Sequential) -> nn.Module:
    nn.init.zeros_(model[1].weight)
    return model


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(12, 4), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Any:
        return self.used(x)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (
            lambda: no_gain(mlp()),
            r"cannot score \['0.weight', '3.weight'\], through which no signal flows: .*zero",
        ),
        (Pair, r"cannot score \['unused.weight'\], which its output does not depend on"),
        (lambda: nn.LSTM(12, 4), "`example` is needed: the first layer is LSTM"),
    ],
)
def test_synflow_refuses_what_it_cannot_score(build: Callable[[], nn.Module], text: str) -> None:
    model = build()
    with pytest.raises(regrow.RegrowError, match=text):
        regrow.sparsify(model, 0.5, init=regrow.SynFlow())
    assert not regrow.is_sparse(model)


def test_synflow_needs_a_tensor_to_add_up() -> None:
    model = nn.LSTM(12, 4)
    with pytest.raises(
        regrow.RegrowError, match=r"SynFlow needs a network that returns a tensor, got a tuple"
    ):
        regrow.sparsify(model, 0.5, init=regrow.SynFlow(torch.zeros(1, 3, 12)))
    assert not regrow.is_sparse(model)
