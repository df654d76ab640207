"""SNFS by hand: where its average starts, and what each layer drops and gets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam

import regrow
from regrow.methods.snfs import AVERAGE, apportion
from regrow.weights import sparse_weights


def masked(shapes: list[tuple[int, int]], counts: list[int]) -> nn.ModuleList:
    """Layers of these shapes, of which the first so many positions are connections of values 1, 2, 3, ..."""
    layers = nn.ModuleList(nn.Linear(columns, rows, bias=False) for rows, columns in shapes)
    masks = {}
    for i, (layer, count) in enumerate(zip(layers, counts, strict=True)):
        with torch.no_grad():
            layer.weight.copy_(torch.arange(1.0, layer.weight.numel() + 1).view_as(layer.weight))
        mask = torch.arange(layer.weight.numel()) < max(1, count)
        masks[f"{i}.weight"] = mask.view_as(layer.weight)
    regrow.sparsify(layers, init=masks)
    for weight, count in zip(sparse_weights(layers), counts, strict=True):
        if not count:
            weight.update(torch.tensor([0]), torch.tensor([], dtype=torch.int64))
    return layers


def train(layers: nn.ModuleList, optimizer: torch.optim.Optimizer, gradients: list[Tensor | float]) -> None:
    """One step with these dense gradients."""
    optimizer.zero_grad()
    loss = sum((layer.weight * g).sum() for layer, g in zip(layers, gradients, strict=True))
    assert isinstance(loss, Tensor)
    loss.backward()
    optimizer.step()


def snfs(layers: nn.ModuleList, **options: Any) -> tuple[regrow.SNFS, SGD]:
    optimizer = SGD(layers.parameters(), lr=0.0)
    given = {"total_steps": 1000, "update_every": 1, "drop_fraction": 0.5, "schedule": "constant"}
    return regrow.SNFS(layers, optimizer, **{**given, **options}), optimizer


def counts(layers: nn.ModuleList) -> list[int]:
    return [weight.nnz for weight in sparse_weights(layers)]


# --- the average


@pytest.mark.parametrize("momentum", [0.5, 0.0, 0.75])
def test_the_average_starts_at_zero(momentum: float) -> None:
    """`testMomentumUpdate` of the RigL code: m a + (1 - m) g from 0, at every step."""
    layers = masked([(4, 3)], [6])
    _, optimizer = snfs(layers, momentum=momentum, update_every=100, drop_fraction=0.0)
    gradient, expected = torch.arange(4.0).repeat(3).view(4, 3), torch.zeros(4, 3)
    for _ in range(6):
        train(layers, optimizer, [gradient])
        expected = momentum * expected + (1 - momentum) * gradient
        assert torch.equal(optimizer.state[layers[0].weight][AVERAGE], expected)


@pytest.mark.parametrize("optimizer_class", [SGD, Adam])
def test_the_first_gradient_does_not_outweigh_a_hundred_later_ones(optimizer_class: Any) -> None:
    """With the first gradient as the average, 0.99^100 = 0.366 of it is more than 0.5 (1 - 0.366) = 0.317."""
    layers = masked([(1, 3)], [1])
    optimizer = optimizer_class(layers.parameters(), lr=0.0)
    regrow.SNFS(
        layers,
        optimizer,
        total_steps=1000,
        update_every=100,
        momentum=0.99,
        drop_fraction=1.0,
        schedule="constant",
    )
    for step in range(101):
        train(layers, optimizer, [torch.tensor([[0.0, 1.0, 0.0] if step == 0 else [0.0, 0.0, 0.5]])])
    assert sparse_weights(layers)[0].positions().tolist() == [2]


# --- what a layer gets


def test_an_update_that_finds_no_layer_below_density_1_moves_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 64), nn.Linear(64, 64))
    regrow.sparsify(model, 0.5, "erk", storage="masked")
    assert [weight.density for weight in sparse_weights(model)][:2] == [1.0, 1.0]
    model[2].requires_grad_(False)
    optimizer = SGD(model.parameters(), lr=0.1)
    method = regrow.SNFS(model, optimizer, total_steps=20, update_every=2)
    before = regrow.masks(model)
    records: list[dict[str, Any]] = []
    method.register_update_hook(records.append)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
    assert [(record["step"], record["layers"]) for record in records] == [(2, {}), (4, {})]
    assert all(torch.equal(mask, before[name]) for name, mask in regrow.masks(model).items())


@pytest.mark.parametrize(("size", "held", "drop"), [(1000, 999, 0.3), (200, 199, 0.9), (4, 3, 1.0)])
def test_a_layer_short_of_room_gets_back_what_it_loses(size: int, held: int, drop: float) -> None:
    layers = masked([(1, size)], [held])
    _, optimizer = snfs(layers, drop_fraction=drop)
    for _ in range(5):
        train(layers, optimizer, [torch.randn(1, size)])
    assert counts(layers) == [held]


def test_what_does_not_fit_goes_where_there_is_room() -> None:
    layers = masked([(1, 100), (1, 1000)], [95, 100])
    _, optimizer = snfs(layers, drop_fraction=0.2)
    for _ in range(8):
        train(layers, optimizer, [torch.randn(1, 100), torch.randn(1, 1000) / 100])
        first, second = counts(layers)
        assert first + second == 195
        assert first < 100  # never full, so it goes on dropping
    assert counts(layers)[0] > 95


def test_a_layer_without_connections_leaves_the_shares_of_others_as_they_are_and_gets_its_own() -> None:
    layers = masked([(1, 40), (1, 40), (1, 40)], [20, 20, 0])
    _, optimizer = snfs(layers)
    assert counts(layers) == [20, 20, 0]
    for _ in range(2):
        train(layers, optimizer, [4.0, 2.0, torch.tensor([[1.0] * 20 + [3.0] * 20])])
    # 20 go; the mean magnitudes are as 4 to 2 to 2, the last one over all positions
    assert counts(layers) == [10 + 10, 10 + 5, 5]
    assert sparse_weights(layers)[2].positions().tolist() == [20, 21, 22, 23, 24]


# --- what a layer drops


@pytest.mark.parametrize(("adjust", "dropped"), [(False, [45, 45, 25]), (True, [9, 45, 25])])
def test_the_drop_fraction_of_a_nearly_dense_layer_that_grows_is_its_sparsity(
    adjust: bool, dropped: list[int]
) -> None:
    """The first two have sparsity 0.1, and only the first a share above the average; the last one is half empty."""
    layers = masked([(1, 100), (1, 100), (1, 100)], [90, 90, 50])
    method, optimizer = snfs(layers, adjust_prune_rate=adjust, redistribution=False)
    weights = sparse_weights(layers)
    train(layers, optimizer, [3.0, 1.0, 1.0])
    fractions = method.fractions(1, weights)
    assert [len(method.drop(w, f)) for w, f in zip(weights, fractions, strict=True)] == dropped
    train(layers, optimizer, [3.0, 1.0, 1.0])
    assert counts(layers) == [90, 90, 50]


def test_a_layer_of_sparsity_0_2_is_not_nearly_dense_and_a_lower_fraction_stays() -> None:
    layers = masked([(1, 100), (1, 100)], [80, 50])
    method, optimizer = snfs(layers, adjust_prune_rate=True)
    train(layers, optimizer, [3.0, 1.0])
    assert method.fractions(1, sparse_weights(layers)) == [0.5, 0.5]
    layers = masked([(1, 100), (1, 100)], [85, 50])
    method, optimizer = snfs(layers, adjust_prune_rate=True, drop_fraction=0.1)
    train(layers, optimizer, [3.0, 1.0])
    assert method.fractions(1, sparse_weights(layers)) == [0.1, 0.1]


# --- from the tests of the RigL family


def two_layers() -> nn.Sequential:
    """Two layers of four positions, two of them active, on inputs that make gradients easy to write down."""
    model = nn.Sequential(nn.Linear(4, 1, bias=False), nn.Linear(1, 4, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2.0, 0.0, 0.0]]))
        model[1].weight.copy_(torch.tensor([[1.0], [2.0], [0.0], [0.0]]))
    first = torch.tensor([[True, True, False, False]])
    return regrow.sparsify(model, init={"0.weight": first, "1.weight": first.t()})


def test_snfs_grows_by_the_running_average() -> None:
    model = two_layers()
    optimizer = SGD(model.parameters(), lr=0.0)
    method = regrow.SNFS(
        model,
        optimizer,
        total_steps=10,
        update_every=2,
        drop_fraction=0.5,
        schedule="constant",
        redistribution=False,
        momentum=0.5,
    )
    inputs = [torch.tensor([[0.0, 0.0, 8.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.0, 1.0]])]
    averages = []
    for step in range(3):
        optimizer.zero_grad()
        model(inputs[min(step, 1)].double()).sum().backward()
        optimizer.step()
        averages.append(optimizer.state[model[0].weight]["regrow_average"].clone())
    # d sum(output) / d weight of the first layer is 3 x: 24 at position 2, then twice 3 at position 3
    assert averages[0].tolist() == [[0, 0, 12, 0]]
    assert averages[1].tolist() == [[0, 0, 6, 1.5]]
    assert averages[2].tolist() == [[0, 0, 3, 2.25]]
    assert sparse_weights(model)[0].positions().tolist() == [1, 2]  # RigL would have grown position 3
    assert method.step == 3


def test_snfs_moves_connections_to_where_the_momentum_is() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 20, bias=False), nn.Linear(20, 20, bias=False)).double()
    with torch.no_grad():
        model[1].weight.mul_(3)  # so the gradients of the first are larger
    regrow.sparsify(model, 0.8, "uniform", include="*")
    optimizer = SGD(model.parameters(), lr=0.01)
    regrow.SNFS(model, optimizer, total_steps=40, update_every=2)
    before = [w.nnz for w in sparse_weights(model)]
    for step in range(20):
        optimizer.zero_grad()
        x = torch.randn(8, 20, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        (model(10 * x).square().mean() + 0).backward()
        optimizer.step()
    after = [w.nnz for w in sparse_weights(model)]
    assert sum(after) == sum(before) == 160
    assert after != before
    assert after[0] > before[0]


@pytest.mark.parametrize(
    ("total", "shares", "room", "counts"),
    [
        (10, [1.0, 1.0], [20.0, 20.0], [5, 5]),
        (10, [3.0, 1.0], [20.0, 20.0], [8, 2]),  # 7.5 and 2.5: the remainder goes to the lower index
        (10, [3.0, 1.0], [4.0, 20.0], [4, 6]),  # what does not fit goes to the other
        (10, [0.0, 0.0], [20.0, 20.0], [5, 5]),
        (10, [1.0, 0.0], [4.0, 20.0], [4, 6]),
        (0, [1.0, 2.0], [5.0, 5.0], [0, 0]),
        (30, [1.0, 1.0], [4.0, 5.0], [4, 5]),  # more than there is room for
        (7, [1.0, 1.0, 1.0], [9.0, 9.0, 9.0], [3, 2, 2]),
    ],
)
def test_apportion(total: int, shares: list[float], room: list[float], counts: list[int]) -> None:
    assert apportion(total, torch.tensor(shares).double(), torch.tensor(room).double()) == counts
