"""What `load_state_dict` accepts, and that it writes nothing before all is checked."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

import regrow
from regrow.weights import sparse_weights
from regrow.weights.loading import in_dense_form

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
    for storage in storages:
        target = model(storage)
        with pytest.warns(
            UserWarning, match=r"outside the topology it gives for \['0.weight'\], and they are"
        ) as warned:
            target.load_state_dict(state)
        assert [warning.filename for warning in warned] == [__file__]
        assert torch.equal(sparse_weights(target)[0].to_dense().bool(), state["0.weight_mask"])


def halves(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in state.items() if key.startswith("0.")}


@pytest.mark.parametrize("into", storages)
def test_the_parts_of_a_weight_are_loaded_together_or_not_at_all(into: str) -> None:
    dense = model(None, seed=3).state_dict()["2.weight"]
    compressed = {k: v for k, v in model("compressed", seed=1).state_dict().items() if k.startswith("2.")}
    masked = model("masked", seed=1).state_dict()
    topology = {key: compressed[key] for key in ("2.weight_crow", "2.weight_col")}
    cases = [
        (topology, "`2.weight_values` is missing: the state dict holds `2.weight_crow`, `2.weight_col` of"),
        (
            {"2.weight_values": compressed["2.weight_values"]},
            "`2.weight_crow` is missing: the state dict holds",
        ),
        ({"2.weight": dense, "2.weight_col": compressed["2.weight_col"]}, "`2.weight_crow` is missing: the"),
        (
            {"2.weight_mask": masked["2.weight_mask"]},
            "`2.weight` is missing: the state dict holds `2.weight_mask`",
        ),
        (
            {**compressed, "2.weight": dense},
            "`2.weight` is in the state dict in two forms: `2.weight`, `2.weight_v",
        ),
        (
            {**masked, **topology},
            "`2.weight` is in the state dict in two forms: `2.weight`, `2.weight_mask`, `2.w",
        ),
    ]
    for state, message in cases:
        for strict in (True, False):
            target = model(into)
            before = copy.deepcopy(target.state_dict())
            with pytest.raises(regrow.RegrowError, match=message):
                target.load_state_dict({**halves(masked), **state}, strict=strict)
            assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


@pytest.mark.parametrize("into", storages)
def test_a_sparse_network_in_dense_form_is_not_cut_by_another_topology_in_silence(into: str) -> None:
    source = model("masked", seed=1)
    state = regrow.dense_state_dict(source)
    with pytest.warns(
        UserWarning, match=r"in dense form, .* cuts \['0.weight', '2.weight'\].\nLoad it into"
    ) as warned:
        model(into, seed=2).load_state_dict(state)
    assert [warning.filename for warning in warned] == [__file__]
    same = model(into, seed=1)  # the same topology cuts nothing
    same.load_state_dict(state)
    plain = model(None)
    plain.load_state_dict(state)
    names = ["0.weight", "2.weight"]
    regrow.sparsify(plain, include=names, init={name: state[name] != 0 for name in names}, storage=into)
    x = torch.randn(5, 12)
    torch.testing.assert_close(same(x), source(x))
    torch.testing.assert_close(plain(x), source(x))
    assert all(torch.equal(mask, regrow.masks(source)[name]) for name, mask in regrow.masks(plain).items())


@pytest.mark.parametrize("into", storages)
@pytest.mark.parametrize("saved", storages)
def test_whole_weights_may_be_missing_where_the_load_is_not_strict(saved: str, into: str) -> None:
    source, target = model(saved, seed=1), model(into)
    before = regrow.masks(target)
    result = target.load_state_dict(halves(source.state_dict()), strict=False)
    assert {key.split(".")[0] for key in result.missing_keys} == {"2"}
    assert torch.equal(sparse_weights(target)[0].to_dense(), sparse_weights(source)[0].to_dense())
    assert torch.equal(regrow.masks(target)["2.weight"], before["2.weight"])


@pytest.mark.parametrize("into", storages)
@pytest.mark.parametrize("saved", storages)
def test_a_dense_weight_beside_its_topology_gives_the_very_same_weight(saved: str, into: str) -> None:
    source, target = model(saved, seed=1), model(into)
    for weight in sparse_weights(source):
        weight.update(
            torch.arange(3), torch.empty(0, dtype=torch.int64)
        )  # room for three more, where compressed
        weight.fill(weight.positions()[:1], torch.zeros(1))  # a connection whose value is zero
    state, plain = source.state_dict(), model(None)
    in_dense_form(source, state, topology=True)
    plain.load_state_dict(state, strict=False)
    torch.testing.assert_close(plain[0].weight.detach(), sparse_weights(source)[0].to_dense())
    target.load_state_dict(state)
    for own, other in zip(sparse_weights(target), sparse_weights(source), strict=True):
        assert torch.equal(own.positions(), other.positions())
        assert torch.equal(own.values(), other.values())
        if saved == into:
            assert own.parameter.shape == other.parameter.shape


@pytest.mark.parametrize("change", [torch.Tensor.half, torch.Tensor.float, torch.Tensor.bool])
@pytest.mark.parametrize("into", storages)
def test_an_index_that_was_converted_with_the_weights_is_refused(into: str, change: Any) -> None:
    state = {key: change(value) for key, value in model("compressed").state_dict().items()}
    with pytest.raises(
        regrow.RegrowError, match="`0.weight_crow` must hold whole numbers, got torch.*\nConvert"
    ):
        model(into).load_state_dict(state)


@pytest.mark.parametrize("way", ["update", "torch.distributed"])
@pytest.mark.parametrize("into", storages)
@pytest.mark.parametrize("saved", ["masked", "compressed", "dense", "dense with topology"])
def test_what_is_put_over_the_models_own_state_dict_is_taken(saved: str, into: str, way: str) -> None:
    source = model({"dense": None, "dense with topology": "compressed"}.get(saved, saved), seed=1)
    target, theirs = model(into), dict(source.state_dict())
    before = regrow.masks(target)
    if saved == "dense with topology":
        in_dense_form(source, theirs, topology=True)
    if way == "update":
        state = target.state_dict()
        state.update(theirs)
        target.load_state_dict(state, strict=False)
    else:
        set_model_state_dict(target, theirs, options=StateDictOptions(full_state_dict=True, strict=False))
    for weight, layer in zip(sparse_weights(target), (source[0], source[2]), strict=True):
        if saved == "dense":
            assert torch.equal(weight.mask(), before[weight.name])
            assert torch.equal(weight.to_dense(), torch.where(weight.mask(), layer.weight.detach(), 0.0))
        else:
            (other,) = sparse_weights(layer)
            assert torch.equal(weight.positions(), other.positions())
            assert torch.equal(weight.values(), other.values())


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("prefix", ["_orig_mod.", "module."])
@pytest.mark.parametrize("into", storages)
def test_the_keys_of_a_wrapped_model_are_named(into: str, prefix: str, strict: bool) -> None:
    source, target = model("masked", seed=1), model(into)
    state = {prefix + key: value for key, value in source.state_dict().items()}
    with pytest.raises(
        regrow.RegrowError, match=f"keys of the state dict begin with `{prefix}`.*\nregrow.load"
    ):
        target.load_state_dict(state, strict=strict)
    regrow.load(state, into=target)
    assert torch.equal(sparse_weights(target)[0].to_dense(), sparse_weights(source)[0].to_dense())
    compiled = torch.compile(model(into))
    compiled.load_state_dict(torch.compile(source).state_dict())
    assert torch.equal(sparse_weights(compiled)[0].to_dense(), sparse_weights(source)[0].to_dense())


@pytest.mark.parametrize("storage", storages)
def test_an_average_of_one_topology_is_right(storage: str) -> None:
    one, other, target = model(storage, seed=1), model(storage, seed=1), model(storage)
    for weight in sparse_weights(other):
        weight.fill(weight.positions(), torch.randn(weight.nnz))
    states = one.state_dict(), other.state_dict()
    target.load_state_dict(
        {k: (v + states[1][k]) / 2 if v.is_floating_point() else v for k, v in states[0].items()}
    )
    for a, b, mean in zip(sparse_weights(one), sparse_weights(other), sparse_weights(target), strict=True):
        torch.testing.assert_close(mean.to_dense(), (a.to_dense() + b.to_dense()) / 2)


@pytest.mark.parametrize("storage", storages)
def test_an_average_of_all_tensors_of_two_topologies_is_noticed(storage: str) -> None:
    one, other = (model(storage, seed=seed).state_dict() for seed in (1, 2))
    with pytest.raises(regrow.RegrowError, match="must hold whole numbers|must be boolean"):
        model(storage).load_state_dict({key: (one[key] + other[key]) / 2 for key in one})


def test_an_average_of_the_weights_of_two_masked_topologies_is_noticed() -> None:
    one, other = (model("masked", seed=seed).state_dict() for seed in (1, 2))
    state = {key: (one[key] + other[key]) / 2 if one[key].is_floating_point() else one[key] for key in one}
    target = model("masked")
    with pytest.warns(UserWarning, match=r"it gives for \['0.weight', '2.weight'\], .*an average of two"):
        target.load_state_dict(state)
    assert torch.equal(sparse_weights(target)[0].mask(), one["0.weight_mask"])


@pytest.mark.parametrize("into", storages)
@pytest.mark.parametrize("saved", storages)
@pytest.mark.parametrize("sparsity", [0.8, 0.5])
def test_assign_takes_over_the_tensors_and_trains(saved: str, into: str, sparsity: float) -> None:
    source, target = model(saved, sparsity, seed=1), model(into)
    x = torch.randn(5, 12)
    target(x)
    target.load_state_dict(source.state_dict(), assign=True)
    torch.testing.assert_close(target(x), source(x))
    optimizer = torch.optim.SGD(target.parameters(), lr=0.1)
    regrow.RigL(target, optimizer, total_steps=10, update_every=2)
    for _ in range(4):
        optimizer.zero_grad()
        target(x).pow(2).sum().backward()
        optimizer.step()
    for weight in sparse_weights(target):
        weight.settle(thorough=True)
        assert not weight.to_dense()[~weight.mask()].any()


@pytest.mark.parametrize("storage", storages)
def test_assign_under_a_method_says_what_to_do(storage: str) -> None:
    target, x = model(storage), torch.randn(5, 12)
    optimizer = torch.optim.SGD(target.parameters(), lr=0.1)
    method = regrow.RigL(target, optimizer, total_steps=10, update_every=2)
    target.load_state_dict(model(storage, seed=1).state_dict(), assign=True)
    target(x).sum().backward()
    with pytest.raises(
        regrow.RegrowError, match=r"`0.weight` is another parameter now .*\nMake optimizer and method"
    ):
        optimizer.step()
    assert method.step == 0
