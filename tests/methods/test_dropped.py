"""What is dropped is freed at once: nothing waits for the garbage collector, which knows no sizes."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import regrow
from regrow.errors import RegrowRuntimeError


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    torch.optim.SGD([nn.Parameter(torch.zeros(1))]).step()  # torch's own first time leaves a cycle
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def network(convolutional: bool) -> tuple[nn.Module, tuple[int, ...]]:
    if not convolutional:
        return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 4)), (12,)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)), (3, 8, 8)


@pytest.mark.parametrize("storage", ["masked", "compressed"])
@pytest.mark.parametrize("convolutional", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("attached", ["no", "kept", "not kept"])
@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.Adam])
def test_models_optimizers_and_methods(
    storage: str, convolutional: bool, fused: bool, attached: str, optimizer_class: Any
) -> None:
    model, shape = network(convolutional)
    regrow.sparsify(model, 0.5, storage=storage)
    if fused:
        regrow.fuse(model)
    optimizer = optimizer_class(model.parameters(), lr=0.1)
    method = None
    if attached == "kept":
        method = regrow.RigL(model, optimizer, total_steps=6, update_every=2)
    elif attached == "not kept":
        regrow.RigL(model, optimizer, total_steps=6, update_every=2)
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(4, *shape)), torch.arange(4)).backward()
        optimizer.step()
    x = torch.randn(2, *shape, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    del gradient  # two graphs that nobody goes through
    gone = [weakref.ref(each) for each in (model, optimizer, *([] if method is None else [method]))]
    del model, optimizer, method
    assert [each() for each in gone] == [None] * len(gone)


def test_a_method_that_nobody_keeps_lives_as_long_as_its_optimizer() -> None:
    model, shape = network(False)
    regrow.sparsify(model, 0.5, storage="masked")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = weakref.ref(regrow.SET(model, optimizer, total_steps=6, update_every=2))
    model(torch.randn(2, *shape)).sum().backward()
    optimizer.step()
    assert method().step == 1  # type: ignore[union-attr]
    del optimizer
    assert method() is None


def test_a_method_whose_optimizer_is_gone_says_so() -> None:
    model, _ = network(False)
    regrow.sparsify(model, 0.5, storage="masked")
    method = regrow.SET(model, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=6, update_every=2)
    gc.collect()  # torch's first optimizer of a class leaves a cycle
    with pytest.raises(RegrowRuntimeError, match=r"the optimizer of SET is gone\.\nKeep it"):
        _ = method.optimizer
    assert (method.step, method.next_update) == (0, 2)
    assert "SET(0 of 6 steps made" in repr(method)
