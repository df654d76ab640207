"""NT-ASGD and SNT-ASGD: their arithmetic, their trigger, and averages that follow the topology in either storage."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from recurrent import EVERY, batch, gru_cells_are_stored, network, stored, train
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Optimizer

import regrow
from regrow import NTASGD, SNTASGD
from regrow.errors import RegrowRuntimeError, RegrowValueError
from regrow.weights import SparseWeight, sparse_weights

KINDS = ("gru", "lstm", "gru-cell")


@pytest.fixture(scope="module", autouse=True)
def cells() -> Iterator[None]:
    with gru_cells_are_stored():
        yield


with gru_cells_are_stored():
    STORED = [(kind, storage) for kind in KINDS for storage in stored(kind)]


def triggered(optimizer: NTASGD) -> NTASGD:
    """The optimizer, which averages from now on."""
    assert not any(optimizer.trigger(1.0) for _ in range(6))
    assert optimizer.trigger(2.0)
    return optimizer


# --- arithmetic


def taken(optimizer: NTASGD, parameter: nn.Parameter, *values: float) -> list[float]:
    """The average after each step, by which the weight becomes each of `values`."""
    found = []
    for value in values:
        parameter.grad = (parameter.detach() - value) / optimizer.param_groups[0]["lr"]
        optimizer.step()
        found.append(float(optimizer.state[parameter]["ax"].flatten()[0]))
    return found


@pytest.mark.parametrize("cls", [NTASGD, SNTASGD])
def test_the_mean_from_the_second_step_on(cls: type[NTASGD]) -> None:
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = triggered(cls([parameter], lr=0.1))
    assert taken(optimizer, parameter, 1, 2, 3, 4) == pytest.approx([1, 2, 2.5, 3])


@pytest.mark.parametrize("storage", ["masked", "compressed"])
def test_a_connections_average_begins_at_its_last_growth(storage: str) -> None:
    """The fact sheet's sequence: on for 1, 2, 3, 4; off; on again for 5, 7, 9."""
    model: Any = nn.Sequential(nn.Linear(2, 1, bias=False)).double()
    init = {"0.weight": torch.tensor([[True, False]])}
    regrow.sparsify(model, init=init, include="0", storage=storage)
    (weight,) = sparse_weights(model)
    optimizer = triggered(SNTASGD(model.parameters(), lr=0.1))
    driver = regrow.Static(model, optimizer)

    def step(value: float) -> float:
        """One step, by which the one connection that there is becomes `value`."""
        model(torch.ones(1, 2, dtype=torch.float64)).sum().backward()
        assert weight.parameter.grad is not None
        weight.parameter.grad.zero_()
        weight.fill(weight.positions(), (weight.values() - value) / 0.1, weight.parameter.grad)
        optimizer.step()
        optimizer.zero_grad()
        return float(weight.take(optimizer.state[weight.parameter]["ax"]))

    def move(to: int) -> None:
        driver.move(weight, torch.tensor([0]), torch.tensor([to]))
        assert not weight.take(optimizer.state[weight.parameter]["ax"]).any()
        assert not weight.take(optimizer.state[weight.parameter]["count"]).any()

    assert [step(value) for value in (1, 2, 3, 4)] == pytest.approx([1, 2, 2.5, 3])
    move(to=1)
    assert step(-3) == pytest.approx(-3)
    move(to=0)
    assert [step(value) for value in (5, 7, 9)] == pytest.approx([5, 7, 8])
    assert not dense(weight, optimizer.state[weight.parameter]["ax"])[0, 1]
    driver.detach()


def dense(weight: SparseWeight, tensor: Tensor) -> Tensor:
    """Optimizer state as a dense tensor."""
    return weight.in_dense(weight.positions(), weight.take(tensor))


def test_with_one_count_for_all_the_steps_before_growth_count_as_zero() -> None:
    model: Any = nn.Sequential(nn.Linear(2, 1, bias=False)).double()
    regrow.sparsify(model, init={"0.weight": torch.tensor([[True, False]])}, include="0", storage="masked")
    parameter = model[0].weight
    optimizer = triggered(NTASGD(model.parameters(), lr=0.1))
    driver = regrow.Static(model, optimizer)
    taken(optimizer, parameter, 1, 2, 3)
    (weight,) = sparse_weights(model)
    driver.move(weight, torch.tensor([0]), torch.tensor([1]))
    parameter.grad = torch.tensor([[0.0, -60.0]], dtype=torch.float64)
    optimizer.step()
    assert optimizer.state[parameter]["ax"].tolist() == [[0.0, 2.0]]  # 6 over three steps, 0 in two of them
    driver.detach()


