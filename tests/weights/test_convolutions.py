"""Compressed storage of convolutions: everything that masked storage does, with the same result."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

import regrow
from regrow._random import generator, sample
from regrow.growth import gradient as growth_gradient
from regrow.methods.criteria import gradient_magnitude
from regrow.testing import network
from regrow.weights import hook_of, sparse_weights


def convolutional() -> nn.Sequential:
    """A small network in float64, with each kind of layer that stands between convolutions."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 10, 1, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(10, 5),
    ).double()


def batch(step: int, size: int = 18) -> tuple[Tensor, Tensor]:
    x = torch.randn(size, 1, 8, 8, generator=generator(step, "x"), dtype=torch.float64)
    return x, x.flatten(1)[:, :60].unflatten(1, (5, 12)).sum(2).argmax(1)


def both() -> list[nn.Module]:
    masked = regrow.sparsify(convolutional(), 0.6, storage="masked")
    return [masked, regrow.compress(copy.deepcopy(masked))]


METHODS = {
    "RigL": regrow.RigL,
    "SET": regrow.SET,
    "ITOP": regrow.ITOP,
    "SetITOP": regrow.SetITOP,
    "GraNet": regrow.GraNet,
    "Static": regrow.Static,
}


@pytest.mark.parametrize("name", METHODS)
def test_methods_choose_the_same_topology(name: str) -> None:
    models = both()
    options = {} if name == "Static" else {"total_steps": 40, "update_every": 2}
    if name == "GraNet":
        options["final_sparsity"] = 0.6
    optimizers = [SGD(m.parameters(), lr=0.1, momentum=0.9) for m in models]
    methods = [METHODS[name](m, o, **options) for m, o in zip(models, optimizers, strict=True)]  # type: ignore[operator]
    changed = set()
    for step in range(12):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            for part in range(2):  # accumulated
                x, y = batch(2 * step + part)
                nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        for masked, packed in zip(*map(sparse_weights, models), strict=True):
            assert (masked.storage, packed.storage) == ("masked", "compressed")
            assert masked.fingerprint() == packed.fingerprint(), f"step {step}"
            torch.testing.assert_close(masked.to_dense(), packed.to_dense(), rtol=0, atol=1e-9)
        changed.add(tuple(w.fingerprint() for w in sparse_weights(models[1])))
    assert (len(changed) > 2) == (name != "Static")
    del methods


@pytest.mark.parametrize("tile", [1, 50, 1 << 18])
def test_candidates_are_those_of_the_dense_gradient(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth_gradient, "TILE", tile)
    model = regrow.sparsify(convolutional(), 0.6, storage="compressed")
    dense = regrow.densify(copy.deepcopy(model))

    class Driver:
        def wants_dense_gradient(self) -> bool:
            return True

    driver = Driver()
    weights = sparse_weights(model)
    for weight in weights:
        hook = hook_of(weight.parameter)
        assert hook is not None
        hook.driver = __import__("weakref").ref(driver)
    x, y = batch(0)
    for each in (model, dense):
        nn.functional.cross_entropy(each(x), y).backward()
    gradients = [m.weight.grad for m in dense if isinstance(m, nn.Conv2d | nn.Linear)]
    for weight, gradient in zip(weights, gradients, strict=True):
        assert gradient is not None
        survivors = weight.positions()[sample(weight.nnz // 2, weight.nnz, generator(0, "kept"))]
        free = torch.ones(weight.numel, dtype=torch.bool)
        free[survivors] = False
        candidates = free.nonzero().view(-1)
        order = gradient.view(-1)[candidates].abs().sort(descending=True, stable=True).indices[:7]
        found = weight.best(7, survivors, gradient_magnitude)
        assert torch.equal(found, candidates[order].sort().values)


def test_checkpoints_cross_storages(tmp_path: Path) -> None:
    models = both()
    x, _ = batch(1)
    expected = models[0].eval()(x)
    for source in models:
        for storage in ("masked", "compressed"):
            other = regrow.sparsify(convolutional(), 0.5, storage=storage, seed=9)
            other.load_state_dict(source.state_dict())
            torch.testing.assert_close(other.eval()(x), expected)
    loaded = regrow.load(regrow.save(models[1], tmp_path / "model.safetensors"), into=convolutional())
    assert [w.storage for w in sparse_weights(loaded)] == ["compressed"] * 4
    torch.testing.assert_close(loaded.eval()(x), expected)
    plain = regrow.densify(loaded)
    assert [type(m) for m in plain] == [type(m) for m in convolutional()]
    torch.testing.assert_close(plain.eval()(x), expected)


def test_compressing_takes_the_optimizers_state_along() -> None:
    model = regrow.sparsify(convolutional(), 0.6, storage="masked")
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    runs = []
    for pack in (False, True):
        run = copy.deepcopy((model, optimizer))
        own = SGD(run[0].parameters(), lr=0.1, momentum=0.9)
        for step in range(4):
            if pack and step == 2:
                regrow.compress(run[0], own)
            x, y = batch(step)
            own.zero_grad()
            nn.functional.cross_entropy(run[0](x), y).backward()
            own.step()
        runs.append([w.to_dense() for w in sparse_weights(run[0])])
    for masked, packed in zip(*runs, strict=True):
        torch.testing.assert_close(masked, packed)


def test_the_common_suite_trains_a_convolution() -> None:
    assert [w.storage for w in sparse_weights(network("compressed"))] == ["compressed"] * 3


def test_costs_do_not_depend_on_storage() -> None:
    x = batch(0, 1)[0]
    for convention in ("clean", "rigl"):
        masked, packed = (regrow.costs(m, x, convention=convention).to_dict() for m in both())
        assert masked == packed
