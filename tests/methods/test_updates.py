"""One update of RigL and of SET by hand, and what chapter 12 F of the RigL family says of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam

import regrow
from regrow import _random
from regrow.weights import SparseWeight, sparse_weights

MASK = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0]], dtype=torch.bool)
WEIGHT = torch.tensor([[4.0, -1.0, 3.0, -2.0, 0.0, 0.0, 0.0, 0.0]])
GRADIENT = torch.tensor(
    [[0.1, 0.8, 0.2, 0.3, 0.5, -0.9, 0.4, 0.7]]
)  # the input, where the loss is the output

storages = pytest.mark.parametrize("storage", ["masked", "compressed"])


def eight(storage: str) -> nn.Sequential:
    """A layer of eight positions, four of them active."""
    model = nn.Sequential(nn.Linear(8, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(WEIGHT)
    regrow.sparsify(model, init={"0.weight": MASK}, storage=storage)
    return model


def only(model: nn.Module) -> SparseWeight:
    (weight,) = sparse_weights(model)
    return weight


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(GRADIENT.to(only(model).parameter.dtype)).sum().backward()
    optimizer.step()


@storages
@pytest.mark.parametrize(
    ("fraction", "active", "weight"),
    [
        (0.0, [0, 1, 2, 3], [4, -1, 3, -2, 0, 0, 0, 0]),
        (0.25, [0, 2, 3, 5], [4, 0, 3, -2, 0, 0, 0, 0]),  # -1 goes, 0.9 comes
        (
            0.5,
            [0, 1, 2, 5],
            [4, -1, 3, 0, 0, 0, 0, 0],
        ),  # -1 and -2 go, 0.9 and 0.8 come: -1 comes back, unchanged
        (0.75, [0, 1, 5, 7], [4, -1, 0, 0, 0, 0, 0, 0]),
        (1.0, [1, 4, 5, 7], [0, -1, 0, 0, 0, 0, 0, 0]),
    ],
)
def test_rigl_on_eight_elements(
    storage: str, fraction: float, active: list[int], weight: list[float]
) -> None:
    model = eight(storage)
    optimizer = SGD(model.parameters(), lr=0.0)  # step 0 changes nothing, step 1 is an update
    regrow.RigL(
        model,
        optimizer,
        total_steps=10,
        update_every=1,
        stop_fraction=1.0,
        schedule="constant",
        drop_fraction=fraction,
    )
    step(model, optimizer)
    assert torch.equal(only(model).mask(), MASK)
    step(model, optimizer)
    assert only(model).positions().tolist() == active
    assert only(model).to_dense().tolist() == [weight]


@storages
@pytest.mark.parametrize(
    ("fraction", "survivors"), [(0.0, [0, 1, 2, 3]), (0.25, [0, 2, 3]), (0.5, [0, 2]), (0.75, [0]), (1.0, [])]
)
def test_set_on_eight_elements(storage: str, fraction: float, survivors: list[int]) -> None:
    model = eight(storage)
    optimizer = SGD(model.parameters(), lr=0.0)
    regrow.SET(
        model,
        optimizer,
        total_steps=10,
        update_every=1,
        stop_fraction=1.0,
        schedule="constant",
        drop_fraction=fraction,
    )
    step(model, optimizer)
    step(model, optimizer)
    free = [position for position in range(8) if position not in survivors]
    ranks = _random.sample(4 - len(survivors), len(free), _random.generator(0, 1, "0.weight"))
    active = sorted(survivors + [free[rank] for rank in ranks.tolist()])
    assert only(model).positions().tolist() == active
    kept = [float(WEIGHT[0, i]) if i in active and i < 4 else 0.0 for i in range(8)]
    assert only(model).to_dense().tolist() == [kept]


@storages
def test_equal_scores_go_to_the_lower_position(storage: str) -> None:
    model = nn.Sequential(nn.Linear(8, 1, bias=False))
    nn.init.constant_(model[0].weight, 0.5)
    regrow.sparsify(model, init={"0.weight": MASK}, storage=storage)
    optimizer = SGD(model.parameters(), lr=0.0)
    regrow.RigL(model, optimizer, total_steps=10, update_every=1, drop_fraction=0.5, schedule="constant")
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]])).sum().backward()
        optimizer.step()
    assert only(model).positions().tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize(("active", "fraction", "dropped"), [(10, 0.3, 3), (3, 0.3, 0), (4704, 0.3, 1411)])
def test_counts_are_the_floor(active: int, fraction: float, dropped: int) -> None:
    model = nn.Sequential(nn.Linear(100, 100))
    mask = torch.zeros(10_000, dtype=torch.bool)
    mask[:active] = True
    regrow.sparsify(model, init={"0.weight": mask.view(100, 100)})
    optimizer = SGD(model.parameters(), lr=0.0)
    method = regrow.SET(
        model,
        optimizer,
        total_steps=10,
        update_every=1,
        drop_fraction=fraction,
        schedule="constant",
        stop_fraction=1,
    )
    smallest = set(only(model).values().abs().argsort()[:dropped].tolist())
    records: list[dict[str, object]] = []
    method.register_update_hook(records.append)
    before = only(model).positions()
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(4, 100)).sum().backward()
        optimizer.step()
    gone = {int((before == p).nonzero()) for p in before if p not in only(model).positions()}
    assert gone <= smallest
    assert only(model).nnz == active
    assert records[0]["step"] == 1


@storages
def test_rigl_takes_no_weight_step_at_an_update_and_set_does(storage: str) -> None:
    for method, moves in ((regrow.RigL, False), (regrow.SET, True)):
        model = eight(storage)
        optimizer = SGD(model.parameters(), lr=0.1)
        method(model, optimizer, total_steps=10, update_every=1, drop_fraction=0.5)
        step(model, optimizer)
        before = only(model).to_dense()
        step(model, optimizer)
        assert (only(model).to_dense()[0, 0] != before[0, 0]) == moves
        model = eight(storage)
        optimizer = SGD(model.parameters(), lr=0.1)
        method(model, optimizer, total_steps=10, update_every=1, drop_fraction=0.5, skip_step=moves)
        step(model, optimizer)
        before = only(model).to_dense()
        step(model, optimizer)
        assert (only(model).to_dense()[0, 0] != before[0, 0]) != moves


@storages
def test_no_weight_step_is_skipped_where_nothing_moves(storage: str) -> None:
    """T_end = 4.04 is not a multiple of 2: at step 4 the cosine has left a share of 1e-4 of four connections, none."""
    for stop, rests in ((0.505, [2]), (0.5, [2]), (0.9, [2, 4])):
        model = eight(storage)
        optimizer = SGD(model.parameters(), lr=0.1)
        method = regrow.RigL(
            model, optimizer, total_steps=8, update_every=2, stop_fraction=stop, drop_fraction=0.9
        )
        records: list[dict[str, Any]] = []
        method.register_update_hook(records.append)
        rested = []
        for at in range(6):
            before = only(model).to_dense()[0, 0]
            step(model, optimizer)
            if only(model).to_dense()[0, 0] == before:
                rested.append(at)
        assert rested == rests
        assert [record["step"] for record in records] == ([2] if stop == 0.5 else [2, 4])


@storages
def test_optimizer_state_of_ones_is_zero_exactly_at_new_connections(storage: str) -> None:
    model = eight(storage)
    optimizer = Adam(model.parameters(), lr=0.0)
    regrow.RigL(model, optimizer, total_steps=10, update_every=1, drop_fraction=0.5, schedule="constant")
    step(model, optimizer)
    weight = only(model)
    for key in ("exp_avg", "exp_avg_sq"):
        state = optimizer.state[weight.parameter][key]
        state.copy_(weight.restrict(torch.ones_like(state)))
    step(model, optimizer)
    assert weight.positions().tolist() == [0, 1, 2, 5]
    for key in ("exp_avg", "exp_avg_sq"):
        assert weight.take(optimizer.state[weight.parameter][key]).tolist() == [1, 1, 1, 0]
        assert optimizer.state[weight.parameter][key].sum() == 3


@storages
def test_the_output_changes_only_by_what_was_dropped(storage: str) -> None:
    model = eight(storage)
    optimizer = SGD(model.parameters(), lr=0.0)
    regrow.RigL(model, optimizer, total_steps=10, update_every=1, drop_fraction=0.25, schedule="constant")
    step(model, optimizer)
    x = torch.randn(5, 8)
    before = model(x)
    step(model, optimizer)
    torch.testing.assert_close(model(x), before - x[:, 1:2] * WEIGHT[0, 1])


def test_layers_at_density_one_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    regrow.sparsify(model, distribution={"0": 0.0, "2": 0.5})
    optimizer = SGD(model.parameters(), lr=0.1)
    method = regrow.RigL(model, optimizer, total_steps=20, update_every=2)
    layers: set[str] = set()
    method.register_update_hook(lambda record: layers.update(record["layers"]))
    for _ in range(20):
        optimizer.zero_grad()
        model(torch.randn(3, 6)).square().sum().backward()
        optimizer.step()
    assert layers == {"2.weight"}
    assert regrow.masks(model)["0.weight"].all()


def test_a_layer_that_no_gradient_reaches_is_left_alone() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.used(x)
            return y

    model = regrow.sparsify(Two(), 0.5)
    optimizer = Adam(model.parameters())
    regrow.SET(model, optimizer, total_steps=20, update_every=2)
    before = regrow.masks(model)
    for _ in range(20):
        optimizer.zero_grad()
        model(torch.randn(3, 8)).square().sum().backward()
        optimizer.step()
    assert torch.equal(regrow.masks(model)["unused.weight"], before["unused.weight"])
    assert not torch.equal(regrow.masks(model)["used.weight"], before["used.weight"])


def test_explored_counts_every_connection_that_was_ever_active() -> None:
    shares = {}
    for storage in ("masked", "compressed"):
        torch.manual_seed(0)
        model = regrow.sparsify(nn.Sequential(nn.Linear(30, 20)), 0.8, storage=storage)
        optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9)
        method = regrow.SET(model, optimizer, total_steps=100, update_every=5)
        records: list[dict[str, float]] = []
        method.register_update_hook(
            lambda record, to=records: to.append(record["layers"]["0.weight"]["explored"])
        )
        ever = regrow.masks(model)["0.weight"]
        data = torch.Generator().manual_seed(0)
        for _ in range(100):
            optimizer.zero_grad()
            model(torch.randn(3, 30, generator=data)).square().sum().backward()
            optimizer.step()
            ever |= regrow.masks(model)["0.weight"]
        assert records[-1] == pytest.approx(ever.double().mean().item())
        assert records == sorted(records)
        shares[storage] = records[-1]
    assert shares["masked"] == shares["compressed"]


def test_past_total_steps_the_topology_rests_with_one_warning() -> None:
    model = eight("masked")
    optimizer = SGD(model.parameters(), lr=0.01)
    method = regrow.SET(model, optimizer, total_steps=4, update_every=1, stop_fraction=1.0)
    for _ in range(4):
        step(model, optimizer)
    before = regrow.masks(model)["0.weight"]
    with pytest.warns(UserWarning, match="past total_steps=4 the topology rests"):
        step(model, optimizer)
    for _ in range(4):
        step(model, optimizer)  # silent: warnings are errors here
    assert torch.equal(regrow.masks(model)["0.weight"], before)
    assert method.step == 9


def test_repr_says_where_it_stands() -> None:
    model = eight("masked")
    optimizer = SGD(model.parameters(), lr=0.01)
    method = regrow.RigL(model, optimizer, total_steps=20_000)
    step(model, optimizer)
    assert repr(method) == (
        "RigL(1 of 20000 steps made; updates to come: the next at step 100, the last at 14900; sparsity now 0.5000)"
    )
    method.evolve(0.1)
    assert "; updates to come: the next at step 100, no last; " in repr(method)
    method.evolve(0)
    assert "; no update to come; " in repr(method)


def test_repr_says_what_is_past() -> None:
    model = eight("masked")
    optimizer = SGD(model.parameters(), lr=0.01)
    method = regrow.RigL(model, optimizer, total_steps=8, update_every=2)
    for _ in range(7):
        step(model, optimizer)
    past = "7 of 8 steps made; no update to come, the last was due at step 4; sparsity now 0.5000"
    assert repr(method) == f"RigL({past})"
    method.detach()
    assert repr(method) == "RigL(detached at step 7)"
    assert (
        repr(regrow.Static(model, optimizer))
        == "Static(0 steps made; no update to come; sparsity now 0.5000)"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop_fraction": 1.5}, r"`drop_fraction` must be in \[0, 1\], got 1.5"),
        ({"update_every": 0}, "`update_every` must be a whole number of at least 1, got 0"),
        ({"stop_fraction": -1}, r"`stop_fraction` must be in \[0, 1\], got -1"),
        ({"schedule": "cosin"}, "`schedule` must be one of cosine, linear, constant.*did you mean `cosine`"),
        ({"total_steps": 1.5}, "`total_steps` must be a whole number of at least 1, got 1.5"),
    ],
)
def test_options_that_are_not_allowed(options: dict[str, object], message: str) -> None:
    model = eight("masked")
    with pytest.raises(regrow.RegrowError, match=message):
        regrow.RigL(model, SGD(model.parameters(), lr=0.1), **{"total_steps": 10, **options})  # type: ignore[arg-type]


# --- a run without an update


def test_a_run_without_an_update_is_told_when_the_method_is_attached() -> None:
    """The default interval in a run of 60 steps: what `print(method)` would show, and nobody asked."""
    model = regrow.sparsify(nn.Sequential(nn.Linear(8, 8)), 0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for method in (regrow.RigL, regrow.SET, regrow.SNFS):
        with pytest.warns(UserWarning, match="leaves no update") as caught:
            attached = method(model, optimizer, total_steps=60)
        (warning,) = caught
        assert warning.filename == __file__
        assert str(warning.message) == (
            f"{method.__name__}: update_every=100 leaves no update within total_steps=60, since updates stop before "
            "step 45.\nGive a smaller `update_every`, a larger `stop_fraction`, or the optimizer steps of the whole "
            "run as `total_steps`; the method Static is for a topology that rests."
        )
        attached.detach()
    regrow.RigL(model, optimizer, total_steps=60, stop_fraction=0.0).detach()  # on purpose
    regrow.RigL(model, optimizer, total_steps=60, update_every=44)  # one update


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        model(torch.ones(1, 8)).sum().backward()
        optimizer.step()


def test_the_end_of_the_schedule_is_told_at_the_line_of_the_step() -> None:
    model = regrow.sparsify(nn.Sequential(nn.Linear(8, 8)), 0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regrow.SET(model, optimizer, total_steps=2, update_every=1)
    with pytest.warns(UserWarning, match="SET: past total_steps=2 the topology rests") as caught:
        steps(model, optimizer, 5)
    assert [warning.filename for warning in caught] == [__file__]
