"""Top-KAST by hand, and beside a network that keeps all values dense."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adam, Optimizer

import regrow
from regrow.accounting import costs, training_multiple
from regrow.methods.registry import get
from regrow.methods.top_kast import REACH, RESERVE
from regrow.weights import sparse_weights

VALUES = torch.tensor([[4.0, -3.0, 2.5, 2.0, -1.0, 0.5, 0.25, 0.1]])
GIVEN: dict[str, Any] = {"final_sparsity": 0.75, "backward_ratio": 2.0, "penalty": 0.0, "update_every": 1}


def eight(values: Tensor = VALUES) -> nn.Sequential:
    """Make a layer of eight connections; where the loss is the output, the gradient is the input."""
    model = nn.Sequential(nn.Linear(8, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(values)
    return regrow.sparsify(model, 0.0, storage="masked")


def attach(model: nn.Module, optimizer: Optimizer, **options: Any) -> regrow.TopKAST:
    return regrow.TopKAST(model, optimizer, **{"total_steps": 100, **GIVEN, **options})


def step(model: nn.Module, optimizer: Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    model(x).sum().backward()
    optimizer.step()


def sets(model: nn.Module, optimizer: Optimizer) -> tuple[list[int], list[int]]:
    """Positions of the forward and of the backward set."""
    (weight,) = sparse_weights(model)
    reach = optimizer.state[weight.parameter][REACH]
    return weight.positions().tolist(), reach.view(-1).nonzero().view(-1).tolist()


# --- by hand


def test_the_largest_are_connected_and_the_next_largest_are_trained_too() -> None:
    model = eight()
    optimizer = SGD(model.parameters(), lr=1.0)
    attach(model, optimizer)
    assert sets(model, optimizer) == ([0, 1], [0, 1, 2, 3])
    assert model[0].weight.tolist() == [[4, -3, 0, 0, 0, 0, 0, 0]]
    x = torch.tensor([[1.0, 1.0, -1.0, 1.0, 5.0, 5.0, 5.0, 5.0]])
    step(model, optimizer, x)
    assert model[0].weight.grad.tolist() == [[1, 1, -1, 1, 0, 0, 0, 0]]
    assert sets(model, optimizer) == ([0, 1], [0, 1, 2, 3])  # there is no choice at step 0
    assert model[0].weight.tolist() == [[3, -4, 0, 0, 0, 0, 0, 0]]
    reserve = optimizer.state[model[0].weight][RESERVE]
    torch.testing.assert_close(reserve, torch.tensor([[0, 0, 3.5, 1, -1, 0.5, 0.25, 0.1]]))
    step(model, optimizer, x)
    # 2, -5, 4.5, 0 and, where nothing was trained, -1, 0.5, 0.25, 0.1
    assert sets(model, optimizer) == ([1, 2], [0, 1, 2, 4])
    assert model[0].weight.tolist() == [[0, -5, 4.5, 0, 0, 0, 0, 0]]
    assert model[0].weight.grad.tolist() == [
        [1, 1, -1, 0, 0, 0, 0, 0]
    ]  # of those that are trained from here on
    step(model, optimizer, x)
    # 1, -6, 5.5, 0, -6: of two that are equal, the lower position comes first
    assert sets(model, optimizer) == ([1, 4], [0, 1, 2, 4])
    assert model[0].weight.tolist() == [[0, -6, 0, 0, -6, 0, 0, 0]]


def test_the_penalty_is_stronger_outside_of_the_forward_set_by_the_density() -> None:
    """A quarter of the positions is connected: 0.1 theta there, 0.4 theta beside them, nothing elsewhere."""
    model = eight()
    optimizer = SGD(model.parameters(), lr=1.0)
    attach(model, optimizer, penalty=0.1, update_every=50)
    step(model, optimizer, torch.zeros(1, 8))
    torch.testing.assert_close(model[0].weight.data, torch.tensor([[3.6, -2.7, 0, 0, 0, 0, 0, 0]]))
    reserve = optimizer.state[model[0].weight][RESERVE]
    torch.testing.assert_close(reserve, torch.tensor([[0, 0, 1.5, 1.2, -1, 0.5, 0.25, 0.1]]))


def test_the_penalty_is_scaled_as_the_gradient_of_a_fused_optimizer_is() -> None:
    found = []
    for scale in (1.0, 1024.0):
        model = eight()
        optimizer = SGD(model.parameters(), lr=0.5, fused=True)
        attach(model, optimizer, penalty=0.1, update_every=50)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(model(torch.ones(1, 8)).sum()).backward()
        scaler.step(optimizer)
        found.append(model[0].weight.detach())
    assert torch.equal(*found)
    torch.testing.assert_close(found[0], torch.tensor([[3.3, -3.35, 0, 0, 0, 0, 0, 0]]))


def test_positions_without_a_connection_start_below_those_with_one() -> None:
    torch.manual_seed(0)
    model = regrow.sparsify(nn.Sequential(nn.Linear(40, 30)), 0.9, include="0", storage="masked")
    (weight,) = sparse_weights(model)
    before, x = weight.to_dense(), torch.randn(2, 40)
    expected = model(x)
    optimizer = SGD(model.parameters(), lr=0.1)
    attach(model, optimizer, final_sparsity=0.9, backward_ratio=3.0)
    assert torch.equal(model(x), expected)
    reserve = optimizer.state[weight.parameter][RESERVE]
    assert reserve[weight.mask()].count_nonzero() == 0
    assert 0 < reserve[~weight.mask()].abs().min() <= reserve.abs().max() < before[before != 0].abs().min()
    assert int(optimizer.state[weight.parameter][REACH].sum()) == 360


def test_a_ratio_beyond_the_layer_trains_all_of_it_and_one_trains_the_network_alone() -> None:
    for ratio, reach in ((100.0, 8), (1.0, 2), (1.9, 3)):
        model = eight()
        optimizer = SGD(model.parameters(), lr=1.0)
        attach(model, optimizer, backward_ratio=ratio)
        assert len(sets(model, optimizer)[1]) == reach


# --- beside all values, dense


class Reference:
    """Top-KAST as its two sets say, on dense tensors and with autograd alone."""

    def __init__(
        self, values: list[Tensor], lr: float, momentum: float, decay: float, penalty: float
    ) -> None:
        self.values = [value.clone() for value in values]
        self.velocity = [torch.zeros_like(value) for value in values]
        self.lr, self.momentum, self.decay, self.penalty = lr, momentum, decay, penalty
        self.choose(0.9, 2.5)

    def choose(self, sparsity: float, ratio: float) -> None:
        self.forward_sets, self.backward_sets = [], []
        for value in self.values:
            order = value.abs().view(-1).sort(descending=True, stable=True).indices
            count = value.numel() - int(round(sparsity * value.numel(), 6))
            sizes = count, min(value.numel(), int(round(ratio * count, 6)))
            one, two = (torch.zeros(value.numel(), dtype=torch.bool) for _ in sizes)
            one[order[: sizes[0]]] = True
            two[order[: sizes[1]]] = True
            self.forward_sets.append(one.view_as(value))
            self.backward_sets.append(two.view_as(value))
        self.velocity = [v * b for v, b in zip(self.velocity, self.backward_sets, strict=True)]

    def step(self, x: Tensor, y: Tensor) -> None:
        used = [(v * a).requires_grad_() for v, a in zip(self.values, self.forward_sets, strict=True)]
        hidden = functional.relu(functional.linear(x, used[0]))
        gradients = torch.autograd.grad(functional.cross_entropy(functional.linear(hidden, used[1]), y), used)
        for i, gradient in enumerate(gradients):
            a, b, value = self.forward_sets[i], self.backward_sets[i], self.values[i]
            pull = torch.where(a, 1.0, value.numel() / int(a.sum())).double()
            whole = (gradient + (self.penalty * pull + self.decay) * value) * b
            self.velocity[i] = self.momentum * self.velocity[i] + whole
            self.values[i] = value - self.lr * self.velocity[i] * b


def test_it_is_the_method_on_dense_values_with_two_masks() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30, bias=False), nn.ReLU(), nn.Linear(30, 5, bias=False)).double()
    values = [model[0].weight.detach().clone(), model[2].weight.detach().clone()]
    regrow.sparsify(model, 0.0, include="*", storage="masked")
    optimizer = SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=1e-3)
    method = regrow.TopKAST(
        model, optimizer, total_steps=100, final_sparsity=0.9, penalty=0.01, update_every=4
    )
    reference = Reference(values, 0.2, 0.9, 1e-3, 0.01)
    weights, first = sparse_weights(model), None
    data = torch.Generator().manual_seed(0)
    for number in range(60):
        x = torch.randn(16, 20, generator=data, dtype=torch.float64)
        y = x[:, :5].argmax(1)
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        reference.step(x, y)
        if number and number % 4 == 0:
            reference.choose(0.9, 2.5)
        first = weights[0].mask() if first is None else first
        for i, weight in enumerate(weights):
            assert torch.equal(weight.mask(), reference.forward_sets[i]), number
            assert torch.equal(optimizer.state[weight.parameter][REACH], reference.backward_sets[i]), number
            torch.testing.assert_close(method._values(weight), reference.values[i], rtol=0, atol=1e-12)
            velocity = optimizer.state[weight.parameter]["momentum_buffer"]
            torch.testing.assert_close(velocity, reference.velocity[i], rtol=0, atol=1e-12)
    assert first is not None
    assert not torch.equal(first, weights[0].mask())


# --- what else a step may be


def test_clipping_sees_the_gradient_of_the_backward_set() -> None:
    model = eight()
    optimizer = SGD(model.parameters(), lr=1.0)
    attach(model, optimizer)
    model(torch.tensor([[2.0, 0.0, 0.0, 1.5, 9.0, 9.0, 9.0, 9.0]])).sum().backward()
    assert float(nn.utils.clip_grad_norm_(model.parameters(), 0.25)) == 2.5
    optimizer.step()
    torch.testing.assert_close(model[0].weight.data, torch.tensor([[3.8, -3, 0, 0, 0, 0, 0, 0]]))
    reserve = optimizer.state[model[0].weight][RESERVE]
    torch.testing.assert_close(reserve[0, 2:4], torch.tensor([2.5, 1.85]))


def test_noise_outside_of_the_backward_set_is_cut() -> None:
    model = eight()
    optimizer = SGD(model.parameters(), lr=1.0)
    attach(model, optimizer)
    model(torch.zeros(1, 8)).sum().backward()
    model[0].weight.grad += 1.0
    optimizer.step()
    assert model[0].weight.grad.tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]]


def test_after_detach_only_the_connections_have_state() -> None:
    model = eight()
    optimizer = Adam(model.parameters(), lr=0.1)
    method = attach(model, optimizer)
    for _ in range(3):
        step(model, optimizer, torch.ones(1, 8))
    state = optimizer.state[model[0].weight]
    assert state["exp_avg"].count_nonzero() == 4
    method.detach()
    assert state["exp_avg"].count_nonzero() == 2
    assert {RESERVE, REACH} & state.keys() == set()
    step(model, optimizer, torch.ones(1, 8))
    assert model[0].weight.grad.count_nonzero() == 2


def test_a_model_that_is_loaded_alone_chooses_again_what_is_trained() -> None:
    saved, model = eight(VALUES.flip(1)), eight()
    attach(saved, SGD(saved.parameters(), lr=1.0))
    optimizer = SGD(model.parameters(), lr=1.0, momentum=0.9)
    attach(model, optimizer, update_every=50)
    step(model, optimizer, torch.ones(1, 8))
    model.load_state_dict(saved.state_dict())
    with pytest.warns(
        UserWarning, match="the model was loaded in another topology and the optimizer was not"
    ):
        step(model, optimizer, torch.ones(1, 8))
    forward, backward = sets(model, optimizer)
    assert forward == [6, 7]
    assert set(forward) < set(backward)
    assert len(backward) == 4
    before = model[0].weight.detach().clone()
    step(model, optimizer, torch.ones(1, 8))
    assert ((before - model[0].weight.detach()) != 0).view(-1).nonzero().view(-1).tolist() == [6, 7]


# --- refusals


def test_compressed_storage_is_refused_with_the_reason() -> None:
    model = regrow.sparsify(nn.Sequential(nn.Linear(20, 30)), 0.5, include="0", storage="compressed")
    with pytest.raises(regrow.RegrowError) as caught:
        attach(model, SGD(model.parameters(), lr=0.1))
    assert str(caught.value) == (
        "TopKAST runs on masked storage, since it keeps and trains values at positions without a connection, and "
        "`0.weight` is stored compressed.\nUse regrow.sparsify(..., storage='masked')."
    )


class Averaging(SGD):
    """An optimizer whose state has a copy of the values."""

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p].setdefault("slow", p.detach().clone()).lerp_(p.detach(), 0.9)
        return loss


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backward_ratio": 0.9}, "`backward_ratio` must be a number of at least 1, got 0.9"),
        ({"penalty": -0.1}, "`penalty` must be a number of at least 0, got -0.1"),
        ({"final_sparsity": {"0.bias": 0.5}}, r"`final_sparsity` must name exactly \['0.weight'\]"),
    ],
)
def test_options_that_are_not_allowed(options: dict[str, Any], message: str) -> None:
    model = eight()
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.raises(regrow.RegrowError, match=message):
        attach(model, optimizer, **options)
    assert sparse_weights(model)[0].nnz == 8
    regrow.Static(model, optimizer)  # nothing was attached


def test_other_refusals_leave_the_network_alone() -> None:
    model = eight()
    with pytest.raises(
        regrow.RegrowError, match="Averaging keeps a copy of the values in `slow`.*\nUse an optimizer"
    ):
        attach(model, Averaging(model.parameters(), lr=0.1))
    assert sparse_weights(model)[0].nnz == 8
    sparse = regrow.sparsify(nn.Sequential(nn.Linear(20, 30)), 0.9, include="0", storage="masked")
    with pytest.raises(regrow.RegrowError, match="`final_sparsity` 0.75 of `0.weight` is below the sparsity"):
        attach(sparse, SGD(sparse.parameters(), lr=0.1))
    cell = regrow.sparsify(nn.Sequential(nn.GRUCell(6, 10)), 0.0, storage="masked", gates="apart")
    with pytest.raises(regrow.RegrowError, match="TopKAST moves whole weights, and the gates of"):
        attach(cell, SGD(cell.parameters(), lr=0.1))


# --- what it costs


def test_a_step_costs_two_sparse_passes_and_one_of_what_is_trained() -> None:
    record = get("top-kast")
    assert (record.cost, record.needs, record.needs_dense, record.storages) == (
        "top-kast", "never", True, ("masked",)
    )  # fmt: skip
    # 80% forward, 50% backward: (0.2 + 0.2 + 0.5) / 3
    assert training_multiple("top-kast", dense=100.0, sparse=20.0, trained=50.0) == pytest.approx(0.3)
    with pytest.raises(regrow.RegrowError, match="`trained` must be a number above 0, got None"):
        training_multiple("top-kast", dense=100.0, sparse=20.0)
    model = regrow.sparsify(
        nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10)),
        distribution={"0.weight": 0.8, "2.weight": 0.5},
    )  # fmt: skip
    counted = costs(model, torch.zeros(1, 20))
    # 120 and 150 connections, of which 300 and all 300 positions are trained; 40 outputs
    assert counted.flops["sparse"] == 2 * 270 + 40
    assert counted.trained(2.5) == 2 * 600 + 40
    assert counted.training_multiple["top-kast"] == pytest.approx((2 * 580 + 1240) / (3 * (2 * 900 + 40)))
