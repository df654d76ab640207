"""MEST by hand: its score, its bounds and what they cost."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from runs import assert_same_run, plain, storages
from torch import Tensor, nn
from torch.optim import SGD

import regrow
from regrow.accounting import costs, training_multiple
from regrow.methods import schedules
from regrow.methods.registry import get
from regrow.testing import Case, Run
from regrow.weights import sparse_weights

MASK = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0]], dtype=torch.bool)
WEIGHT = torch.tensor([[4.0, -1.0, 3.0, -2.0, 0.0, 0.0, 0.0, 0.0]])
GRADIENT = torch.tensor([[0.1, -0.8, 0.2, 0.1, 9.0, 9.0, 9.0, 9.0]])


def layer(storage: str, mask: Tensor = MASK, weight: Tensor = WEIGHT) -> nn.Sequential:
    """Make one sparse layer; where the loss is the output, the gradient is the input."""
    model = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False))
    with torch.no_grad():
        model[0].weight.copy_(weight)
    return regrow.sparsify(model, init={"0.weight": mask}, storage=storage)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, x: Tensor = GRADIENT) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).sum().backward()
        optimizer.step()


def positions(model: nn.Module) -> list[int]:
    (weight,) = sparse_weights(model)
    return weight.positions().tolist()


# --- the score


@storages
@pytest.mark.parametrize(
    ("gradient_weight", "gone"),
    [(0.0, 1), (1.0, 1), (2.0, 3)],  # |w| 4, 1, 3, 2; + 1 |g| 4.1, 1.8, 3.2, 2.1; + 2 |g| 4.2, 2.6, 3.4, 2.2
)
@pytest.mark.parametrize("soft", [False, True])
def test_the_smallest_magnitude_and_gradient_goes(
    gradient_weight: float, gone: int, soft: bool, storage: str
) -> None:
    model = layer(storage)
    optimizer = SGD(model.parameters(), lr=0.0)
    options: dict[str, Any] = {"total_steps": 4, "update_every": 1, "gradient_weight": gradient_weight}
    if soft:  # down to three of four, and none comes
        regrow.SoftMEST(model, optimizer, final_sparsity=0.625, stop_fraction=0.25, **options)
    else:
        regrow.MEST(model, optimizer, drop_fraction=0.25, **options)
    train(model, optimizer, 2)
    survivors = [p for p in range(4) if p != gone]
    found = positions(model)
    assert set(survivors) <= set(found)
    assert len(found) == (3 if soft else 4)
    assert sparse_weights(model)[0].to_dense()[0, survivors].tolist() == WEIGHT[0, survivors].tolist()


@storages
def test_the_gradient_is_the_one_that_the_optimizer_has(storage: str) -> None:
    """Clipped to a norm of 0.01 it no longer saves the connection that it saves unclipped."""
    for clip, gone in ((None, 3), (0.01, 1)):
        model = layer(storage)
        optimizer = SGD(model.parameters(), lr=0.0)
        regrow.SoftMEST(
            model, optimizer, final_sparsity=0.625, stop_fraction=0.25, total_steps=4, update_every=1,
            gradient_weight=2.0,
        )  # fmt: skip
        for _ in range(2):
            optimizer.zero_grad()
            model(GRADIENT).sum().backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
        assert positions(model) == [p for p in range(4) if p != gone]


@storages
def test_without_the_gradient_it_is_set(storage: str) -> None:
    same = {"drop_fraction": 0.2, "schedule": "halved-at-0.75"}
    one = plain(Case(regrow.MEST, storage, {"gradient_weight": 0.0}))
    assert_same_run(one, plain(Case(regrow.SET, storage, same)))
    assert plain(Case(regrow.MEST, storage)).topology() != one.topology()


def test_it_needs_no_dense_gradient() -> None:
    for name in ("mest", "mest-soft"):
        assert (get(name).needs, get(name).storages) == ("never", ("masked", "compressed"))


# --- the bounds of the published code: 160 epochs, an update every 5, at 90% and at 95%


def test_halved_at() -> None:
    schedule = schedules.drop_schedule("halved-at-0.75")
    assert [schedule(p) for p in (0.0, 0.7499, 90 / 120, 1.0)] == [1.0, 1.0, 0.5, 0.5]
    with pytest.raises(regrow.RegrowError, match="halved-at-k with a number k, such as halved-at-0.75"):
        schedules.drop_schedule("halved-at-half")


@storages
@pytest.mark.parametrize(("sparsity", "lowest"), [(0.9, (0.92, 0.91)), (0.95, (0.96, 0.955))])
def test_em_prunes_to_the_published_sparsities_and_back(
    sparsity: float, lowest: tuple[float, float], storage: str
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1000, 1, bias=False))
    regrow.sparsify(model, sparsity, include="0", storage=storage)
    optimizer = SGD(model.parameters(), lr=0.01)
    method = regrow.MEST(model, optimizer, total_steps=160, update_every=5)
    (weight,) = sparse_weights(model)
    assert [weight.nnz - len(method.drop(weight, method.fraction(epoch))) for epoch in (5, 85, 90, 115)] == [
        round(1000 * (1 - s)) for s in (lowest[0], lowest[0], lowest[1], lowest[1])
    ]
    assert (method.last_update, method.fraction(120)) == (115, 0.1)  # the rest is at its final topology
    train(model, optimizer, 100, torch.randn(1, 1000))
    assert weight.nnz == round(1000 * (1 - sparsity))


def test_the_defaults_are_epochs_of_cifar() -> None:
    model = layer("masked")
    method = regrow.MEST(model, SGD(model.parameters(), lr=0.1), total_steps=160 * 782)
    assert (method.next_update, method.last_update) == (5 * 782, 115 * 782)


@storages
@pytest.mark.parametrize(("sparsity", "held"), [(0.9, (150, 125, 100)), (0.95, (100, 75, 50))])
def test_the_soft_bound_is_held_to_the_last_update(
    sparsity: float, held: tuple[int, int, int], storage: str
) -> None:
    """0.85, 0.875 and 0.9, or 0.9, 0.925 and 0.95, from epochs 0, 90 and 120."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1000, 1, bias=False))
    regrow.sparsify(model, regrow.SoftMEST.starts_from(sparsity), include="0", storage=storage)
    optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9)
    method = regrow.SoftMEST(model, optimizer, total_steps=160, final_sparsity=sparsity, update_every=5)
    records: list[dict[str, Any]] = []
    method.register_update_hook(records.append)
    (weight,) = sparse_weights(model)
    counts = []
    for _ in range(160):
        train(model, optimizer, 1, torch.randn(1, 1000))
        counts.append(weight.nnz)
    assert counts == [held[0]] * 90 + [held[1]] * 30 + [held[2]] * 40
    assert [record["step"] for record in records] == list(range(5, 125, 5))
    # at each update but the last, what is beyond the final connections goes and as many come
    assert all(record["layers"]["0.weight"]["grown"] > 0 for record in records[:-1])
    assert records[-1]["layers"]["0.weight"]["grown"] == 0


