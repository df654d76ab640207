"""GraNet and ITOP by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from runs import assert_same_run, plain, storages
from torch import Tensor, nn
from torch.optim import SGD, Adam

import regrow
from regrow.accounting import pruning_levels, training_multiple
from regrow.methods import schedules
from regrow.methods.registry import get
from regrow.testing import Case, Run, check_both_storages, check_calendar, check_resume
from regrow.weights import sparse_weights

FIRST = torch.tensor([[6.0, -1.0, 5.0, -0.5, 4.0, 0.2, 0.0, 0.0]])
SECOND = torch.tensor([[0.1, 3.0, -0.3, 2.0, 7.0, 0.4, 0.0, 0.0]])
GRADIENT = torch.tensor([[0.1, 0.8, 0.2, 0.3, 0.5, 0.05, 0.4, -0.9]])


class Sum(nn.Module):
    """Two layers of eight positions, six of them active, and their sum; the gradient of either is the input."""

    def __init__(self, first: Tensor = FIRST, second: Tensor = SECOND) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 1, bias=False), nn.Linear(8, 1, bias=False)
        with torch.no_grad():
            self.a.weight.copy_(first)
            self.b.weight.copy_(second)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.a(x) + self.b(x)
        return y


def sparse(model: nn.Module, storage: str) -> nn.Module:
    mask = (torch.arange(8) < 6).view(1, 8)
    return regrow.sparsify(model, init={"a.weight": mask, "b.weight": mask}, storage=storage)


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, x: Tensor = GRADIENT, share: float = 1.0
) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        (share * model(x).sum()).backward()
        optimizer.step()


def positions(model: nn.Module) -> list[list[int]]:
    return [weight.positions().tolist() for weight in sparse_weights(model)]


# --- GraNet: pruning


@storages
def test_granet_prunes_all_layers_together_along_the_cubic_curve(storage: str) -> None:
    model = sparse(Sum(), storage)
    optimizer = SGD(model.parameters(), lr=0.0)
    method = regrow.GraNet(
        model, optimizer, total_steps=8, update_every=1, final_sparsity=0.5, drop_fraction=0.0
    )
    assert (method.descent.start, method.descent.stop) == (0, 5)  # 0.6875 of 8 steps is 5.5
    held = []
    for _ in range(8):
        train(model, optimizer, 1)
        held.append(sum(map(len, positions(model))))
    # s = 1/4 at the start; s(t) = 1/2 - 1/4 (1 - p)^3 of 16 positions, p = 1/5, 2/5, 3/5, 4/5, 1 at steps 1 to 5
    assert held == [12, 16 - 5, 16 - 7, 16 - 7, 16 - 7, 8, 8, 8]
    # 0.1, 0.2, 0.3 and 0.4 are the smallest: one of the first layer, three of the second
    assert positions(model) == [[0, 1, 2, 3, 4], [1, 3, 4]]
    for weight, dense in zip(sparse_weights(model), (FIRST, SECOND), strict=True):
        assert torch.equal(weight.to_dense(), dense * weight.mask())


@storages
def test_equal_weights_are_pruned_from_the_lower_layer_and_index(storage: str) -> None:
    equal = torch.tensor([[-0.5, 0.5, -0.5, 0.5, -0.5, 0.5, 0.0, 0.0]])
    model = sparse(Sum(equal, equal), storage)
    optimizer = SGD(model.parameters(), lr=0.0)
    regrow.GraNet(model, optimizer, total_steps=4, update_every=1, final_sparsity=0.5, drop_fraction=0.0)
    train(model, optimizer, 4)
    assert positions(model) == [[4, 5], [0, 1, 2, 3, 4, 5]]


@storages
def test_granet_prunes_by_layer_where_asked(storage: str) -> None:
    for final in (0.5, {"a.weight": 0.25, "b.weight": 0.75}):
        model = sparse(Sum(), storage)
        optimizer = SGD(model.parameters(), lr=0.0)
        options: dict[str, Any] = {
            "total_steps": 8,
            "update_every": 1,
            "drop_fraction": 0.0,
            "scope": "layer",
        }
        regrow.GraNet(model, optimizer, final_sparsity=final, **options)
        train(model, optimizer, 8)
        either = [[0, 1, 2, 4], [1, 3, 4, 5]] if final == 0.5 else [[0, 1, 2, 3, 4, 5], [1, 4]]
        assert positions(model) == either


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
@pytest.mark.parametrize("per_layer", [False, True])
def test_the_count_is_exact_at_every_update_from_dense_and_from_sparse(
    sparsity: float, per_layer: bool
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 7))
    regrow.sparsify(model, sparsity, "erk", include="*", storage="masked")
    size, initial = 740, sum(weight.nnz for weight in sparse_weights(model))
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    final: float | dict[str, float] = {"0.weight": 0.91, "2.weight": 0.7} if per_layer else 0.9
    end = (600 - 546) + (140 - 98) if per_layer else 740 - 666
    method = regrow.GraNet(model, optimizer, total_steps=100, update_every=5, final_sparsity=final)
    held: dict[int, int] = {}
    method.register_update_hook(
        lambda record: held.update({record["step"]: sum(w.nnz for w in sparse_weights(model))})
    )
    data = torch.Generator().manual_seed(0)
    for _ in range(100):
        optimizer.zero_grad()
        model(torch.randn(3, 30, generator=data)).square().mean().backward()
        optimizer.step()
    begins, ends = Fraction(size - initial, size), Fraction(size - end, size)
    for step in range(5, 100, 5):  # regeneration goes on to the end, at what is then held
        p = min(Fraction(step, 65), Fraction(1))  # 0.6875 of 100 steps, down to an update
        assert held[step] == size - math.floor((ends + (begins - ends) * (1 - p) ** 3) * size), step
    assert held[95] == end


def test_a_pruning_that_was_missed_is_made_up_for_and_exploring_prunes_nothing_else() -> None:
    model = sparse(Sum(), "masked")
    optimizer = SGD(model.parameters(), lr=0.0)
    method = regrow.GraNet(model, optimizer, total_steps=20, update_every=2, final_sparsity=0.5)
    held = []
    for i in range(20):
        if i == 7:
            method.explore(0.5)
        if i in (8, 15):
            method.evolve(0.0 if i == 8 else None)
        train(model, optimizer, 1)
        held.append(sum(map(len, positions(model))))
    # updates at steps 2 to 12, s = 1/2 - 1/4 (1 - p)^3: 16 - 5 at p = 1/6, 16 - 6 at 2/6, 16 - 7 at 3/6, where step
    # 7 explores; 8 at the next, step 16
    assert held == [12] * 2 + [11] * 2 + [10] * 2 + [9] * 10 + [8] * 4


def test_a_layer_that_is_pruned_away_is_told() -> None:
    model = sparse(Sum(FIRST, SECOND / 1000), "masked")
    optimizer = SGD(model.parameters(), lr=0.0)
    regrow.GraNet(
        model, optimizer, total_steps=8, update_every=1, final_sparsity=0.75, prune_stop_fraction=0.2
    )
    train(model, optimizer, 1)
    with pytest.warns(UserWarning, match="pruned the last connection of `b.weight`.*\n.*scope='layer'"):
        train(model, optimizer, 1)
    train(model, optimizer, 6)  # silent from then on
    assert len(positions(model)[0]) == 4


# --- GraNet: regeneration


def regenerate(storage: str, x: Tensor = GRADIENT, lr: float = 0.0, **options: Any) -> nn.Module:
    """One step, and one update that goes down the whole curve at once."""
    model = sparse(Sum(), storage)
    optimizer = SGD(model.parameters(), lr=lr)
    given = {"update_every": 1, "final_sparsity": 0.5, "schedule": "constant", "prune_stop_fraction": 0.1}
    regrow.GraNet(model, optimizer, total_steps=10, **{**given, **options})
    train(model, optimizer, 2, x)
    return model


@storages
def test_granet_regenerates_half_of_what_pruning_has_left(storage: str) -> None:
    model = regenerate(storage)
    # left are 6 -1 5 -0.5 4 and 3 2 7: floor(5/2) go from the first layer, -0.5 and -1, and floor(3/2) from the second,
    # 2; the largest gradients elsewhere are 0.9 at 7 and, for the first layer, 0.8 at 1: -1 stays what it was
    assert positions(model) == [[0, 1, 2, 4, 7], [1, 4, 7]]
    dense = [weight.to_dense().tolist() for weight in sparse_weights(model)]
    assert dense == [[[6, -1, 5, 0, 4, 0, 0, 0]], [[0, 3, 0, 0, 7, 0, 0, 0]]]


@storages
def test_what_was_pruned_may_grow_back_at_once_and_counts_as_kept(storage: str) -> None:
    model = regenerate(storage, torch.tensor([[0.1, 0.8, 0.2, 0.3, 0.5, -0.9, 0.4, 0.7]]))
    assert positions(model) == [[0, 1, 2, 4, 5], [1, 4, 5]]
    dense = [weight.to_dense() for weight in sparse_weights(model)]
    torch.testing.assert_close(dense[0], torch.tensor([[6, -1, 5, 0, 4, 0.2, 0, 0]]), rtol=0, atol=0)
    torch.testing.assert_close(dense[1], torch.tensor([[0, 3, 0, 0, 7, 0.4, 0, 0]]), rtol=0, atol=0)


@storages
def test_the_weights_take_their_step_before_they_are_judged(storage: str) -> None:
    # two steps at rate 1 along x make 0.1 the largest weight of its layer, and 7 the smallest
    x = torch.tensor([[-5.0, 0.0, 0.0, 0.0, 3.499, 0.0, 0.0, 0.0]])
    model = regenerate(storage, x, lr=1.0, drop_fraction=0.0, scope="layer")
    assert positions(model)[1] == [0, 1, 3, 5]
    assert float(sparse_weights(model)[1].to_dense()[0, 0]) == pytest.approx(10.1)
    model = regenerate(storage, x, lr=1.0, drop_fraction=0.0, scope="layer", skip_step=True)
    assert positions(model)[1] == [0, 1, 3, 4]  # judged after one step, at 5.1 and 3.501


@storages
def test_new_connections_have_no_optimizer_state_and_pruned_ones_leave_none(storage: str) -> None:
    model = sparse(Sum(), storage)
    optimizer = Adam(model.parameters(), lr=0.0)
    options: dict[str, Any] = {"final_sparsity": 0.5, "schedule": "constant", "prune_stop_fraction": 0.1}
    regrow.GraNet(model, optimizer, total_steps=10, update_every=1, **options)
    train(model, optimizer, 1)
    for weight in sparse_weights(model):
        for key in ("exp_avg", "exp_avg_sq"):
            state = optimizer.state[weight.parameter][key]
            state.copy_(weight.restrict(torch.ones_like(state)))
            if storage == "compressed":
                state[weight.nnz :] = 0
    train(model, optimizer, 1)
    for weight in sparse_weights(model):
        for key in ("exp_avg", "exp_avg_sq"):
            state = weight.take(optimizer.state[weight.parameter][key])
            assert [bool(entry) for entry in state] == [p != 7 for p in weight.positions().tolist()]
            assert int(optimizer.state[weight.parameter][key].count_nonzero()) == weight.nnz - 1


@storages
@pytest.mark.parametrize("name", ["granet", "pruning"])
def test_a_run_resumes_in_the_middle_of_the_curve(name: str, storage: str) -> None:
    """In compressed storage the parameter and its state are longer by now than the connections are many."""
    case = Case(get(name).cls, storage)
    whole, first = plain(case, 130), plain(case, 101)
    for attach_first in (True, False):
        resumed = Run(case, attach=attach_first)
        model_state, optimizer_state = copy.deepcopy((first.model.state_dict(), first.optimizer.state_dict()))
        resumed.model.load_state_dict(model_state)
        resumed.optimizer.load_state_dict(optimizer_state)
        if not attach_first:
            resumed.method = case.method(resumed.model, resumed.optimizer)
        for _ in resumed.train(101, 130):
            pass
        assert_same_run(whole, resumed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"final_sparsity": 1.0}, r"`final_sparsity` must be in \[0, 1\), got 1.0"),
        (
            {"final_sparsity": 0.2},
            "`final_sparsity` 0.2 of `a.weight`, `b.weight` is below the sparsity that it has, 0.25",
        ),
        ({"final_sparsity": {"a.weight": 0.5}}, r"must name exactly \['a.weight', 'b.weight'\]"),
        ({"scope": "globl"}, "`scope` must be one of global, layer, got 'globl', did you mean `global`"),
        (
            {"prune_start_fraction": 0.7},
            "`prune_start_fraction` must be at most `prune_stop_fraction` 0.6875",
        ),
        ({"prune_stop_fraction": 2}, r"`prune_stop_fraction` must be in \[0, 1\], got 2"),
        ({"update_every": 1000}, "`update_every` 1000 leaves no step to prune at between"),
        ({"stop_fraction": 0.05}, "`update_every` 10 leaves no step to prune at between"),
    ],
)
def test_granet_options_that_are_not_allowed(options: dict[str, Any], message: str) -> None:
    model = sparse(Sum(), "masked")
    optimizer = SGD(model.parameters(), lr=0.1)
    given = {"total_steps": 100, "final_sparsity": 0.9, "update_every": 10, **options}
    with pytest.raises(regrow.RegrowError, match=message):
        regrow.GraNet(model, optimizer, **given)
    regrow.Static(model, optimizer)  # nothing was attached


def test_granet_ends_its_curve_where_updates_end_early() -> None:
    model = sparse(Sum(), "masked")
    optimizer = SGD(model.parameters(), lr=0.0)
    method = regrow.GraNet(
        model, optimizer, total_steps=20, update_every=2, stop_fraction=0.4, final_sparsity=0.5
    )
    assert method.descent.stop == method.last_update == 6
    train(model, optimizer, 20)
    assert sum(map(len, positions(model))) == 8


@storages
@pytest.mark.parametrize("check", [check_both_storages, check_resume, check_calendar])
def test_the_layer_wise_variant_passes_the_common_suite(check: Callable[[Case], None], storage: str) -> None:
    check(Case(regrow.GraNet, storage, {"scope": "layer"}))


# --- what it costs


def test_granet_costs_a_dense_gradient_at_each_update_of_what_it_holds_then() -> None:
    given = {"dense": 10.0, "sparse": 1.0, "update_every": 2}
    one = training_multiple("granet", levels=[1.0], **given)
    assert one == training_multiple("rigl", **given)
    # forward passes of 10, 5.5 and 1; (3 f 2 + 2 f + 10) / 3 each
    three = training_multiple("granet", levels=[0.0, 0.5, 1.0], **given)
    assert three == pytest.approx((8 * 16.5 / 3 + 10) / 3 / 30)
    levels = pruning_levels(400, 0, 300, 100, initial=0.6)
    assert levels == pytest.approx([0.6, 1 - 0.4 * 8 / 27, 1 - 0.4 / 27, 1, 1])
    with pytest.raises(regrow.RegrowError, match=r"`initial` must be in \[0, 1\], got 2"):
        pruning_levels(initial=2)


# --- ITOP


def test_cosine_to_a_share() -> None:
    schedule = schedules.drop_schedule("cosine-to-0.01")
    assert [0.5 * schedule(p) for p in (0, 0.5, 1)] == pytest.approx([0.5, 0.2525, 0.005])
    with pytest.raises(regrow.RegrowError, match="cosine-to-k with a number k, such as cosine-to-0.01"):
        schedules.drop_schedule("cosine-to-")
    with pytest.raises(
        regrow.RegrowError, match=r"`schedule` 'cosine-to-1.5': `k` must be in \[0, 1\], got 1.5"
    ):
        schedules.drop_schedule("cosine-to-1.5")


@pytest.mark.parametrize(("method", "every"), [(regrow.ITOP, 4000), (regrow.SetITOP, 1500)])
def test_itop_updates_through_the_whole_run_by_the_papers_values(
    method: type[regrow.ITOP], every: int
) -> None:
    model = sparse(Sum(), "masked")
    driver = method(model, SGD(model.parameters(), lr=0.1), total_steps=97_750)  # CIFAR: 250 epochs of 391
    assert (driver.update_every, driver.last_update) == (every, 97_749 // every * every)
    fractions = [driver.fraction(step) for step in (0, 48_875, 97_750)]
    assert fractions == pytest.approx([0.5, 0.2525, 0.005])
    assert not driver.skip_step
    driver.detach()
    with pytest.warns(UserWarning, match=f"update_every={every} leaves no update within total_steps=100"):
        method(model, SGD(model.parameters(), lr=0.1), total_steps=100)


@storages
@pytest.mark.parametrize(("itop", "known"), [(regrow.ITOP, regrow.RigL), (regrow.SetITOP, regrow.SET)])
def test_itop_is_rigl_or_set_but_for_its_values(
    itop: type[regrow.Method], known: type[regrow.Method], storage: str
) -> None:
    same = {"drop_fraction": 0.5, "stop_fraction": 1.0, "schedule": "cosine-to-0.01", "skip_step": False}
    assert_same_run(plain(Case(itop, storage)), plain(Case(known, storage, same)))


def test_random_growth_needs_no_gradient_and_costs_none() -> None:
    assert (get("itop").needs, get("itop").cost) == ("update", "rigl")
    assert (get("itop-set").needs, get("itop-set").cost) == ("never", "sparse")


@storages
def test_every_update_tells_the_share_of_all_weights_that_was_ever_active(storage: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 10), nn.Linear(10, 4))
    regrow.sparsify(model, distribution={"0": 0.9, "1": 0.5, "2": 0.0}, storage=storage)
    optimizer = SGD(model.parameters(), lr=0.01)
    method = regrow.ITOP(model, optimizer, total_steps=60, update_every=5)
    weights = sparse_weights(model)
    ever = {weight.name: weight.mask() for weight in weights}
    shares: list[tuple[float, float]] = []

    def updated(record: dict[str, Any]) -> None:
        for weight in weights:
            ever[weight.name] |= weight.mask()
        counted = sum(int(mask.count_nonzero()) for mask in ever.values())
        shares.append((record["explored"], counted / sum(weight.numel for weight in weights)))

    method.register_update_hook(updated)
    assert method.explored == pytest.approx(sum(w.nnz for w in weights) / sum(w.numel for w in weights))
    data = torch.Generator().manual_seed(0)
    for _ in range(60):
        optimizer.zero_grad()
        model(torch.randn(3, 30, generator=data)).square().mean().backward()
        optimizer.step()
    assert len(shares) == 11
    for told, counted in shares:
        assert told == pytest.approx(counted)
    assert shares[-1][0] > shares[0][0]
