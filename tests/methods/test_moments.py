"""State of another moment: rolled back, unfrozen, added, tied, replaced."""

from __future__ import annotations

import copy
import gc
import logging
import warnings
from typing import Any

import pytest
import torch
from runs import plain, storages
from torch import Tensor, nn
from torch.optim import SGD

import regrow
from regrow.methods.state import companions
from regrow.testing import OPTIMIZERS, Case, Run
from regrow.weights import sparse_weights

# --- a model that is loaded without its optimizer


@storages
@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_connections_that_a_rollback_changes_lose_their_state(storage: str, name: str) -> None:
    run = Run(Case(regrow.RigL, storage), attach=False)
    run.optimizer = OPTIMIZERS[name](run.model.parameters())
    run.method = run.case.method(run.model, run.optimizer)
    for _ in run.train(0, 9):
        pass
    best = copy.deepcopy(run.model.state_dict())
    then = [weight.mask() for weight in run.weights]
    for _ in run.train(9, 31):
        pass
    now = [weight.mask() for weight in run.weights]
    dense = [_dense_state(run, i) for i in range(len(run.weights))]
    run.model.load_state_dict(best)
    run.optimizer.zero_grad()
    run.backward(31)
    gradients = [w.parameter.grad.clone() for w in run.weights if w.parameter.grad is not None]
    if dense[0]:
        with pytest.warns(UserWarning, match=r"loaded in another topology.*\n.*optimizer.load_state_dict"):
            run.method._settle_loads()
    else:
        run.method._settle_loads()
    assert any((a != b).any() for a, b in zip(then, now, strict=True))
    for i, weight in enumerate(run.weights):
        assert torch.equal(weight.mask(), then[i])
        assert weight.parameter.grad is not None
        assert torch.equal(weight.parameter.grad, gradients[i])  # of a pass after the load
        for before, after in zip(dense[i], _dense_state(run, i), strict=True):
            assert torch.equal(after, torch.where(then[i] & now[i], before, 0))
    with warnings.catch_warnings():  # said once
        warnings.simplefilter("error")
        run.optimizer.step()
        for _ in run.train(32, 40):
            pass
    for weight in run.weights:
        assert torch.equal(weight.restrict(weight.parameter.detach()), weight.parameter.detach())


def _dense_state(run: Run, index: int) -> list[Tensor]:
    """The optimizer's state of a weight, by position."""
    weight = run.weights[index]
    found = []
    for tensor in companions(run.optimizer, weight, gradient=False).values():
        dense = torch.zeros(weight.numel, dtype=tensor.dtype)
        dense[weight.positions()] = weight.take(tensor)
        if weight.storage == "masked":
            assert torch.equal(dense.view(weight.shape), tensor)
        found.append(dense.view(weight.shape))
    return found


@storages
@pytest.mark.parametrize("model_first", [True, False])
def test_a_rollback_of_both_is_exact_in_either_order(storage: str, model_first: bool) -> None:
    case = Case(regrow.RigL, storage)
    run, whole = plain(case, 9), plain(case, 20)
    saved = copy.deepcopy((run.model.state_dict(), run.optimizer.state_dict()))
    for _ in run.train(9, 31):
        pass
    parts: list[tuple[Any, Any]] = [(run.model, saved[0]), (run.optimizer, saved[1])]
    for part, state in parts if model_first else parts[::-1]:
        part.load_state_dict(state)
    for _ in run.train(9, 20):
        pass
    assert run.topology() == whole.topology()
    for one, two in zip(run.dense(), whole.dense(), strict=True):
        assert torch.equal(one, two)


@storages
def test_the_optimizer_may_be_loaded_some_steps_later(storage: str) -> None:
    run = plain(Case(regrow.RigL, storage), 9)
    saved = copy.deepcopy((run.model.state_dict(), run.optimizer.state_dict()))
    for _ in run.train(9, 31):
        pass
    run.model.load_state_dict(saved[0])
    run.optimizer.zero_grad()
    run.backward(31)
    with pytest.warns(UserWarning, match="loaded in another topology") as warned:
        run.optimizer.step()
    assert warned[0].filename == __file__  # the line of the user, not of a hook
    run.model.load_state_dict(saved[0])
    run.optimizer.load_state_dict(saved[1])
    buffers = [_dense_state(run, i) for i in range(len(run.weights))]
    assert run.method is not None
    run.method._settle_loads()
    for i, kept in enumerate(buffers):
        for one, two in zip(kept, _dense_state(run, i), strict=True):
            assert torch.equal(one, two)


