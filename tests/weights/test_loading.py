"""What `load_state_dict` accepts, and that it writes nothing before all is checked."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import regrow
from regrow.weights import sparse_weights

storages = ["masked", "compressed"]


def model(storage: str | None, sparsity: float = 0.8, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 6))
    if storage:
        regrow.sparsify(layers, sparsity, storage=storage, seed=seed)
    return layers


@pytest.mark.parametrize("into", storages)
@pytest.mark.parametrize("saved", storages)
@pytest.mark.parametrize("sparsity", [0.8, 0.5])
def test_either_storage_and_another_count(saved: str, into: str, sparsity: float) -> None:
    source, target = model(saved, sparsity, seed=1), model(into)
    parameters = dict(target.named_parameters())
    x = torch.randn(5, 12)
    target(x).sum().backward()
    result = target.load_state_dict(source.state_dict())
    assert not result.missing_keys
    assert not result.unexpected_keys
    torch.testing.assert_close(target(x), source(x))
    assert all(parameters[name] is p for name, p in target.named_parameters())
    assert [w.storage for w in sparse_weights(target)] == [into, into]
    assert [w.positions().tolist() for w in sparse_weights(target)] == [
        w.positions().tolist() for w in sparse_weights(source)
    ]
    target.zero_grad()
    target(x).sum().backward()
    optimizer = torch.optim.SGD(target.parameters(), lr=0.1)
    regrow.RigL(target, optimizer, total_steps=10, stop_fraction=0.0)
    optimizer.step()


@pytest.mark.parametrize("into", storages)
def test_a_dense_checkpoint_is_cut_by_the_present_topology(into: str) -> None:
    source, target = model(None, seed=1), model(into)
    masks = regrow.masks(target)
    target.load_state_dict(source.state_dict())
    for weight, dense in zip(sparse_weights(target), (source[0].weight, source[2].weight), strict=True):
        assert torch.equal(weight.mask(), masks[weight.name])
        assert torch.equal(weight.to_dense(), torch.where(masks[weight.name], dense.detach(), 0.0))


@pytest.mark.parametrize("into", storages)
def test_a_part_of_the_model_and_a_wrapped_model_load_too(into: str) -> None:
    source, target = model("masked", 0.5, seed=1), model(into)
    target[2].load_state_dict(source[2].state_dict())
    assert torch.equal(sparse_weights(target)[1].to_dense(), source[2].weight.detach())
    wrapper = nn.ModuleDict({"inner": model(into)})
    wrapper.load_state_dict({f"inner.{key}": value for key, value in source.state_dict().items()})
    assert torch.equal(sparse_weights(wrapper)[0].to_dense(), source[0].weight.detach())


def test_a_failed_load_names_the_key_and_changes_nothing() -> None:
    good = model("compressed", seed=1).state_dict()

    def bad(key: str, change: Any) -> dict[str, torch.Tensor]:
        state = copy.deepcopy(dict(good))
        state[key] = change(state[key])
        return state

    def repeat(col: torch.Tensor) -> torch.Tensor:
        col[1] = col[0]
        return col

    cases = [
        (bad("2.weight_col", lambda c: c + 100), r"`2.weight_col` must be in \[0, 10\), got 10[0-9] to"),
        (bad("2.weight_col", lambda c: c - 100), r"`2.weight_col` must be in \[0, 10\), got -100 to"),
        (bad("2.weight_col", repeat), "`2.weight_col` must ascend within each row, without repetition"),
        (
            bad("2.weight_crow", lambda c: c.flip(0)),
            "`2.weight_crow` must be 7 ascending row pointers that start at 0",
        ),
        (bad("2.weight_crow", lambda c: c[:-1]), "`2.weight_crow` must be 7 ascending row pointers"),
        (
            bad("2.weight_values", lambda v: v[:-1]),
            r"`2.weight_values` must be \[n, 1\] and `2.weight_col` \[n\]",
        ),
    ]
    for storage in storages:
        for state, message in cases:
            target = model(storage)
            before = copy.deepcopy(target.state_dict())
            with pytest.raises(regrow.RegrowError, match=message):
                target.load_state_dict(state)
            assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())
    masked = model("masked", seed=1).state_dict()
    for key, value, message in (
        ("2.weight", torch.zeros(3, 3), r"`2.weight` must have shape \(6, 10\), got \(3, 3\)"),
        (
            "2.weight_mask",
            torch.zeros(6, 10),
            r"`2.weight_mask` must be boolean of shape \(6, 10\), got torch.float32",
        ),
    ):
        with pytest.raises(regrow.RegrowError, match=message):
            model("compressed").load_state_dict({**masked, key: value})


def test_values_outside_the_mask_of_a_checkpoint_are_cut() -> None:
    state = model("masked", seed=1).state_dict()
    state["0.weight"] = torch.ones(10, 12)
    target = model("masked")
    target.load_state_dict(state)
    assert torch.equal(target[0].weight.detach().bool(), state["0.weight_mask"])
