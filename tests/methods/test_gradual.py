"""The cubic curve: where it starts and ends, and where each update of a network stands on it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from runs import storages
from torch import nn
from torch.optim import SGD

import regrow
from regrow.methods.gradual import Descent
from regrow.weights import sparse_weights

START = {regrow.Pruning: "start_fraction", regrow.GraNet: "prune_start_fraction"}
STOP = {regrow.Pruning: "stop_fraction", regrow.GraNet: "prune_stop_fraction"}
GRADUAL = pytest.mark.parametrize("cls", [regrow.Pruning, regrow.GraNet])


def held(
    cls: type[regrow.Method], storage: str, size: int, steps: int, start: float, stop: float, **options: Any
) -> list[int]:
    """The connections after each step of one dense layer of `size` weights."""
    torch.manual_seed(0)
    model = regrow.sparsify(nn.Sequential(nn.Linear(size, 1, bias=False)), 0.0, storage=storage)
    optimizer = SGD(model.parameters(), lr=0.01)
    if cls is regrow.GraNet:
        options["drop_fraction"] = 0.0
    cls(model, optimizer, total_steps=steps, **{START[cls]: start, STOP[cls]: stop}, **options)
    counts = []
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, size, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        optimizer.step()
        counts.append(sparse_weights(model)[0].nnz)
    return counts


@storages
@GRADUAL
def test_a_curve_from_step_0_has_gone_half_of_its_way_at_the_first_of_two_updates(
    cls: type[regrow.Method], storage: str
) -> None:
    # s(t) = 0.8 (1 - (1 - t / 2)^3): 0.7 at t = 1, 0.8 at t = 2
    assert held(cls, storage, 10, 4, 0.0, 0.5, update_every=1, final_sparsity=0.8) == [10, 3, 2, 2]


@storages
@GRADUAL
def test_update_j_of_five_has_gone_j_fifths_of_the_way(cls: type[regrow.Method], storage: str) -> None:
    counts = held(cls, storage, 1000, 32, 0.0, 0.8, update_every=5, final_sparsity=0.5)  # to step 25 of 25.6
    expected = [1000 - int(round(500 * (1 - (1 - j / 5) ** 3), 6)) for j in range(6)]
    assert expected == [1000, 756, 608, 532, 504, 500]
    assert counts == [expected[min(step // 5, 5)] for step in range(32)]


@storages
@GRADUAL
def test_jaxpruners_value_half_way(cls: type[regrow.Method], storage: str) -> None:
    """PolynomialSchedule, updates every 5 of steps 0 to 20, target 0.5: 0.4375 at progress 1/2."""
    counts = held(cls, storage, 160, 25, 0.0, 0.8, update_every=5, final_sparsity=0.5)
    assert counts[10] == 160 * (1 - 0.4375)
    assert counts[20] == 80


@storages
@GRADUAL
def test_a_curve_that_starts_later_is_at_its_start_there(cls: type[regrow.Method], storage: str) -> None:
    counts = held(cls, storage, 10, 8, 0.5, 0.75, update_every=1, final_sparsity=0.8)
    assert counts == [10, 10, 10, 10, 10, 3, 2, 2]


@pytest.mark.parametrize(
    ("total", "every", "start", "stop", "expected"),
    [
        (10_000, 100, 0.07, 1.0, (700, 10_000)),
        (100, 1, 0.0, 0.29, (0, 29)),
        (1000, 10, 0.57, 0.58, (570, 580)),  # 569.9999999999999 and 580.0
        (32_000, 100, 0.3125, 0.78125, (10_000, 25_000)),
        (100, 7, 0.08, 0.5, (14, 49)),
    ],
)
def test_starts_and_ends_do_not_hang_on_floating_point(
    total: int, every: int, start: float, stop: float, expected: tuple[int, int]
) -> None:
    descent = Descent.of_run(total, every, start, stop)
    assert (descent.start, descent.stop) == expected
    model = regrow.sparsify(nn.Sequential(nn.Linear(8, 8)), 0.0)
    options = {"total_steps": total, "update_every": every, "final_sparsity": 0.5}
    pruning = regrow.Pruning(
        model, SGD(model.parameters(), lr=0.1), start_fraction=start, stop_fraction=stop, **options
    )
    assert (pruning.next_update, pruning.last_update) == (max(every, expected[0]), expected[1])
    pruning.detach()
    granet = regrow.GraNet(
        model,
        SGD(model.parameters(), lr=0.1),
        prune_start_fraction=start,
        prune_stop_fraction=stop,
        **options,
    )
    assert granet.next_update == max(every, expected[0])
    assert granet.descent.stop == min(expected[1], total - every)  # there is no update at the run's end
    granet.detach()


def test_a_curve_without_an_update_is_refused() -> None:
    with pytest.raises(
        regrow.RegrowError, match="`update_every` 30 leaves no step to prune at between 0 and 29 of"
    ):
        Descent.of_run(100, 30, 0.0, 0.29)
    assert Descent.of_run(100, 29, 0.0, 0.29).share(29) == 1.0


@storages
def test_granet_does_not_regenerate_before_it_prunes(storage: str) -> None:
    torch.manual_seed(0)
    model = regrow.sparsify(nn.Sequential(nn.Linear(20, 10, bias=False)), 0.5, storage=storage)
    optimizer = SGD(model.parameters(), lr=0.01)
    method = regrow.GraNet(
        model, optimizer, total_steps=20, update_every=2, final_sparsity=0.8, prune_start_fraction=0.4
    )
    (weight,) = sparse_weights(model)
    first, steps = weight.positions(), []
    method.register_update_hook(lambda record: steps.append(record["step"]))
    assert method.next_update == 8
    for step in range(20):
        if step == 8:
            assert torch.equal(weight.positions(), first)
        optimizer.zero_grad()
        model(torch.randn(4, 20, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        optimizer.step()
    assert steps == list(range(8, 20, 2))
    assert weight.nnz == 40


def test_what_is_asked_of_granet_is_done_before_its_start_too() -> None:
    model = regrow.sparsify(nn.Sequential(nn.Linear(20, 10, bias=False)), 0.5, storage="masked")
    optimizer = SGD(model.parameters(), lr=0.0)
    method = regrow.GraNet(
        model, optimizer, total_steps=20, update_every=2, final_sparsity=0.8, prune_start_fraction=0.6
    )
    steps: list[int] = []
    method.register_update_hook(lambda record: steps.append(record["step"]))
    for step in range(8):
        if step == 1:
            method.explore(0.5)
        if step == 3:
            method.evolve(0.2)
        if step == 6:
            method.evolve(None)
        optimizer.zero_grad()
        model(torch.randn(4, 20)).square().mean().backward()
        optimizer.step()
    assert steps == [1, 4]
    assert sparse_weights(model)[0].nnz == 100
    assert method.next_update == 12
