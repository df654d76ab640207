"""Learning rates and calendars, with the figures of the published code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR

import regrow
from regrow.tickets import Phases, calendar, steps, triangular


def model() -> nn.Module:
    torch.manual_seed(0)
    return regrow.sparsify(
        nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 4)), 0.5, "uniform", include="*"
    )


def train(optimizer: Any, network: nn.Module) -> float:
    """One step; the learning rate that it was taken with."""
    optimizer.zero_grad()
    network(torch.ones(2, 6)).square().sum().mul(1e-6).backward()
    optimizer.step()
    return float(optimizer.param_groups[-1]["lr"])


@pytest.mark.parametrize(
    ("epoch", "iteration", "expected"),
    [(0, 0, 0.001), (2, 0, 0.003), (4, 0, 0.005), (6, 0, 0.003), (7, 390, 0.001 + 0.008 / (8 * 391))],
)
def test_the_triangle_of_a_cycle_of_eight_epochs(epoch: int, iteration: int, expected: float) -> None:
    n = 391
    assert triangular((epoch + iteration / n) / 8, 0.001, 0.005) == pytest.approx(expected, rel=1e-12)
    if iteration:
        assert expected == pytest.approx(0.00100256, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [((250, 0.1, 8), (226, 24, 3)), ((160, 0.2, 8), (128, 32, 4)), ((10, 0.1, 8), (10, 0, 0))],
)
def test_the_calendar_of_sup_tickets(arguments: Any, expected: tuple[int, int, int]) -> None:
    assert calendar(*arguments) == expected


def test_the_calendar_is_not_led_astray_by_binary_fractions() -> None:
    assert calendar(100, 0.29, 29) == (71, 29, 1)  # 0.29 * 100 is 28.999999999999996
    with pytest.raises(regrow.RegrowError, match=r"`share` must be in \[0, 1\], got 1.5"):
        calendar(100, 1.5, 8)


def test_steps_change_at_exact_parts_of_a_window() -> None:
    rates = 3 * [0.01] + 3 * [0.001] + [0.0001]  # ImageNet: 30, 30 and 10 of 70 epochs
    found = [steps(epoch / 70, rates) for epoch in range(70)]
    assert found == 30 * [0.01] + 30 * [0.001] + 10 * [0.0001]
    many = [float(rate) for rate in range(49)]  # 1 / 49 * 49 is 0.9999999999999999
    assert [steps(part / 49, many) for part in range(49)] == many


@pytest.mark.parametrize("kind", [float, torch.tensor], ids=["number", "tensor"])
def test_the_rate_in_a_cycle_is_set_whatever_a_scheduler_does(kind: Any) -> None:
    network = model()
    first, last = network[0], network[2]  # type: ignore[index]
    groups = [{"params": first.parameters(), "lr": kind(0.5)}, {"params": last.parameters()}]
    optimizer = SGD(groups, lr=kind(0.1))
    scheduler = StepLR(optimizer, 3, gamma=0.5)
    method = regrow.RigL(network, optimizer, total_steps=4, stop_fraction=0.0)
    tickets = regrow.SupTickets(method, start=4, cycles=2, cycle_steps=4, lr=(0.001, 0.005))
    rates: list[list[float]] = [[], []]
    for _ in range(12):
        train(optimizer, network)
        for group, found in zip(optimizer.param_groups, rates, strict=True):
            found.append(float(group["lr"]))
        scheduler.step()
        if tickets.ready:
            tickets.collect()
    cycles = [0.001, 0.003, 0.005, 0.003] * 2
    assert rates[0] == pytest.approx([0.5, 0.5, 0.5, 0.25, *cycles])
    assert rates[1] == pytest.approx([0.1, 0.1, 0.1, 0.05, *cycles])


def test_the_calendar_of_free_tickets() -> None:
    """T = 450 epochs, here of one step, of which 150 explore; three tickets."""
    network = model()
    optimizer = SGD(network.parameters(), lr=0.1)
    options: dict[str, Any] = {"drop_fraction": 0.5, "schedule": "constant", "stop_fraction": 1.0}
    method = regrow.RigL(network, optimizer, total_steps=450, update_every=120, **options)
    updates: list[tuple[int, float]] = []
    method.register_update_hook(lambda record: updates.append((record["step"], record["fraction"])))
    free = regrow.FreeTickets(method, start=150, tickets=3, ticket_steps=100)
    rates, windows = {}, {}
    for epoch in range(1, 451):
        rates[epoch] = train(optimizer, network)
        windows[epoch] = free.window
        free.consider(epoch / 450)
    expected = {**dict.fromkeys(range(1, 151), 0.1)}
    for first in (151, 251, 351):
        expected |= dict.fromkeys(range(first, first + 50), 0.01)
        expected |= dict.fromkeys(range(first + 50, first + 100), 0.001)
    assert rates == expected
    # escapes after epochs 250 and 350; the other updates are the method's own
    assert updates == [(120, 0.5), (240, 0.5), (250, 0.8), (350, 0.8), (360, 0.5)]
    assert windows == {epoch: (epoch - 151) // 100 if epoch > 150 else None for epoch in windows}
    assert free.done


def test_sup_tickets_explore_in_each_cycle_and_rest_in_between_unless_told_to_evolve() -> None:
    for evolve, between in ((None, []), (0.2, [(6, 0.2), (9, 0.2)])):
        network = model()
        optimizer = SGD(network.parameters(), lr=0.1)
        method = regrow.SET(network, optimizer, total_steps=5, update_every=3, stop_fraction=1.0)
        updates: list[tuple[int, float]] = []
        method.register_update_hook(
            lambda record, to=updates: to.append((record["step"], record["fraction"]))
        )
        tickets = regrow.SupTickets(method, start=5, cycles=2, cycle_steps=3, explore=0.5, evolve=evolve)
        for _ in range(11):
            train(optimizer, network)
            if tickets.ready:
                tickets.collect()
        assert [update for update in updates if update[0] >= 5] == sorted([(5, 0.5), (8, 0.5), *between])
        assert [step for step, _ in updates if step < 5] == [3]


def test_phases_by_themselves() -> None:
    network = model()
    optimizer = SGD(network.parameters(), lr=0.1)
    method = regrow.Static(network, optimizer)
    phases = Phases(method, start=2, count=2, length=2, rate=lambda progress: 0.2 + progress)
    assert [train(optimizer, network) for _ in range(7)] == [0.1, 0.1, 0.2, 0.7, 0.2, 0.7, 0.7]
    assert [phases.learning_rate(step) for step in (1, 2, 5, 6)] == [None, 0.2, 0.7, None]
    with pytest.raises(regrow.RegrowError, match="`method` makes tickets already"):
        Phases(method, start=2, count=2, length=2, rate=lambda progress: 0.2)
    phases.detach()
    phases = Phases(method, start=0, count=9, length=2, rate=lambda progress: 0.3)
    assert train(optimizer, network) == 0.3
    with pytest.raises(regrow.RegrowError, match="`explore` and `evolve` need a method that drops and grows"):
        Phases(method, start=2, count=2, length=2, rate=lambda progress: 0.2, explore=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": (0.1,)}, r"`lr` must be 2 positive numbers, got \(0.1,\)"),
        ({"lr": (0.1, 0.0)}, "`lr` must be 2 positive numbers"),
        ({"cycles": -1}, "`cycles` must be a whole number of at least 0, got -1"),
        ({"start": 0}, "`start` must be a whole number of at least 1, got 0"),
        ({"cycle_steps": 0}, "`cycle_steps` must be a whole number of at least 1"),
        ({"explore": 1.5}, r"`explore` must be in \[0, 1\], got 1.5"),
        (
            {"average": "means"},
            "`average` must be one of mean, exponential, got 'means', did you mean `mean`?",
        ),
        ({"average": "exponential", "factor": 0.0}, r"`factor` must be in \(0, 1\), got 0.0"),
        ({"rule": "never"}, "`rule` must be one of running, once"),
        ({"divide": "all"}, "`divide` must be one of tickets, holders"),
        ({"scope": "layers"}, "`scope` must be one of global, layer, got 'layers', did you mean `layer`?"),
        ({"density": 0.0}, r"`density` must be in \(0, 0.5\], of which the model has connections, got 0.0"),
        ({"density": 0.6}, r"`density` must be in \(0, 0.5\], of which the model has connections, got 0.6"),
    ],
)
def test_arguments_that_are_refused_leave_the_optimizer_alone(options: dict[str, Any], message: str) -> None:
    network = model()
    optimizer = SGD(network.parameters(), lr=0.1)
    method = regrow.RigL(network, optimizer, total_steps=4, stop_fraction=0.0)
    with pytest.raises(regrow.RegrowError, match=message):
        regrow.SupTickets(method, **{"start": 4, "cycle_steps": 2, **options})
    regrow.SupTickets(method, start=4, cycle_steps=2)
