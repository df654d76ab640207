"""Gradients that others edit, or put there by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from runs import storages
from torch import Tensor, nn
from torch.optim import SGD

import regrow
from regrow.weights import sparse_weights, stamp

SIZE = 24


def net(storage: str) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(SIZE, SIZE), nn.ReLU(), nn.Linear(SIZE, 8)).double()
    return regrow.sparsify(model, 0.8, "uniform", include="*", storage=storage)  # type: ignore[return-value]


def batch(step: int) -> Tensor:
    return torch.randn(8, SIZE, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def noise(p: Any) -> None:
    p.grad.add_(torch.randn_like(p.grad))


def hidden_noise(p: Any) -> None:
    p.grad.data.add_(torch.randn_like(p.grad))


def surgery(p: Any) -> None:
    p.grad = p.grad + torch.ones_like(p.grad)


def one_entry(p: Any) -> None:
    p.grad.view(-1)[-1] = 1.0


@pytest.mark.parametrize("edit", [noise, hidden_noise, surgery, one_entry])
def test_what_others_write_beside_the_connections_is_cut(edit: Callable[[Any], None]) -> None:
    model = net("masked")
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    regrow.RigL(model, optimizer, total_steps=100, update_every=3)
    for step in range(12):
        optimizer.zero_grad()
        model(batch(step)).square().mean().backward()
        for p in model.parameters():
            edit(p)
        optimizer.step()
        for weight in sparse_weights(model):
            outside = ~weight.mask()
            assert not weight.parameter.detach()[outside].any()
            if step:  # not yet where the first update skips
                assert not optimizer.state[weight.parameter]["momentum_buffer"][outside].any()


def test_padding_of_compressed_weights_is_cut() -> None:
    model = net("compressed")
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    regrow.Pruning(
        model,
        optimizer,
        total_steps=20,
        final_sparsity=0.95,
        update_every=2,
        start_fraction=0.0,
        stop_fraction=0.5,
    )
    for step in range(20):
        optimizer.zero_grad()
        model(batch(step)).square().mean().backward()
        for p in model.parameters():
            noise(p)
        optimizer.step()
    for weight in sparse_weights(model):
        assert len(weight.parameter) > weight.nnz
        assert not weight.parameter.detach()[weight.nnz : -stamp.SIZE].any()
        assert not optimizer.state[weight.parameter]["momentum_buffer"][weight.nnz :].any()


@storages
def test_a_gradient_put_there_by_hand_is_the_gradient_of_the_step(storage: str) -> None:
    model = net(storage)
    optimizer = SGD(model.parameters(), lr=0.1)
    method = regrow.SET(model, optimizer, total_steps=100, update_every=3)
    seen: list[set[str]] = []
    method.register_update_hook(lambda record: seen.append(set(record["layers"])))
    for step in range(1, 8):
        before = [weight.to_dense() for weight in sparse_weights(model)]
        for p in model.parameters():
            p.grad = torch.full_like(p, 2.0)
        optimizer.step()
        assert method.step == step
        if not method.is_update(step - 1):
            for weight, old in zip(sparse_weights(model), before, strict=True):
                assert torch.equal(weight.to_dense(), torch.where(weight.mask(), old - 0.2, 0))
    assert seen == [{"0.weight", "2.weight"}] * 2


@storages
def test_in_place_and_by_hand(storage: str) -> None:
    model = net(storage)
    optimizer = SGD(model.parameters(), lr=0.1)
    method = regrow.SET(model, optimizer, total_steps=100, update_every=50)
    model(batch(0)).sum().backward()
    optimizer.step()
    optimizer.step()  # the same gradient again is not a step
    assert method.step == 1
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()  # nor are zeros
    assert method.step == 1
    for p in model.parameters():
        assert p.grad is not None
        p.grad.fill_(1.0)
    optimizer.step()
    assert method.step == 2


def test_masked_growth_goes_by_a_gradient_put_there_by_hand() -> None:
    model = net("masked")
    optimizer = SGD(model.parameters(), lr=0.1)
    method = regrow.RigL(model, optimizer, total_steps=100, update_every=2, drop_fraction=0.2)
    weight = sparse_weights(model)[0]
    wanted = (~weight.mask()).reshape(-1).nonzero().view(-1)[-40:]
    for _ in range(3):
        for p in model.parameters():
            p.grad = torch.full_like(p, 0.1)
        weight.parameter.grad.view(-1)[wanted] = 5.0  # type: ignore[union-attr]
        optimizer.step()
    assert method.step == 3
    grown = weight.mask().view(-1)[wanted].sum()
    assert grown == int(method.fraction(2) * weight.nnz)


def test_compressed_growth_by_a_gradient_put_there_by_hand_is_an_error() -> None:
    model = net("compressed")
    optimizer = SGD(model.parameters(), lr=0.1)
    regrow.RigL(model, optimizer, total_steps=100, update_every=2)
    with pytest.raises(
        regrow.RegrowError, match=r"`0.weight` has no dense gradient.*\n.*put into .grad by hand"
    ):
        for _ in range(3):
            for p in model.parameters():
                p.grad = torch.ones_like(p)
            optimizer.step()


@storages
def test_projected_gradients_of_two_losses(storage: str) -> None:
    """PCGrad: two backward passes, and what is put into .grad is made of both."""
    runs = []
    for how in (storage, "masked"):
        model = net(how)
        optimizer = SGD(model.parameters(), lr=0.1)
        method = regrow.RigL(model, optimizer, total_steps=100, update_every=3)
        for step in range(10):
            each = []
            for loss in (lambda y: y.square().mean(), lambda y: y.abs().mean()):
                optimizer.zero_grad()
                loss(model(batch(step))).backward()
                each.append([p.grad for p in model.parameters()])
            for p, a, b in zip(model.parameters(), *each, strict=True):
                p.grad = a + b  # type: ignore[operator]
            optimizer.step()
        assert method.step == 10
        runs.append([weight.to_dense() for weight in sparse_weights(model)])
    for one, other in zip(*runs, strict=True):
        torch.testing.assert_close(one, other)


@storages
def test_centralised_gradients(storage: str) -> None:
    model = net(storage)
    optimizer = SGD(model.parameters(), lr=0.1)
    regrow.RigL(model, optimizer, total_steps=100, update_every=3)
    model(batch(0)).square().mean().backward()
    for p in model.parameters():
        if p.dim() > 1:
            p.grad.sub_(p.grad.mean(1, keepdim=True))  # type: ignore[union-attr]
    if storage == "masked":
        optimizer.step()
    else:
        with pytest.warns(UserWarning, match=r"(?s)are zero.*`weight_values` out of it"):
            optimizer.step()
    before = model[0].weight.detach().clone()  # type: ignore[operator, union-attr]
    optimizer.zero_grad(set_to_none=False)  # zeros that nobody has edited
    optimizer.step()
    assert torch.equal(model[0].weight, before)  # type: ignore[arg-type]
