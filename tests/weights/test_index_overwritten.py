"""An index that other code has written to is noticed before the kernels go by it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import regrow
from regrow.errors import RegrowRuntimeError
from regrow.nn.base import INDEX
from regrow.weights import sparse_weights


def made(kind: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    if kind == "linear":
        model, x = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 5)), torch.randn(8, 40)
    else:
        model, x = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3)), torch.randn(2, 8, 7, 7)
    return regrow.sparsify(model, 0.5, storage="compressed", seed=0), x


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("name", INDEX)
@pytest.mark.parametrize("value", [10**6, -1, 0])
def test_before_a_pass(kind: str, name: str, value: int) -> None:
    model, x = made(kind)
    getattr(model[0], name).fill_(value)
    for _ in range(2):
        with pytest.raises(RegrowRuntimeError, match="was overwritten by other code"):
            model(x)
    with pytest.raises(RegrowRuntimeError, match="was overwritten by other code"):
        model.state_dict()


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("name", INDEX)
def test_between_the_passes(kind: str, name: str) -> None:
    model, x = made(kind)
    loss = model(x).sum()
    getattr(model[0], name).fill_(10**6)
    with pytest.raises(RuntimeError, match="overwritten between|modified by an inplace operation"):
        loss.backward()


def test_between_two_derivatives() -> None:
    model, x = made("linear")
    (gradient,) = torch.autograd.grad(model(x.requires_grad_()).square().sum(), x, create_graph=True)
    model[0].weight_order.fill_(10**6)
    with pytest.raises(RuntimeError, match="overwritten between|modified by an inplace operation"):
        gradient.square().sum().backward()


def test_past_the_version_counter() -> None:
    model, _ = made("linear")
    model[0].weight_order.data.fill_(0)
    with pytest.raises(RegrowRuntimeError, match="was overwritten by other code"):
        model.state_dict()


def test_what_is_written_and_right_is_taken() -> None:
    model, x = made("linear")
    expected = model(x)
    for name in INDEX:
        part = getattr(model[0], name)
        part.copy_(part.clone())
    assert torch.equal(model(x), expected)
    (weight, *_) = sparse_weights(model)
    versions = weight.record.versions
    model(x)
    assert weight.record.versions == versions
    assert torch.equal(copy.deepcopy(model)(x), expected)
