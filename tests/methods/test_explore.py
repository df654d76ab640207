"""Exploration steps and constant evolution beside the schedule, as tickets need them."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from runs import assert_same_run, plain, storages
from torch import Tensor, nn
from torch.optim import SGD, Adam

import regrow
from regrow.methods.registry import methods
from regrow.testing import Case, Run
from regrow.weights import SparseWeight, sparse_weights

MASK = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0]], dtype=torch.bool)
WEIGHT = torch.tensor([[4.0, -1.0, 3.0, -2.0, 0.0, 0.0, 0.0, 0.0]])
STALE = torch.tensor([[0.0, 0.0, 0.0, 0.0, 9.0, 0.0, 9.0, 0.0]])
FRESH = torch.tensor([[0.1, 0.8, 0.2, 0.3, 0.5, -0.9, 0.4, 0.7]])

both = pytest.mark.parametrize("method", [regrow.RigL, regrow.SET], ids=lambda m: m.__name__)
dynamic = pytest.mark.parametrize(
    ("method", "storage"),
    [
        pytest.param(record.cls, storage, id=f"{record.name}-{storage}")
        for record in methods().values()
        for storage in record.storages
        if issubclass(record.cls, regrow.Dynamic)
    ],
)


def eight(storage: str) -> nn.Sequential:
    """A layer of eight positions, four of them active; where the loss is the output, the gradient is the input."""
    model = nn.Sequential(nn.Linear(8, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(WEIGHT)
    return regrow.sparsify(model, init={"0.weight": MASK}, storage=storage)


def only(model: nn.Module) -> SparseWeight:
    (weight,) = sparse_weights(model)
    return weight


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    model(x).sum().backward()
    optimizer.step()


def steered(run: Run) -> regrow.Dynamic:
    assert isinstance(run.method, regrow.Dynamic)
    return run.method


def train(run: Run, start: int, stop: int) -> None:
    for _ in run.train(start, stop):
        pass


# --- exploring


@storages
def test_rigl_explores_by_the_gradient_of_that_very_step(storage: str) -> None:
    model = eight(storage)
    optimizer = SGD(model.parameters(), lr=0.0)
    method = regrow.RigL(model, optimizer, total_steps=2, stop_fraction=0.0)
    records: list[dict[str, Any]] = []
    method.register_update_hook(records.append)
    step(model, optimizer, STALE)
    assert not method.wants_dense_gradient()
    method.explore(0.5)
    assert method.wants_dense_gradient()
    assert (method.next_update, method.last_update) == (1, 1)
    step(model, optimizer, FRESH)
    # -1 and -2 go; 0.9 comes at 5 and 0.8 at 1, which so stays as it was. By the stale gradient: 4 and 6
    assert only(model).positions().tolist() == [0, 1, 2, 5]
    assert only(model).to_dense().tolist() == [[4, -1, 3, 0, 0, 0, 0, 0]]
    (record,) = records
    assert (record["step"], record["fraction"], record["layers"]["0.weight"]["grown"]) == (1, 0.5, 1)
    for _ in range(3):  # past total_steps without a warning, and at rest: the request is done
        step(model, optimizer, STALE)
    assert only(model).positions().tolist() == [0, 1, 2, 5]
    method.explore(0.25)  # past total_steps, too: -0 at 5 goes, 9 comes at 4
    step(model, optimizer, STALE)
    assert only(model).positions().tolist() == [0, 1, 2, 4]
    assert [record["step"] for record in records] == [1, 5]
    assert (method.next_update, method.last_update, method.step) == (None, None, 6)


@storages
def test_set_explores_whatever_the_gradient(storage: str) -> None:
    topologies = []
    for x in (STALE, FRESH):
        model = eight(storage)
        optimizer = SGD(model.parameters(), lr=0.0)
        method = regrow.SET(model, optimizer, total_steps=9, stop_fraction=0.0, seed=3)
        method.explore(0.75)
        assert not method.wants_dense_gradient()
        step(model, optimizer, x)  # at step 0, where no schedule has an update
        topologies.append(only(model).positions().tolist())
    assert topologies[0] == topologies[1] != [0, 1, 2, 3]
    assert 0 in topologies[0]


@storages
@pytest.mark.parametrize(
    ("fraction", "dropped"), [(0.0, 0), (0.1, 3), (0.5, 15), (0.8, 24), (0.99, 29), (1.0, 30)]
)
def test_exactly_the_fraction_is_dropped_rounded_down(storage: str, fraction: float, dropped: int) -> None:
    mask = (torch.arange(200) < 30).view(10, 20)
    model = regrow.sparsify(
        nn.Sequential(nn.Linear(20, 10, bias=False)), init={"0.weight": mask}, storage=storage
    )
    smallest = set(only(model).values().abs().argsort()[:dropped].tolist())
    optimizer = SGD(model.parameters(), lr=0.0)
    method = regrow.RigL(model, optimizer, total_steps=10, stop_fraction=0.0)
    method.explore(fraction)
    optimizer.zero_grad()
    model(torch.ones(1, 20))[
        :, 5:
    ].sum().backward()  # no gradient in the rows of the 30: none of them comes back
    optimizer.step()
    assert only(model).nnz == 30
    assert set(range(30)) - set(only(model).positions().tolist()) == smallest


@storages
@pytest.mark.parametrize("skip", [None, True, False])
@both
def test_the_weights_rest_at_an_exploration_as_at_any_update(
    method: type[regrow.Dynamic], skip: bool | None, storage: str
) -> None:
    model = eight(storage)
    optimizer = SGD(model.parameters(), lr=0.1)
    driver = method(model, optimizer, total_steps=10, stop_fraction=0.0, skip_step=skip)
    driver.explore(0.25)
    step(model, optimizer, FRESH)
    rests = method is regrow.RigL if skip is None else skip
    assert float(only(model).to_dense()[0, 0]) == pytest.approx(4 if rests else 4 - 0.1 * 0.1)


@dynamic
def test_every_dynamic_method_explores_alike_in_both_storages(
    method: type[regrow.Dynamic], storage: str
) -> None:
    """Beside the schedule, at it, and past the end; counts stay, and so does what the schedule does otherwise."""
    options = {"stop_fraction": 0.5, "total_steps": 40}
    run = Run(Case(method, storage, options))
    twin = Run(Case(method, storage, options), attach=False)
    if storage == "compressed":
        topology = regrow.masks(twin.model)
        dense = regrow.densify(twin.model)
        twin.model = regrow.sparsify(
            dense, init=topology, include=list(topology), storage="masked", pattern=method.pattern
        )
        twin.optimizer = SGD(twin.model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    twin.method = twin.case.method(twin.model, twin.optimizer)
    explored: list[tuple[int, float]] = []
    steered(run).register_update_hook(lambda record: explored.append((record["step"], record["fraction"])))
    for i in range(50):
        count = sum(weight.nnz for weight in run.weights)
        for each in (run, twin):
            if i in (13, 16, 45):
                steered(each).explore(0.4)
            train(each, i, i + 1)
        assert run.topology() == twin.topology(), i
        if i in (13, 45):
            assert sum(weight.nnz for weight in run.weights) == count
    assert [at for at, _ in explored] == [8, 13, 16, 45]
    assert [fraction for _, fraction in explored[1:]] == [0.4] * 3


# --- how a step may come


@storages
@both
def test_micro_batches_and_closures_explore_as_the_whole_batch_does(
    method: type[regrow.Dynamic], storage: str
) -> None:
    whole, parts, closed = (Run(Case(method, storage)) for _ in range(3))
    for i in range(30):
        for each in (whole, parts, closed):
            if i == 13:
                steered(each).explore(0.5)
        train(whole, i, i + 1)
        parts.optimizer.zero_grad()
        for start in range(0, 16, 4):
            parts.backward(i, slice(start, start + 4), 0.25)
        parts.optimizer.step()

        def closure(i: int = i) -> float:
            closed.optimizer.zero_grad()
            closed.backward(i)
            return closed.loss

        closed.optimizer.step(closure)
        assert whole.topology() == parts.topology() == closed.topology(), i
    assert_same_run(whole, closed)
    reference = plain(Case(method, storage), 30)
    assert reference.topology() != whole.topology()


@storages
def test_asked_between_two_micro_batches_it_is_refused(storage: str) -> None:
    run, reference = Run(Case(regrow.RigL, storage)), Run(Case(regrow.RigL, storage))
    for each in (run, reference):
        train(each, 0, 5)
        each.optimizer.zero_grad()
        each.backward(5, slice(8), 0.5)
    for ask in (lambda: steered(run).explore(0.5), lambda: steered(run).evolve(0.5)):
        steered(run).update_every = 5  # step 5 becomes an update by `evolve`, but not by the schedule
        steered(run).stop_step = 0
        with pytest.raises(regrow.RegrowError, match="step 5 is under way.*\n.*Ask between optimizer.step"):
            ask()
    for each in (run, reference):
        each.backward(5, slice(8, 16), 0.5)
        each.optimizer.step()
    assert_same_run(run, reference)
    run.backward(6)
    run.optimizer.zero_grad()  # thrown away
    steered(run).explore(0.5)
    train(run, 6, 7)
    assert run.topology() != reference.topology()
    with pytest.raises(regrow.RegrowError, match=r"`fraction` must be in \[0, 1\], got 1.5"):
        steered(run).explore(1.5)
    with pytest.raises(regrow.RegrowError, match=r"`fraction` must be in \[0, 1\], got -0.5"):
        steered(run).evolve(-0.5)


@storages
def test_a_gradient_that_is_not_finite_leaves_the_request_to_the_next_step(storage: str) -> None:
    run = Run(Case(regrow.RigL, storage), torch.float32)
    updates: list[int] = []
    steered(run).register_update_hook(lambda record: updates.append(record["step"]))
    train(run, 0, 3)
    before = run.topology()
    state = copy.deepcopy(run.model.state_dict()), copy.deepcopy(run.optimizer.state_dict())
    steered(run).explore(0.5)
    run.optimizer.zero_grad()
    run.backward(3, share=float("inf"))
    with pytest.warns(UserWarning, match="the dense gradient at step 3 is not finite: the topology stays"):
        run.optimizer.step()
    assert run.topology() == before
    assert steered(run).next_update == 4
    run.model.load_state_dict(state[0])
    run.optimizer.load_state_dict(state[1])  # as it was before: the request is gone with it
    train(run, 3, 6)
    assert updates == []
    steered(run).explore(0.5)
    steered(run).explore(0.0)  # taken back
    train(run, 6, 7)
    assert updates == []
    steered(run).explore(0.5)
    train(run, 7, 8)
    assert updates == [7]
    assert run.topology() != before


# --- checkpoints


@dynamic
@pytest.mark.parametrize("attach_first", [True, False])
def test_a_checkpoint_between_request_and_step_goes_on_to_the_same_run(
    method: type[regrow.Dynamic], storage: str, attach_first: bool
) -> None:
    def begin() -> Run:
        run = Run(Case(method, storage))
        train(run, 0, 11)
        steered(run).evolve(0.2)
        train(run, 11, 18)
        steered(run).explore(0.6)
        return run

    whole, cut = begin(), begin()
    train(whole, 18, 30)
    file = io.BytesIO()
    torch.save([cut.model.state_dict(), cut.optimizer.state_dict()], file)
    file.seek(0)
    model_state, optimizer_state = torch.load(file, weights_only=True)
    resumed = Run(Case(method, storage), attach=attach_first)
    resumed.model.load_state_dict(model_state)
    resumed.optimizer.load_state_dict(optimizer_state)
    if not attach_first:
        resumed.method = resumed.case.method(resumed.model, resumed.optimizer)
    records: list[tuple[int, float]] = []
    steered(resumed).register_update_hook(lambda record: records.append((record["step"], record["fraction"])))
    train(resumed, 18, 30)
    assert records == [(18, 0.6), (24, 0.2)]
    assert_same_run(whole, resumed)


# --- evolving


@storages
@both
def test_evolve_takes_the_schedules_place_and_gives_it_back(
    method: type[regrow.Dynamic], storage: str
) -> None:
    run = Run(Case(method, storage, {"total_steps": 40, "update_every": 4, "stop_fraction": 0.5}))
    driver = steered(run)
    own = [driver.fraction(at) for at in range(20)]
    records: list[tuple[int, float]] = []
    driver.register_update_hook(lambda record: records.append((record["step"], record["fraction"])))
    train(run, 0, 6)
    driver.evolve(0.25)
    assert (driver.next_update, driver.last_update) == (8, None)
    train(run, 6, 10)
    driver.evolve(0.0)
    assert (driver.next_update, driver.last_update) == (None, None)
    train(run, 10, 15)
    driver.explore(0.5)
    assert (driver.next_update, driver.last_update) == (15, 15)
    train(run, 15, 16)
    driver.evolve(None)
    assert (driver.next_update, driver.last_update) == (16, 16)
    train(run, 16, 30)  # the schedule has ended at 20
    assert driver.next_update is None
    driver.evolve(0.25)
    train(run, 30, 46)  # past total_steps, without a warning
    assert records == [
        (4, own[4]), (8, 0.25), (15, 0.5), (16, own[16]), (32, 0.25), (36, 0.25), (40, 0.25), (44, 0.25)
    ]  # fmt: skip


def test_the_warning_past_total_steps_is_for_those_who_never_asked() -> None:
    for ask in (None, "explore", "evolve"):
        model = eight("masked")
        optimizer = SGD(model.parameters(), lr=0.0)
        method = regrow.SET(model, optimizer, total_steps=2, stop_fraction=0.0)
        step(model, optimizer, FRESH)
        if ask:
            getattr(method, ask)(0.5)
        step(model, optimizer, FRESH)
        if ask:
            step(model, optimizer, FRESH)
        else:
            with pytest.warns(UserWarning, match="past total_steps=2 the topology rests"):
                step(model, optimizer, FRESH)
        assert method.step == 3


def test_detach_forgets_what_was_asked() -> None:
    model = eight("masked")
    optimizer = Adam(model.parameters(), lr=0.1)
    method = regrow.SET(model, optimizer, total_steps=9, stop_fraction=0.0)
    method.explore(0.5)
    method.detach()
    again = regrow.SET(model, optimizer, total_steps=9, stop_fraction=0.0)
    step(model, optimizer, FRESH)
    assert torch.equal(only(model).mask(), MASK)
    assert again.next_update is None


def test_a_method_knows_its_model_without_wrappers() -> None:
    model = eight("masked")
    assert (
        regrow.SET(
            nn.DataParallel(model), SGD(model.parameters(), lr=0.1), total_steps=9, stop_fraction=0.0
        ).model
        is model
    )
