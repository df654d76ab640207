"""Every method on recurrent weights, in every storage that they can have: layers, cells, projections, copies."""

import copy
import pickle
import warnings
from collections.abc import Iterator

import pytest
import torch
from recurrent import EVERY, KINDS, batch, driven, gru_cells_are_stored, network, stored, train
from torch import nn
from torch.func import functional_call

import regrow
from regrow.methods.registry import methods
from regrow.weights import sparse_weights


@pytest.fixture(scope="module", autouse=True)
def cells() -> Iterator[None]:
    with gru_cells_are_stored():
        yield


with gru_cells_are_stored():
    STORED = {kind: stored(kind) for kind in KINDS}

CASES = [
    pytest.param(record.cls, kind, storage, id=f"{record.name}-{kind}-{storage}")
    for record in methods().values()
    if record.cls.__module__.startswith("regrow.")  # and not of another test
    for kind in KINDS
    for storage in STORED[kind]
    if storage in record.storages
]


def assert_same(one: nn.Module, other: nn.Module, tolerance: float = 0.0) -> None:
    for masks in (regrow.masks, regrow.dense_state_dict):
        found, expected = masks(one), masks(other)
        assert found.keys() == expected.keys()
        for name in found:
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=tolerance)


@pytest.mark.parametrize(("method", "kind", "storage"), CASES)
def test_it_trains(method: type[regrow.Method], kind: str, storage: str) -> None:
    model, masked = (network(kind, place, pattern=method.pattern) for place in (storage, "masked"))
    before, records = regrow.masks(model), []
    driver, optimizer = driven(model, method)
    other, beside = driven(masked, method)
    driver.register_update_hook(records.append)

    def check(step: int) -> None:
        for weight in sparse_weights(model):
            assert int(weight.parameter.detach().count_nonzero()) <= weight.nnz + 5, "beside a stamp"
            assert (weight.to_dense() == weight.to_dense() * weight.mask()).all()

    train(model, optimizer, 0, 8 * EVERY, check)
    train(masked, beside, 0, 8 * EVERY)
    assert_same(model, masked, 1e-9)
    moves = any(not torch.equal(mask, before[name]) for name, mask in regrow.masks(model).items())
    assert moves == (method not in (regrow.Static, regrow.PartiallyMasked))  # which moves at the very end
    assert bool(records) == moves
    driver.detach()
    other.detach()