@storages
def test_a_run_resumes_where_the_bound_is_halved(storage: str) -> None:
    case = Case(regrow.SoftMEST, storage)
    whole, first = plain(case, 190), plain(case, 150)
    for attach_first in (True, False):
        resumed = Run(case, attach=attach_first)
        model_state, optimizer_state = copy.deepcopy((first.model.state_dict(), first.optimizer.state_dict()))
        resumed.model.load_state_dict(model_state)
        resumed.optimizer.load_state_dict(optimizer_state)
        if not attach_first:
            resumed.method = case.method(resumed.model, resumed.optimizer)
        for _ in resumed.train(150, 190):
            pass
        assert_same_run(whole, resumed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"final_sparsity": 0.5},
            r"`final_sparsity` 0.5 leaves no room: the model has no more connections.*\n"
            r"Make it less sparse: regrow.sparsify\(model, 0.45, ...\)",
        ),
        ({"final_sparsity": 0.25}, "`final_sparsity` 0.25 of `0.weight` is below the sparsity that it has"),
        ({"final_sparsity": 1.0}, r"`final_sparsity` must be in \[0, 1\)"),
        ({"gradient_weight": -1.0}, "`gradient_weight` must be a number of at least 0, got -1.0"),
        ({"update_every": 90}, "`update_every` 90 leaves no step to prune at between 0 and 75 of"),
    ],
)
def test_soft_options_that_are_not_allowed(options: dict[str, Any], message: str) -> None:
    model = layer("masked")
    optimizer = SGD(model.parameters(), lr=0.1)
    given = {"total_steps": 100, "final_sparsity": 0.625, "update_every": 10, **options}
    with pytest.raises(regrow.RegrowError, match=message):
        regrow.SoftMEST(model, optimizer, **given)
    regrow.Static(model, optimizer)  # nothing was attached


# --- what it costs


def test_the_soft_bound_is_paid_for_and_elastic_mutation_costs_nothing() -> None:
    given = {"dense": 100.0, "sparse": 10.0}
    assert training_multiple(get("mest").cost, **given) == training_multiple("sparse", **given) == 0.1
    levels = get("mest-soft").levels(0.9)
    assert levels is not None
    # 15 until epoch 90 of 160, 12.5 until 120, then 10
    multiple = training_multiple(get("mest-soft").cost, **given, levels=levels)
    assert multiple == pytest.approx((90 * 15 + 30 * 12.5 + 40 * 10) / 160 / 100)
    assert set(regrow.SoftMEST.levels(0.0)) == {1.0}
    model = regrow.sparsify(nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 10)), 0.8)
    multiples = costs(model, torch.zeros(1, 20)).training_multiple
    assert multiples["mest"] == multiples["static"] < multiples["mest-soft"]