def test_before_the_trigger_it_is_sgd() -> None:
    models = [nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [
        SGD(models[0].parameters(), lr=0.3, weight_decay=0.01),
        SNTASGD(models[1].parameters(), lr=0.3, weight_decay=0.01),
    ]
    for step in range(8):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            x, y = batch(step)
            functional.cross_entropy(model(x[:, 0]), y % 3).backward()
            optimizer.step()
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other)
    assert not optimizers[1].state


def test_a_closure() -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = SNTASGD([parameter], lr=0.5)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert float(optimizer.step(closure).detach()) == 2
    assert parameter.tolist() == [0, 0]


def test_dense_parameters_agree_with_torchs_asgd() -> None:
    """AWD-LSTM's optimizer is torch's ASGD with lambd=0 and t0=0."""
    torch.manual_seed(0)
    model, other = (nn.Linear(4, 3).double() for _ in range(2))
    other.load_state_dict(model.state_dict())
    optimizers = [
        triggered(NTASGD(model.parameters(), lr=0.1)),
        torch.optim.ASGD(other.parameters(), lr=0.1, lambd=0, t0=0),
    ]
    for step in range(9):
        for one, optimizer in zip((model, other), optimizers, strict=True):
            optimizer.zero_grad()
            one(batch(step)[0][:, 0, :4]).square().mean().backward()
            optimizer.step()
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(optimizers[0].state[mine]["ax"], optimizers[1].state[theirs]["ax"])


# --- the trigger


def test_the_trigger_of_the_fact_sheet() -> None:
    optimizer = NTASGD([nn.Parameter(torch.zeros(1))], lr=1)
    losses = [5, 4.9, 4.8, 4.7, 4.6, 4.75, 4.72]
    assert [optimizer.trigger(loss) for loss in losses] == [False] * 7
    assert optimizer.param_groups[0]["losses"] == tuple(losses)
    assert not optimizer.averages
    assert optimizer.trigger(4.95)
    assert optimizer.averages
    assert optimizer.trigger(0.1), "it never goes back"


def test_the_trigger_leaves_out_as_many_as_are_asked_for() -> None:
    optimizer = NTASGD([nn.Parameter(torch.zeros(1))], lr=1, nonmono=1)
    assert [optimizer.trigger(loss) for loss in (3, 2, 2.9, 2.1)] == [False, False, False, True]


# --- swapping


@pytest.mark.parametrize(("kind", "storage"), STORED)
@pytest.mark.parametrize("cls", [NTASGD, SNTASGD])
def test_averages_of_both_storages_follow_the_topology(cls: type[NTASGD], kind: str, storage: str) -> None:
    """Against a record of all weights of all steps, which a mean is taken of."""
    model, masked = network(kind, storage), network(kind)
    optimizer, other = (triggered(cls(one.parameters(), lr=0.2)) for one in (model, masked))
    options = {"total_steps": 60, "update_every": EVERY, "drop_fraction": 0.5}
    drivers = [regrow.SelfishRNN(model, optimizer, **options), regrow.SelfishRNN(masked, other, **options)]
    history: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def note(step: int) -> None:
        for weight in sparse_weights(model):
            history.setdefault(weight.name, []).append((weight.to_dense(), weight.mask()))

    # an update follows the step's weights: what it grows is 0 there, and not of that step's mean
    train(model, optimizer, 0, 6 * EVERY + 3, note)
    train(masked, other, 0, 6 * EVERY + 3)
    for weight, another in zip(sparse_weights(model), sparse_weights(masked), strict=True):
        average = dense(weight, optimizer.state[weight.parameter]["ax"])
        torch.testing.assert_close(average, other.state[another.parameter]["ax"], rtol=0, atol=1e-9)
        values, masks = (torch.stack(each) for each in zip(*history[weight.name], strict=True))
        expected = torch.stack(
            [
                mean_of(values.flatten(1)[:, i], masks.flatten(1)[:, i], cls is SNTASGD)
                for i in range(weight.numel)
            ]
        )
        torch.testing.assert_close(average.view(-1), expected, rtol=0, atol=1e-9)
        assert len({tuple(mask.view(-1).tolist()) for mask in masks}) > 4
    for driver in drivers:
        driver.detach()