def test_a_gradient_from_before_the_load_goes_with_its_connections() -> None:
    run = plain(Case(regrow.RigL, "compressed"), 9)
    best = copy.deepcopy(run.model.state_dict())
    for _ in run.train(9, 31):
        pass
    run.optimizer.zero_grad()
    run.backward(31)
    run.model.load_state_dict(best)
    with pytest.warns(UserWarning, match="loaded in another topology"):
        run.optimizer.step()
    changed = [w for w in run.weights if w.nnz < w.numel]
    assert changed
    assert not any(w.parameter.grad.any() for w in changed if w.parameter.grad is not None)


@storages
def test_loading_the_same_topology_keeps_everything(storage: str) -> None:
    case = Case(regrow.Static, storage)
    run, other = plain(case, 9), plain(case, 20)
    run.model.load_state_dict(copy.deepcopy(run.model.state_dict()))
    for _ in run.train(9, 20):
        pass
    for one, two in zip(run.dense(), other.dense(), strict=True):
        assert torch.equal(one, two)


# --- weights that come later


def three(storage: str = "masked") -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(3)))
    return regrow.sparsify(model, 0.5, "uniform", include="*", storage=storage)  # type: ignore[return-value]


def train(model: nn.Module, optimizer: Any, steps: int, start: int = 0) -> None:
    for step in range(start, start + steps):
        optimizer.zero_grad()
        x = torch.randn(8, 16, generator=torch.Generator().manual_seed(step))
        model(x).square().mean().backward()
        optimizer.step()


METHODS: list[tuple[type[regrow.Method], dict[str, Any]]] = [
    (regrow.RigL, {"update_every": 3}),
    (regrow.SNFS, {"update_every": 3}),
    (regrow.GraNet, {"update_every": 3, "final_sparsity": 0.8}),
    (regrow.Pruning, {"update_every": 3, "final_sparsity": 0.8, "start_fraction": 0.0}),
]


