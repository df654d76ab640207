"""Pruning, SET's original form and the options of RigL's ablations, by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from runs import mlp
from torch import Tensor, nn
from torch.optim import SGD

import regrow
from regrow.methods import schedules
from regrow.testing import Case, Run, check_both_storages, check_calendar, check_resume
from regrow.weights import sparse_weights

# --- Pruning


@pytest.mark.parametrize("storage", ["masked", "compressed"])
def test_pruning_follows_the_cubic_schedule_exactly(storage: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 25)).double()
    regrow.sparsify(model, 0.0, storage=storage)
    optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9)
    method = regrow.Pruning(
        model,
        optimizer,
        total_steps=100,
        final_sparsity=0.8,
        update_every=10,
        start_fraction=0.2,
        stop_fraction=0.6,
    )
    (weight,) = sparse_weights(model)
    counts = []
    for step in range(100):
        before = weight.to_dense()
        optimizer.zero_grad()
        x = torch.randn(8, 40, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        model(x).square().mean().backward()
        optimizer.step()
        counts.append(weight.nnz)
        if step == 20:  # progress 0
            assert counts[-1] == 1000
        if step in (30, 40, 50, 60):
            assert weight.mask().sum() == weight.nnz
            assert (before != 0).sum() > weight.nnz
    # s(t) = 0.8 (1 - (1 - p)^3) at p = 1/4, 1/2, 3/4, 1; the middle one is 0.875 of the final sparsity
    expected = {29: 1000, 30: 1000 - 462, 40: 1000 - 700, 50: 1000 - 787, 60: 200, 99: 200}
    assert {step: counts[step] for step in expected} == expected
    assert (method.next_update, method.last_update) == (None, 60)


def test_cubic() -> None:
    assert [schedules.cubic(p) for p in (0.0, 0.5, 1.0)] == [0.0, 0.875, 1.0]


def test_pruning_keeps_the_largest() -> None:
    model = nn.Sequential(nn.Linear(8, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.5, -4.0, 3.0, 0.1, -2.0, 0.2, 1.0, -0.3]]))
    regrow.sparsify(model, 0.0)
    optimizer = SGD(model.parameters(), lr=0.0)
    regrow.Pruning(
        model,
        optimizer,
        total_steps=4,
        final_sparsity=0.5,
        update_every=1,
        start_fraction=0.25,
        stop_fraction=0.5,
    )
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.ones(1, 8)).sum().backward()
        optimizer.step()
    assert sparse_weights(model)[0].positions().tolist() == [1, 2, 4, 6]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"final_sparsity": 1.0}, r"`final_sparsity` must be in \[0, 1\), got 1.0"),
        (
            {"final_sparsity": 0.2},
            "`final_sparsity` 0.2 of `0.weight` is below the sparsity that it has, 0.5",
        ),
        ({"final_sparsity": {"0": 0.9}}, r"`final_sparsity` must name exactly \['0.weight'\], got \['0'\]"),
        (
            {"start_fraction": 0.9, "stop_fraction": 0.5},
            "`start_fraction` must be at most `stop_fraction` 0.5, got 0.9",
        ),
        ({"update_every": 1000}, "`update_every` 1000 leaves no step to prune at between"),
    ],
)
def test_pruning_options_that_are_not_allowed(options: dict[str, object], message: str) -> None:
    model = regrow.sparsify(nn.Sequential(nn.Linear(8, 8)), 0.5)
    given = {"total_steps": 100, "final_sparsity": 0.9, "update_every": 10, **options}
    with pytest.raises(regrow.RegrowError, match=message):
        regrow.Pruning(model, SGD(model.parameters(), lr=0.1), **given)  # type: ignore[arg-type]


# --- SET as published, and options


def test_set_as_published_drops_each_sign_separately() -> None:
    model = nn.Sequential(nn.Linear(10, 1, bias=False))
    values = torch.tensor([[5.0, 1.0, 4.0, 3.0, -0.1, -0.2, -0.3, 0.0, 0.0, 0.0]])
    with torch.no_grad():
        model[0].weight.copy_(values)
    regrow.sparsify(model, init={"0.weight": values != 0})
    optimizer = SGD(model.parameters(), lr=0.0)
    method = regrow.SET.original(model, optimizer, total_steps=9, steps_per_epoch=3, drop_fraction=0.5)
    assert (method.next_update, method.last_update) == (2, 5)  # the last steps of two epochs of three
    gone = method.drop(method.weights[0], 0.5).tolist()
    assert gone == [1, 3, 4]  # 1 and 3 of four positive ones, -0.1 of three negative ones
    for _ in range(3):
        assert method.weights[0].positions().tolist() == list(range(7))
        optimizer.zero_grad()
        model(torch.ones(1, 10)).sum().backward()
        optimizer.step()
    weight = method.weights[0]
    assert weight.nnz == 7
    assert weight.mask()[0, [0, 2, 5, 6]].all()
    fresh = [p for p in weight.positions().tolist() if p not in range(7)]
    assert all(weight.to_dense()[0, p] != 0 for p in fresh)


@pytest.mark.parametrize("storage", ["masked", "compressed"])
@pytest.mark.parametrize(
    ("steps", "length", "updates"),
    [(16, 4, [3, 7, 11]), (16, 1, list(range(15))), (16, 5, [4, 9, 14]), (15, 5, [4, 9]), (20, 20, [])],
)
def test_set_as_published_updates_between_epochs_but_not_after_the_last(
    storage: str, steps: int, length: int, updates: list[int]
) -> None:
    """The topology changes within the epoch's last step, after its weight step: an evaluation there sees it."""
    torch.manual_seed(0)
    model = regrow.sparsify(nn.Sequential(nn.Linear(12, 10, bias=False)), 0.5, storage=storage)
    optimizer = SGD(model.parameters(), lr=0.1)
    given = {"total_steps": steps, "steps_per_epoch": length}
    if updates:
        method = regrow.SET.original(model, optimizer, **given)
    else:
        with pytest.warns(UserWarning, match="update_every=20 leaves no update within total_steps=20"):
            method = regrow.SET.original(model, optimizer, **given)
    (weight,) = sparse_weights(model)
    due, moved = [], []
    for step in range(steps):
        before, due = weight.mask(), [*due, method.next_update]
        optimizer.zero_grad()
        model(torch.randn(4, 12, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        optimizer.step()
        if not torch.equal(weight.mask(), before):
            moved.append(step)
    assert moved == updates
    assert due == [next((u for u in updates if u >= step), None) for step in range(steps)]
    assert method.last_update == (updates[-1] if updates else None)


@pytest.mark.parametrize("storage", ["masked", "compressed"])
@pytest.mark.parametrize("check", [check_both_storages, check_resume, check_calendar])
def test_updates_at_the_end_of_intervals_pass_the_common_suite(
    check: Callable[[Case], None], storage: str
) -> None:
    check(Case(regrow.SET, storage, {"epoch_end": True, "per_sign": True}))


@pytest.mark.parametrize("storage", ["masked", "compressed"])
@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_new_connections_may_start_otherwise_than_at_zero(storage: str, kind: str) -> None:
    case = Case(regrow.SET, storage, {"grow_init": kind, "grow_scale": 10.0, "skip_step": True})
    run = Run(case)
    before: list[Tensor] = []
    for _ in run.train(0, 8):
        before = [weight.mask() for weight in run.weights]
    next(run.train(8, 9))  # the update, without a weight step
    for weight, mask in zip(run.weights, before, strict=True):
        if mask.all():  # the last layer is at density 1 under ERK
            continue
        fresh = weight.to_dense()[weight.mask() & ~mask]
        assert len(fresh) > 0
        assert (fresh != 0).all()
        assert fresh.abs().max() < weight.values().abs().max()
        momentum = run.optimizer.state[weight.parameter]["momentum_buffer"]
        new = torch.isin(weight.positions(), (weight.mask() & ~mask).view(-1).nonzero().view(-1))
        assert not weight.take(momentum)[new].any()


def test_the_inverse_power_schedule() -> None:
    assert schedules.drop_schedule("inverse-power-3")(0.5) == 0.125
    assert schedules.drop_schedule("inverse-power-1")(0.25) == schedules.linear(0.25)
    for wrong in ("inverse-power-", "inverse-power-x"):
        with pytest.raises(regrow.RegrowError, match="`schedule` must be inverse-power-k with a number k"):
            schedules.drop_schedule(wrong)
    model = mlp()
    regrow.sparsify(model, 0.5)
    with pytest.raises(
        regrow.RegrowError, match="`grow_init` must be one of zeros, normal, uniform, got 'zero'.*`zeros`"
    ):
        regrow.RigL(
            model, SGD(model.parameters(), lr=0.1), total_steps=10, stop_fraction=0.0, grow_init="zero"
        )