def mean_of(values: Tensor, active: Tensor, from_growth: bool) -> Tensor:
    """The mean of one position's values since its last growth, the first step left out, or over all steps.

    `values` and `active` are as an update has left them, which grows a connection at the value 0.
    """
    if not active[-1]:
        return values.new_zeros(())
    start = 0
    for step in range(1, len(active)):
        if active[step] and not active[step - 1]:
            start = step + 1  # its first step of training
    if not from_growth:
        total = values.clone()
        total[:start] = 0
        return total[1:].sum() / (len(values) - 1)
    since = values[start:]
    return since[1:].mean() if len(since) > 1 else since.sum()


@pytest.mark.parametrize(("kind", "storage"), STORED)
def test_swap_in_and_out(kind: str, storage: str) -> None:
    model = network(kind, storage)
    optimizer = SNTASGD(model.parameters(), lr=0.2)
    driver = regrow.SelfishRNN(model, optimizer, total_steps=60, update_every=EVERY)
    x, _ = batch(99)
    with optimizer.averaged():  # there is none yet
        train(model, optimizer, 0, 3)
    triggered(optimizer)
    train(model, optimizer, 3, 3 * EVERY + 2)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    trained = model(x).detach()
    averages = {name: optimizer.state[p]["ax"].clone() for name, p in model.named_parameters()}
    with optimizer.averaged():
        averaged = model(x).detach()
        assert not torch.equal(averaged, trained)
        for weight in sparse_weights(model):
            name = next(n for n, p in model.named_parameters() if p is weight.parameter)
            assert torch.equal(weight.values(), weight.take(averages[name]))
            assert not (weight.to_dense() * ~weight.mask()).any()
        kept = copy.deepcopy(model)
        with pytest.raises(RegrowRuntimeError, match="is not what is trained.\nCall swap_out first"):
            optimizer.step()
        with pytest.raises(RegrowRuntimeError, match="in the weights' place already"):
            optimizer.swap_in()
    assert torch.equal(model(x), trained)
    for one, other in zip(before, (model.state_dict(), optimizer.state_dict()), strict=True):
        assert_equal(one, other)
    optimizer.swap_out()  # nothing to do
    assert torch.equal(model(x), trained)
    assert torch.equal(kept(x), averaged), "a copy made meanwhile is the average"
    train(model, optimizer, 3 * EVERY + 2, 5 * EVERY)
    assert torch.equal(kept(x), averaged)
    with pytest.raises(ZeroDivisionError), optimizer.averaged():
        1 / 0
    assert not optimizer.param_groups[0]["swapped"]
    driver.detach()


def assert_equal(one: Any, other: Any) -> None:
    """The same, bit for bit, in all containers."""
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list):
        for each, another in zip(one, other, strict=True):
            assert_equal(each, another)
    else:
        assert one == other


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(("kind", "storage"), STORED)
def test_a_run_that_is_loaded_goes_on_as_it_was(kind: str, storage: str, swapped: bool) -> None:
    def made() -> tuple[nn.Module, SNTASGD, regrow.Method]:
        model = network(kind, storage)
        optimizer = SNTASGD(model.parameters(), lr=0.2, nonmono=1)
        options = {"total_steps": 60, "update_every": EVERY}
        return model, optimizer, regrow.SelfishRNN(model, optimizer, **options)

    def run(model: nn.Module, optimizer: SNTASGD, start: int, stop: int) -> None:
        losses = {EVERY: 2.0, EVERY + 2: 1.0, EVERY + 5: 3.0}
        for step in range(start, stop):
            train(model, optimizer, step, step + 1)
            if step in losses:
                optimizer.trigger(losses[step])

    whole, cut, resumed = made(), made(), made()
    run(*whole[:2], 0, 6 * EVERY)
    run(*cut[:2], 0, 3 * EVERY + 1)
    assert cut[1].averages
    if swapped:
        cut[1].swap_in()
    file = io.BytesIO()
    torch.save([cut[0].state_dict(), cut[1].state_dict()], file)
    file.seek(0)
    model, optimizer = torch.load(file, weights_only=True)
    resumed[0].load_state_dict(model)
    resumed[1].load_state_dict(optimizer)
    resumed[1].swap_out()
    run(*resumed[:2], 3 * EVERY + 1, 6 * EVERY)
    assert_equal(whole[0].state_dict(), resumed[0].state_dict())
    assert_equal(whole[1].state_dict(), resumed[1].state_dict())
    for _, _, driver in (whole, cut, resumed):
        driver.detach()