@pytest.mark.parametrize(("cls", "options"), METHODS, ids=lambda p: getattr(p, "__name__", ""))
def test_a_layer_that_is_unfrozen_and_added_later_evolves(
    cls: Any, options: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = three()
    model[0].requires_grad_(False)
    optimizer = SGD([*model[1].parameters(), *model[2].parameters()], lr=0.1, momentum=0.9)
    method = cls(model, optimizer, total_steps=40, **options)
    train(model, optimizer, 7)
    before = [weight.mask() for weight in sparse_weights(model)]
    model[0].requires_grad_(True)
    optimizer.add_param_group({"params": list(model[0].parameters())})
    layers: list[set[str]] = []
    method.register_update_hook(lambda record: layers.append(set(record["layers"])))
    with caplog.at_level(logging.INFO, "regrow"):
        train(model, optimizer, 12, start=7)
    assert "drives ['0.weight'] too from step 7 on" in caplog.text
    assert layers[-1] == {"0.weight", "1.weight", "2.weight"}
    assert (sparse_weights(model)[0].mask() != before[0]).any()
    assert [weight.name for weight in method.weights] == ["0.weight", "1.weight", "2.weight"]
    for weight in sparse_weights(model):
        assert not weight.parameter.detach()[~weight.mask()].any()


@pytest.mark.parametrize(("cls", "options"), METHODS, ids=lambda p: getattr(p, "__name__", ""))
def test_a_layer_that_is_taken_from_the_optimizer_rests(
    cls: Any, options: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = three()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    method = cls(model, optimizer, total_steps=40, **options)
    train(model, optimizer, 7)
    gone = {id(parameter) for parameter in model[1].parameters()}
    (group,) = optimizer.param_groups
    group["params"] = [parameter for parameter in group["params"] if id(parameter) not in gone]
    before = [weight.to_dense() for weight in sparse_weights(model)]
    with caplog.at_level(logging.INFO, "regrow"):
        train(model, optimizer, 6, start=7)
    assert "rests ['1.weight'] from step 7 on" in caplog.text
    assert [weight.name for weight in method.weights] == ["0.weight", "2.weight"]
    after = [weight.to_dense() for weight in sparse_weights(model)]
    assert torch.equal(before[1], after[1])
    assert ((before[0] == 0) != (after[0] == 0)).any()
    optimizer.add_param_group({"params": list(model[1].parameters())})
    train(model, optimizer, 6, start=13)
    assert [weight.name for weight in method.weights] == ["0.weight", "1.weight", "2.weight"]
    assert not torch.equal(before[1], sparse_weights(model)[1].to_dense())


@storages
def test_a_layer_that_is_made_later_evolves(storage: str) -> None:
    model = nn.ModuleDict({"a": three(storage)})
    optimizer = SGD(model.parameters(), lr=0.1)
    regrow.RigL(model, optimizer, total_steps=40, update_every=3)
    new = nn.Sequential(nn.Linear(16, 16))
    model["b"] = new
    regrow.sparsify(model, 0.5, "uniform", include="b*", storage=storage)
    optimizer.add_param_group({"params": list(new.parameters())})
    before = sparse_weights(new)[0].mask()
    train(nn.Sequential(model["a"], new), optimizer, 7)
    assert (sparse_weights(new)[0].mask() != before).any()


def test_a_layer_whose_optimizer_settings_do_not_fit_is_refused_when_it_comes() -> None:
    model = three()
    model[0].requires_grad_(False)
    optimizer = torch.optim.Adagrad([*model[1].parameters(), *model[2].parameters()], lr=0.1)
    regrow.RigL(model, optimizer, total_steps=40, update_every=5)
    optimizer.add_param_group({"params": list(model[0].parameters()), "initial_accumulator_value": 0.5})
    model[0].requires_grad_(True)
    with pytest.raises(regrow.RegrowError, match="state `sum` is not zero for a fresh weight"):
        train(model, optimizer, 1)


def test_weights_tied_later_are_named() -> None:
    model = three()
    optimizer = SGD(model.parameters(), lr=0.1)
    method = regrow.RigL(model, optimizer, total_steps=40, update_every=5)
    model[2].weight = model[0].weight
    with (
        pytest.warns(UserWarning, match="was written to where it has no connection"),
        pytest.raises(regrow.RegrowError, match=r"`2.weight` is another parameter now"),
    ):
        train(model, optimizer, 1)
    method.detach()
    with pytest.raises(
        regrow.RegrowError, match=r"one parameter under \['0.weight', '2.weight'\].*\n.*Tie them before"
    ):
        regrow.RigL(model, SGD(model.parameters(), lr=0.1), total_steps=40, update_every=5)


# --- a gradient of zero


@storages
@pytest.mark.parametrize(
    ("cls", "options"), [(regrow.RigL, {}), (regrow.ITOP, {}), (regrow.GraNet, {"final_sparsity": 0.6})]
)
def test_a_dense_gradient_of_zero_moves_nothing(cls: Any, options: Any, storage: str) -> None:
    model = three(storage)
    optimizer = SGD(model.parameters(), lr=0.1)
    cls(model, optimizer, total_steps=100, update_every=5, **options)
    before = [weight.mask() for weight in sparse_weights(model)]
    for i in range(30):
        x = torch.randn(8, 16, generator=torch.Generator().manual_seed(i))
        optimizer.zero_grad()
        (model[0](x).square().mean() + model[2](x).square().mean() + 0.0 * model[1](x).sum()).backward()
        optimizer.step()
    moved = [bool((w.mask() != b).any()) for w, b in zip(sparse_weights(model), before, strict=True)]
    assert moved == [True, False, True]


@storages
def test_one_row_with_a_gradient_is_enough(storage: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 100))
    regrow.sparsify(model, 0.9, "uniform", include="*", storage=storage)
    optimizer = SGD(model.parameters(), lr=0.1)
    regrow.RigL(model, optimizer, total_steps=100, update_every=2)
    before = sparse_weights(model)[0].mask()
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 16))[:, 37].sum().backward()
        optimizer.step()
    moved = (sparse_weights(model)[0].mask() != before).any(1)
    assert moved[37]


