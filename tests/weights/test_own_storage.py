"""A storage that is registered in one file does all that regrow's own do."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD

import regrow
from regrow.errors import RegrowValueError
from regrow.methods.registry import records
from regrow.sparsity.storage import choices
from regrow.testing import CHECKS, Case, check_both_storages, check_resume
from regrow.weights import SparseWeight, sparse_weights
from regrow.weights.storages import STORAGES, register


@pytest.fixture(scope="module", autouse=True)
def storage() -> Iterator[type[SparseWeight]]:
    """The storage, registered as long as these tests run."""
    from bitmask import BitmaskWeight

    yield register(BitmaskWeight)
    del STORAGES["bitmask"]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(11, 13), nn.ReLU(), nn.LSTM(13, 7))


def sparsified() -> nn.Module:
    return regrow.sparsify(network(), 0.6, storage="bitmask")


def test_it_is_known_wherever_storages_are_named() -> None:
    assert "bitmask" in choices()
    assert "bitmask" in records()["rigl"].storages
    assert "bitmask" in records()["snfs"].storages  # the dense gradient is there at each step
    model = sparsified()
    assert {row.storage for row in regrow.summary(model).rows} == {"bitmask"}
    assert all(weight.storage == "bitmask" for weight in sparse_weights(model))


def test_it_begins_as_masked_storage_does_and_ends_dense() -> None:
    model, masked = sparsified(), regrow.sparsify(network(), 0.6, storage="masked")
    for (name, mask), other in zip(regrow.masks(model).items(), regrow.masks(masked).values(), strict=True):
        assert torch.equal(mask, other), name
    dense = regrow.densify(model)
    assert not regrow.is_sparse(dense)
    assert vars(dense[0]).keys() == vars(network()[0]).keys()  # type: ignore[index]


OF_ONE_STORAGE = [check for check in CHECKS if check is not check_both_storages]


@pytest.mark.parametrize("check", OF_ONE_STORAGE, ids=lambda check: check.__name__)
def test_rigl_runs_on_it(check: Callable[[Case], None]) -> None:
    check(Case(regrow.RigL, "bitmask"))


def test_so_does_a_method_that_needs_the_dense_gradient_at_each_step() -> None:
    check_resume(Case(regrow.SNFS, "bitmask"))


@pytest.mark.parametrize("into", ["bitmask", "masked", "dense"])
def test_save_and_load(into: str, tmp_path: Path) -> None:
    model = sparsified()
    file = regrow.save(model, tmp_path / "model.safetensors")
    other = regrow.sparsify(network(), 0.3, storage=into, seed=9) if into != "dense" else network()
    regrow.load(file, into=other)
    expected = "bitmask" if into == "dense" else into
    assert {type(weight).storage for weight in sparse_weights(other)} == {expected}
    for (name, mask), found in zip(regrow.masks(model).items(), regrow.masks(other).values(), strict=True):
        assert torch.equal(mask, found), name
    state, loaded = regrow.dense_state_dict(model), regrow.dense_state_dict(other)
    assert all(torch.equal(state[key], loaded[key]) for key in state)


@pytest.mark.parametrize("other", ["bitmask", "masked", "compressed"])
def test_state_dicts_go_both_ways(other: str) -> None:
    def linear(storage: str, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return regrow.sparsify(nn.Sequential(nn.Linear(16, 8)), 0.5, storage=storage, seed=seed)

    for here, there in (("bitmask", other), (other, "bitmask")):
        model, into = linear(here, 1), linear(there, 2)
        into.load_state_dict(model.state_dict())
        assert torch.equal(regrow.masks(model)["0.weight"], regrow.masks(into)["0.weight"])
        x = torch.randn(2, 16)
        torch.testing.assert_close(model(x), into(x))


def test_copies_and_compression() -> None:
    model = regrow.sparsify(nn.Sequential(nn.Linear(16, 8)), 0.5, storage="bitmask")
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    copied = copy.deepcopy(model)
    model(torch.randn(4, 16)).sum().backward()
    optimizer.step()
    x, masks = torch.randn(2, 16), regrow.masks(model)
    expected = model(x)
    regrow.compress(model, optimizer)
    torch.testing.assert_close(model(x), expected)
    assert torch.equal(regrow.masks(copied)["0.weight"], masks["0.weight"])


def test_names_are_taken_once(storage: type[SparseWeight]) -> None:
    for name in ("masked", "auto", "dense"):
        with pytest.raises(RegrowValueError, match=f"`storage` '{name}' is taken"):
            register(type("Another", (storage,), {"storage": name}))