def test_a_state_dict_in_memory_stays_as_it_was() -> None:
    optimizer = NTASGD([nn.Parameter(torch.zeros(1))], lr=1)
    optimizer.trigger(3.0)
    state = optimizer.state_dict()
    optimizer.trigger(2.0)
    assert state["param_groups"][0]["losses"] == (3.0,)


@pytest.mark.parametrize("method", [regrow.RigL, regrow.SET, regrow.SNFS, regrow.GraNet, regrow.Pruning])
def test_other_methods_drive_it(method: Any) -> None:
    """Also RigL, which takes no weight step at an update, so that it does not count."""
    model = network("lstm")
    optimizer = triggered(SNTASGD(model.parameters(), lr=0.2))
    driver, _ = driven_by(model, method, optimizer)
    train(model, optimizer, 0, 8 * EVERY)
    for weight in sparse_weights(model):
        for key in ("ax", "count"):
            assert not optimizer.state[weight.parameter][key][~weight.mask()].any()
    rests = sum(driver.skip_step and driver.is_update(step) for step in range(8 * EVERY))
    assert float(optimizer.state[model.head.bias]["count"]) == 8 * EVERY - rests
    assert rests == (7 if method is regrow.RigL else 0)
    driver.detach()


def driven_by(model: nn.Module, method: Any, optimizer: Optimizer) -> tuple[regrow.Method, Optimizer]:
    options = {"final_sparsity": 0.9} if method in (regrow.GraNet, regrow.Pruning) else {}
    return method(model, optimizer, total_steps=60, update_every=EVERY, **options), optimizer


def test_masks_to_compressed_in_the_middle_of_a_run() -> None:
    model = network("gru-cell")
    optimizer = triggered(SNTASGD(model.parameters(), lr=0.2))
    train(model, optimizer, 0, 5)
    masked = copy.deepcopy(model)
    before = [optimizer.state[w.parameter]["ax"].clone() for w in sparse_weights(model)]
    regrow.compress(model, optimizer)
    for weight, average in zip(sparse_weights(model), before, strict=True):
        assert torch.equal(dense(weight, optimizer.state[weight.parameter]["ax"]), average)
    train(model, optimizer, 5, 9)
    x, _ = batch(0)
    assert not torch.equal(model(x), masked(x))
    with optimizer.averaged():
        assert model(x).isfinite().all()


# --- what is refused


def test_what_cannot_be() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    for options, words in (
        ({"lr": -1.0}, "`lr` must be a number of at least 0"),
        ({"lr": 1.0, "weight_decay": "a"}, "`weight_decay` must be a number"),
        ({"lr": 1.0, "nonmono": 0}, "`nonmono` must be"),
    ):
        with pytest.raises(RegrowValueError, match=words):
            SNTASGD([parameter], **options)  # type: ignore[arg-type]
    for dtype in (torch.bfloat16, torch.float16, torch.complex64):
        with pytest.raises(RegrowValueError, match="`params` must be float32 or float64, got torch.*\nTrain"):
            SNTASGD([nn.Parameter(torch.zeros(2, dtype=dtype))], lr=1.0)
    optimizer = SNTASGD([parameter], lr=1.0)
    for loss in (float("nan"), "low", None, True, torch.zeros(2)):
        with pytest.raises(RegrowValueError, match="`loss` must be a number, got"):
            optimizer.trigger(loss)  # type: ignore[arg-type]
    with pytest.raises(RegrowValueError, match="`params` must be"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2).bfloat16())]})
    assert len(optimizer.param_groups) == 1
    assert optimizer.trigger(torch.tensor(2.0)) is False
