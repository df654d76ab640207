"""Copies whose values hold no stamp: noise was written over it, or their type has no room for one."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD

import regrow
from regrow.weights import sparse_weights

UNKNOWN = "of which topology they are cannot be told"
X = torch.randn(64, 20, generator=torch.Generator().manual_seed(1))


def trained() -> tuple[nn.Sequential, SGD, regrow.RigL]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 5))
    regrow.sparsify(model, distribution={"0": 0.7}, storage="compressed")
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    return model, optimizer, regrow.RigL(model, optimizer, total_steps=1000, update_every=4)


def train(model: nn.Module, optimizer: SGD, steps: int = 6) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(X), X[:, :5].argmax(1)).backward()
        optimizer.step()


@torch.no_grad()
def write(copied: nn.Module, model: nn.Module, noise: float = 0.0) -> None:
    for mine, theirs in zip(copied.parameters(), model.parameters(), strict=True):
        mine.copy_(theirs + noise * torch.randn_like(theirs))


def test_a_copy_with_noise_says_so_once_the_topologies_are_others() -> None:
    model, optimizer, _ = trained()
    noisy = copy.deepcopy(model)
    write(noisy, model, 0.01)
    noisy(X)  # the same topology: nothing to say, neither of initialisers
    train(model, optimizer)
    write(noisy, model, 0.01)
    with pytest.warns(UserWarning, match=UNKNOWN) as said:
        noisy(X)
    assert said[0].filename == __file__
    write(noisy, model, 0.01)
    noisy(X)


def test_a_copy_with_noise_makes_the_moves_where_it_follows() -> None:
    model, optimizer, method = trained()
    noisy = copy.deepcopy(model)
    method.follow(noisy)
    train(model, optimizer)
    write(noisy, model, 0.001)
    noisy(X)
    (mine,), (theirs,) = sparse_weights(noisy), sparse_weights(model)
    assert mine.fingerprint() == theirs.fingerprint()
    assert torch.allclose(mine.to_dense(), theirs.to_dense(), atol=0.01)


def test_a_float16_copy_that_is_overwritten_takes_the_topology() -> None:
    model, optimizer, _ = trained()
    half = copy.deepcopy(model).half()
    half(X.half())
    train(model, optimizer)
    write(half, model)
    half(X.half())
    (mine,), (theirs,) = sparse_weights(half), sparse_weights(model)
    assert mine.fingerprint() == theirs.fingerprint()
    assert torch.equal(mine.to_dense(), theirs.to_dense().half())


def test_a_float16_average_says_that_its_topology_is_not_known() -> None:
    model, optimizer, _ = trained()
    half = copy.deepcopy(model).half()
    half(X.half())
    train(model, optimizer)
    with torch.no_grad():
        for mine, theirs in zip(half.parameters(), model.parameters(), strict=True):
            mine.lerp_(theirs.half(), 0.1)
    with pytest.warns(UserWarning, match=UNKNOWN):
        half(X.half())


def test_copies_that_are_kept_or_trained_by_themselves_are_silent() -> None:
    model, optimizer, _ = trained()
    kept = copy.deepcopy(model).half()
    late = copy.deepcopy(model)
    alone = copy.deepcopy(model)
    its_own = SGD(alone.parameters(), lr=0.1)
    before = [weight.to_dense() for weight in sparse_weights(kept)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept(X.half())
        train(model, optimizer)
        kept(X.half())
        late.half()(X.half())
        for _ in range(3):
            train(alone, its_own, 1)
            with torch.no_grad():
                for parameter in alone.parameters():
                    parameter.add_(torch.randn_like(parameter), alpha=0.01)
    assert torch.equal(before[0], sparse_weights(kept)[0].to_dense())


def test_float16_values_of_any_scale_are_nothing_of_an_initialiser() -> None:
    model = nn.Sequential(nn.Linear(20, 40), nn.Linear(40, 5)).half()
    for parameter in model.parameters():
        parameter.data *= 10  # as a trained network may have it
    regrow.sparsify(model, 0.7, storage="compressed", init="magnitude")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(X.half())
