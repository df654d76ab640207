"""SRigL: RigL under a constant fan-in, and its ablation of neurons."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

import regrow
from regrow.errors import RegrowValueError
from regrow.weights import sparse_weights
from regrow.weights.gates import parts

both = pytest.mark.parametrize("storage", ["masked", "compressed"])


def layer(
    values: Tensor, storage: str, *, last: bool = False, **options: Any
) -> tuple[nn.Sequential, Any, SGD]:
    """A layer with connections where `values` are not 0, a dense one behind it unless it is the `last`."""
    rows, columns = values.shape
    model = nn.Sequential(nn.Linear(columns, rows, bias=False))
    if not last:
        model.append(nn.Linear(rows, 1))
    with torch.no_grad():
        model[0].weight.copy_(values)
    regrow.sparsify(model, init={"0.weight": values != 0}, include="0", pattern="fan-in", storage=storage)
    optimizer = SGD(model.parameters(), lr=1e-30)
    options = {"schedule": "constant", "stop_fraction": 1.0, "update_every": 1, **options}
    return model, regrow.SRigL(model, optimizer, total_steps=9, **options), optimizer


def step(model: nn.Sequential, optimizer: SGD, gradient: Tensor) -> list[list[int]]:
    """Take a step whose dL/dw is `gradient`; return the columns of each row."""
    optimizer.zero_grad()
    (model[0](torch.eye(gradient.shape[1])) * gradient.T).sum().backward()
    optimizer.step()
    return [row.nonzero().view(-1).tolist() for row in regrow.masks(model)["0.weight"]]


VALUES = torch.tensor(
    [[5.0, 6.0, 0.0, 0.0, 0.0, 0.0], [0.1, 0.2, 0.0, 0.0, 0.0, 0.0], [7.0, 8.0, 0.0, 0.0, 0.0, 0.0]]
)
GRADIENT = torch.tensor(
    [[0.0, 0.0, 0.0, 0.0, 9.0, -9.5], [0.3, 0.0, 0.2, 0.0, 0.1, 0.0], [0.0, 0.0, 0.0, 0.7, 0.0, 0.0]]
)
BACK = torch.tensor([[0.0] * 6, [0.0, 0.0, 4.0, 0.0, -5.0, 0.0], [0.0] * 6])


@both
def test_a_neuron_is_ablated_and_its_connections_go_to_the_others(storage: str) -> None:
    model, method, optimizer = layer(VALUES, storage, drop_fraction=1 / 3)
    assert step(model, optimizer, GRADIENT) == [[0, 1], [0, 1], [0, 1]]  # no update at step 0
    # 0.1 and 0.2 go; 9 and -9.5 are salient: 4, 0 and 2 of each row. The fan-in is 6 / 2, and one comes in each
    assert step(model, optimizer, GRADIENT) == [[0, 1, 5], [], [0, 1, 3]]
    (weight,) = sparse_weights(model)
    assert weight.to_dense()[0].tolist() == [5, 6, 0, 0, 0, 0]
    # both new ones, still 0, go; 4 and -5 are salient in the second row, which comes back: the fan-in is 2 again
    assert step(model, optimizer, BACK) == [[0, 1], [2, 4], [0, 1]]
    method.detach()


@both
def test_a_row_keeps_at_most_the_new_fan_in_of_its_largest(storage: str) -> None:
    model, method, optimizer = layer(VALUES, storage, drop_fraction=1 / 3)
    for _ in range(2):
        step(model, optimizer, GRADIENT)
    (weight,) = sparse_weights(model)
    values = torch.tensor(
        [1.0, 3.0, 2.0, 6.0, 5.0, 4.0], dtype=torch.float32
    )  # rows 0 and 2, columns in order
    weight.fill(weight.positions(), values)
    method.evolve(1 / 6)
    # 1 goes, row 0 holds 3 and 2, row 2 holds 6, 5 and 4; -5 brings row 1 back, and row 2 keeps 6 and 5
    assert step(model, optimizer, BACK) == [[1, 5], [2, 4], [0, 1]]
    assert weight.to_dense()[2].tolist() == [6, 5, 0, 0, 0, 0]
    method.detach()


def test_the_last_weight_loses_no_neuron() -> None:
    model, method, optimizer = layer(VALUES, "masked", last=True, drop_fraction=1 / 3)
    for _ in range(2):
        found = step(model, optimizer, GRADIENT)
    assert found == [[0, 1], [0, 2], [0, 1]]
    method.detach()


def test_the_threshold_is_a_share_of_the_fan_in_rounded_down() -> None:
    """Fewer than max(1, int(0.3 * fan-in)) salient positions ablate: at a fan-in of 10 fewer than 3, at 3 none."""
    for fan_in, salient, active in (
        (10, [2, 3, 10, 0], [False, True, True, False]),
        (9, [2, 1, 9, 0], [True, False, True, False]),
        (3, [1, 0, 3, 1], [True, False, True, True]),
    ):
        values = torch.zeros(4, 30)
        values[:, :fan_in] = 1
        model, method, _ = layer(values, "masked")
        (weight,) = parts(sparse_weights(model))
        assert method._active(weight, torch.tensor(salient)).tolist() == active
        method.detach()


def test_enough_neurons_stay_to_hold_all_connections() -> None:
    model, method, _ = layer(torch.tensor([[1.0, 1.0, 0.0]] * 4), "masked")
    (weight,) = parts(sparse_weights(model))  # 8 connections, 3 in a row that is full: three rows at least
    assert method._active(weight, torch.tensor([0, 5, 0, 0])).tolist() == [True, True, True, False]
    assert method._active(weight, torch.tensor([0, 0, 0, 0])).tolist() == [True, True, True, False]
    method.detach()


def test_one_more_goes_to_rows_that_hold_the_most() -> None:
    """7 connections of 3 rows: 3, 2, 2. The row that holds 3 is the one that gets 3."""
    values = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    model, method, optimizer = layer(values, "masked", drop_fraction=0.2)
    for _ in range(2):
        found = step(model, optimizer, torch.ones(3, 4))
    assert sorted(map(len, found)) == [2, 2, 3]
    method.detach()


@both
def test_connections_stay_as_many_while_neurons_go(storage: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 30), nn.ReLU(), nn.Linear(30, 4)
    ).double()
    regrow.sparsify(model, 0.95, pattern="fan-in", storage=storage, rescale=True)
    weights = sparse_weights(model)
    before = [weight.nnz for weight in weights]
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    method = regrow.SRigL(model, optimizer, total_steps=60, update_every=3, min_salient=0.8)
    for number in range(60):
        x = torch.randn(16, 40, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), x[:, :4].argmax(1)).backward()
        optimizer.step()
        assert [weight.nnz for weight in weights] == before
        for weight in weights:
            used = weight.fan_in()[weight.fan_in() > 0]
            assert int(used.max() - used.min()) <= 1
    assert any(bool((weight.fan_in() == 0).any()) for weight in weights[:2])
    method.detach()


@pytest.mark.parametrize("value", [-0.1, 1.1, "much", None])
def test_a_bad_share_is_refused(value: Any) -> None:
    model = regrow.sparsify(nn.Sequential(nn.Linear(8, 8)), 0.5, pattern="fan-in")
    with pytest.raises(RegrowValueError, match="`min_salient` must be"):
        regrow.SRigL(model, SGD(model.parameters(), lr=0.1), total_steps=9, min_salient=value)