LAYERS = {
    "two ways": ("lstm", {"num_layers": 2, "bidirectional": True, "dropout": 0.2}),
    "projected": ("lstm", {"proj_size": 4}),
    "rectified": ("rnn", {"nonlinearity": "relu", "num_layers": 2}),
    "without biases": ("gru", {"bias": False}),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("method", [regrow.RigL, regrow.SET, regrow.SNFS, regrow.Pruning])
def test_layers_of_all_kinds(method: type[regrow.Method], name: str) -> None:
    kind, options = LAYERS[name]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LSTM with projections")  # of torch, that it takes another way
        model = network(kind, **options)
        weights = [n for n, _ in model.cell.named_parameters() if n.startswith("weight")]
        assert [weight.parameter_name for weight in sparse_weights(model)] == weights
        driver, optimizer = driven(model, method)
        train(model, optimizer, 0, 4 * EVERY)
        for weight in sparse_weights(model):
            assert not weight.parameter.detach()[~weight.mask()].any()
            assert weight.parameter is getattr(model.cell, weight.parameter_name)
        driver.detach()


@pytest.mark.parametrize(("kind", "storage"), [(k, s) for k in KINDS for s in STORED[k]])
def test_copies_train_by_themselves(kind: str, storage: str) -> None:
    """A copy of a recurrent layer of torch reads the parameters of a list of its own."""
    model = network(kind, storage)
    driver, optimizer = driven(model, regrow.RigL)
    train(model, optimizer, 0, 2 * EVERY)
    model.eval()
    x, _ = batch(99)
    before, copies = model(x).detach(), [copy.deepcopy(model)]
    if storage == "masked" or "user" not in type(model.cell).__module__:
        copies.append(pickle.loads(pickle.dumps(model)))
    for copied in copies:
        assert torch.equal(copied(x), before)
        copied.train()
        another, own = driven(copied, regrow.SET)
        train(copied, own, 0, 2 * EVERY)
        for weight in sparse_weights(copied):
            assert (weight.to_dense() == weight.to_dense() * weight.mask()).all()
        assert not torch.equal(copied(x), before)
        another.detach()
    assert torch.equal(model(x), before)
    driver.detach()


@pytest.mark.parametrize(("kind", "storage"), [(k, s) for k in KINDS for s in STORED[k]])
def test_a_run_that_is_loaded_goes_on_as_it_was(kind: str, storage: str) -> None:
    whole, cut, resumed = (network(kind, storage) for _ in range(3))
    first, optimizer = driven(whole, regrow.RigL)
    train(whole, optimizer, 0, 5 * EVERY)
    second, beside = driven(cut, regrow.RigL)
    train(cut, beside, 0, 2 * EVERY + 1)
    third, own = driven(resumed, regrow.RigL)
    resumed.load_state_dict(cut.state_dict())
    own.load_state_dict(beside.state_dict())
    train(resumed, own, 2 * EVERY + 1, 5 * EVERY)
    assert_same(resumed, whole)
    for driver in (first, second, third):
        driver.detach()


def test_values_that_stand_in_for_a_layers_own_are_cut_to_its_topology() -> None:
    model = network("lstm")
    x, _ = batch(0)
    values = {name: p.detach().clone() for name, p in model.named_parameters()}
    expected = model(x)
    values["cell.weight_hh_l0"] += 1
    values["cell.weight_hh_l0"].requires_grad_()
    with pytest.warns(UserWarning, match="outside its topology"):
        found = functional_call(model, values, (x,))
    assert not torch.equal(found, expected)
    found.sum().backward()
    mask = regrow.masks(model)["cell.weight_hh_l0"]
    gradient = values["cell.weight_hh_l0"].grad
    assert gradient is not None
    assert gradient[mask].any()
    assert not gradient[~mask].any()
    assert torch.equal(model(x), expected), "the layer's own weights are back"


def test_a_packed_sequence() -> None:
    model = regrow.sparsify(nn.Sequential(nn.GRU(6, 10)), 0.7, storage="masked")
    driver, optimizer = driven(model, regrow.RigL)
    x = torch.randn(7, 3, 6)
    for _ in range(2 * EVERY):
        optimizer.zero_grad()
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([7, 5, 2]))
        model(packed)[0].data.square().sum().backward()
        optimizer.step()
    for weight in sparse_weights(model):
        assert not weight.parameter.detach()[~weight.mask()].any()
    driver.detach()


def test_under_autocast() -> None:
    model = network("gru").float()
    driver, optimizer = driven(model, regrow.RigL)
    for step in range(2 * EVERY):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(batch(step, torch.float32)[0]).float().square().sum()
        loss.backward()
        optimizer.step()
    for weight in sparse_weights(model):
        assert weight.parameter.dtype == torch.float32
        assert not weight.parameter.detach()[~weight.mask()].any()
    driver.detach()


def test_what_runs_behind_a_broken_graph_is_not_compiled() -> None:
    model, plain = network("gru"), network("gru")
    (driver, optimizer), (_, beside) = driven(model, regrow.RigL), driven(plain, regrow.RigL)
    updates: list[regrow.UpdateRecord] = []
    driver.register_update_hook(updates.append)
    torch.compiler.reset()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        train(torch.compile(model, backend="eager"), optimizer, 0, 3 * EVERY)  # nn.GRU breaks the graph
    assert [str(one.message) for one in seen if "regrow" in str(one.message)] == []
    train(plain, beside, 0, 3 * EVERY)
    assert len(updates) == 2
    assert_same(model, plain)