@storages
def test_a_convolution_whose_gradient_is_zero_rests(storage: str) -> None:
    torch.manual_seed(0)
    model = nn.ModuleList(nn.Conv2d(3, 8, 3, padding=1) for _ in range(3))
    regrow.sparsify(model, 0.5, "uniform", include="*", storage=storage)
    optimizer = SGD(model.parameters(), lr=0.1)
    regrow.RigL(model, optimizer, total_steps=100, update_every=2)
    before = [weight.mask() for weight in sparse_weights(model)]
    for _ in range(6):
        x = torch.randn(4, 3, 8, 8)
        optimizer.zero_grad()
        loss = model[0](x).square().mean() + 0.0 * model[1](x).sum() + model[2](0 * x).sum()
        loss.backward()
        optimizer.step()
    moved = [bool((w.mask() != b).any()) for w, b in zip(sparse_weights(model), before, strict=True)]
    assert moved == [True, False, False]


def test_snfs_rests_where_its_average_is_zero() -> None:
    model = three()
    optimizer = SGD(model.parameters(), lr=0.1)
    regrow.SNFS(model, optimizer, total_steps=100, update_every=5)
    before = sparse_weights(model)[1].mask()
    for i in range(12):
        x = torch.randn(8, 16, generator=torch.Generator().manual_seed(i))
        optimizer.zero_grad()
        (model[0](x).square().mean() + model[2](x).square().mean() + 0.0 * model[1](x).sum()).backward()
        optimizer.step()
    assert torch.equal(sparse_weights(model)[1].mask(), before)


@storages
def test_where_all_is_zero_the_topology_stays_with_a_warning(storage: str) -> None:
    model = three(storage)
    optimizer = SGD(model.parameters(), lr=0.1)
    method = regrow.GraNet(model, optimizer, total_steps=100, update_every=1, final_sparsity=0.9)
    train(model, optimizer, 1)
    optimizer.zero_grad()
    (0.0 * model(torch.randn(8, 16)).sum()).backward()
    with pytest.warns(UserWarning, match="the dense gradient at step 1 is zero: the topology stays"):
        optimizer.step()
    assert method.step == 2


# --- a method that another replaces


def test_a_second_fit_replaces_the_method_of_the_first() -> None:
    model = three()
    first = SGD(model.parameters(), lr=0.1)
    old = regrow.RigL(model, first, total_steps=40, update_every=5)
    train(model, first, 3)
    second = SGD(model.parameters(), lr=0.1)
    new = regrow.RigL(model, second, total_steps=40, update_every=2)
    assert repr(old) == "RigL(replaced by another method at step 3)"
    train(model, second, 3)
    assert new.step == 3
    assert old.step == 3
    with pytest.raises(
        regrow.RegrowError,
        match=r"another method drives by now: RigL\(3 of 40 steps made.*\n.*call its detach",
    ):
        train(model, first, 1)
    old.detach()
    assert repr(old) == "RigL(detached at step 3)"
    train(model, second, 3, start=3)  # the end of the old one does not touch the new one
    assert new.step == 6
    new.detach()
    new.detach()  # twice is once
    regrow.densify(model)
    assert repr(new) == "RigL(detached at step 6)"


def test_a_method_that_is_deleted_gives_the_weights_back() -> None:
    model = three()
    first = SGD(model.parameters(), lr=0.1)
    old = regrow.RigL(model, first, total_steps=40, update_every=5)
    second = SGD(model.parameters(), lr=0.1)
    new = regrow.RigL(model, second, total_steps=40, update_every=5)
    del new, second
    gc.collect()
    train(model, first, 3)
    assert old.step == 3


def test_a_method_with_other_weights_of_its_own_is_not_replaced() -> None:
    model = three()
    old = regrow.RigL(model, SGD(model.parameters(), lr=0.1), total_steps=40, update_every=5)
    part = nn.Sequential(model[0])
    with pytest.raises(
        regrow.RegrowError, match=r"`0.weight` is driven by a method already: RigL.*\n.*detach"
    ):
        regrow.RigL(part, SGD(part.parameters(), lr=0.1), total_steps=40, update_every=5)
    assert old.step == 0
