"""`compress`: the same run goes on in compressed storage."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

import regrow
from regrow.weights import sparse_weights, stamp


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10)).double()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, start: int, stop: int) -> None:
    for step in range(start, stop):
        optimizer.zero_grad()
        x = torch.randn(8, 20, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        model(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_pruning_hands_over_to_compressed_storage(kind: type) -> None:
    models = []
    for hand_over in (False, True):
        model = regrow.sparsify(mlp(), 0.0)
        optimizer = kind(model.parameters(), lr=0.01, **({"momentum": 0.9} if kind is SGD else {}))
        method = regrow.Pruning(
            model,
            optimizer,
            total_steps=60,
            final_sparsity=0.9,
            update_every=5,
            start_fraction=0.1,
            stop_fraction=0.5,
        )
        train(model, optimizer, 0, 40)
        method.detach()
        if hand_over:
            assert regrow.compress(model, optimizer) is model
            assert {w.storage for w in sparse_weights(model)} == {"compressed"}
        regrow.Static(model, optimizer)
        train(model, optimizer, 40, 60)
        models.append(model)
    for masked, packed in zip(sparse_weights(models[0]), sparse_weights(models[1]), strict=True):
        assert packed.nnz == masked.nnz == round(0.1 * masked.numel)
        assert len(packed.parameter) - stamp.SIZE == packed.nnz
        torch.testing.assert_close(packed.to_dense(), masked.to_dense())


def test_what_cannot_be_compressed() -> None:
    model = regrow.sparsify(nn.Sequential(nn.Conv1d(1, 4, 3), nn.Flatten(), nn.Linear(16, 4)), 0.5)
    regrow.compress(model)
    assert [w.storage for w in sparse_weights(model)] == ["masked", "compressed"]
    assert model(torch.randn(2, 1, 6)).shape == (2, 4)
    with pytest.raises(
        regrow.RegrowError, match="no masked weight that can be compressed.*Conv1d has no compressed form"
    ):
        regrow.compress(model)
    attached = regrow.sparsify(mlp(), 0.5)
    method = regrow.RigL(attached, SGD(attached.parameters(), lr=0.1), total_steps=10, stop_fraction=0.0)
    with pytest.raises(regrow.RegrowError, match=r"`model` is driven by a method: RigL.*\nCall its detach"):
        regrow.compress(attached)
    method.detach()


class InContainers(torch.optim.Optimizer):
    """Momentum that is kept in a list inside of a dictionary."""

    def __init__(self, params: object, lr: float = 0.01) -> None:
        super().__init__(params, {"lr": lr})  # type: ignore[arg-type]

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                kept = self.state[p].setdefault("momentum", {"terms": [torch.zeros_like(p)]})["terms"][0]
                kept.mul_(0.9).add_(p.grad)
                p.sub_(kept, alpha=group["lr"])


def test_optimizer_state_in_containers_moves_along() -> None:
    models = []
    for hand_over in (False, True):
        model = regrow.sparsify(mlp(), 0.5, storage="masked")
        optimizer = InContainers(model.parameters())
        train(model, optimizer, 0, 5)
        if hand_over:
            regrow.compress(model, optimizer)
        train(model, optimizer, 5, 10)
        models.append(model)
    for masked, packed in zip(sparse_weights(models[0]), sparse_weights(models[1]), strict=True):
        assert packed.storage == "compressed"
        assert torch.allclose(masked.to_dense(), packed.to_dense(), atol=1e-12)


def test_hooks_of_regrow_s_own_are_no_obstacle() -> None:
    model = regrow.sparsify(mlp(), 0.5, storage="masked")
    x = torch.randn(2, 20, dtype=torch.float64)
    given = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    expected = torch.func.functional_call(model, given, x)  # which has hooked the layers
    regrow.compress(model)
    assert {w.storage for w in sparse_weights(model)} == {"compressed"}
    torch.testing.assert_close(model(x), expected)
