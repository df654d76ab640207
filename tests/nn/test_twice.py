"""Gradient penalties through whole networks: compressed against dense in float64, and what methods grow by."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import regrow
from regrow.models.wrn import wrn
from regrow.weights.views import sparse_weights


def pooled() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Conv2d(6, 5, 3, padding=1),
        nn.Softplus(),
        nn.AvgPool2d(2, padding=1, count_include_pad=False),
        nn.BatchNorm2d(5, affine=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 10),
    )


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(192, 20),
        nn.LayerNorm(20),
        nn.GELU(),
        nn.Linear(20, 16),
        nn.ReLU(),
        nn.Linear(16, 10),
    )


def penalty(model: nn.Module, x: Tensor, *, only: bool) -> Tensor:
    """The loss of a critic (WGAN-GP), or its penalty alone."""
    x = x.clone().requires_grad_()
    y = model(x)
    (gradient,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
    norms = (gradient.flatten(1).norm(dim=1) - 1).pow(2).mean()
    return norms if only else norms + F.cross_entropy(y, torch.arange(len(x)) % 10)


@pytest.mark.parametrize("build", [perceptron, pooled, lambda: wrn(10, 1, width=0.25)])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dense_first", [False, True])
def test_penalties_have_the_gradients_of_the_dense_network(
    build: Callable[[], nn.Module], fused: bool, training: bool, dense_first: bool
) -> None:
    torch.manual_seed(0)
    model = build().double()
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        model(x)  # running statistics of its own
    first = next(n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d))
    regrow.sparsify(
        model, 0.6, storage="compressed", init="magnitude", exclude=first if dense_first else None
    )
    if fused:
        regrow.fuse(model)
    dense = regrow.densify(copy.deepcopy(model))
    sparse = {w.name: w for w in sparse_weights(model)}
    for only in (True, False):
        model.zero_grad()
        dense.zero_grad()
        one, other = (penalty(m.train(training), x, only=only) for m in (dense, model))
        assert torch.allclose(other, one, 1e-9)
        one.backward()
        other.backward()
        for name, parameter in dense.named_parameters():
            expected = parameter.grad
            if name in sparse:
                weight = sparse[name]
                found, expected = weight.take(weight.parameter.grad), expected.reshape(-1)[weight.positions()]
            else:
                found = model.get_parameter(name).grad
            if expected is None or found is None:
                assert expected is None or not expected.any()
                continue
            assert torch.allclose(found, expected, 1e-7, 1e-10), name


@pytest.mark.parametrize("build", [perceptron, pooled])
def test_rigl_grows_by_the_gradient_of_the_penalty_too(build: Callable[[], nn.Module]) -> None:
    topologies = []
    for storage in ("masked", "compressed"):
        torch.manual_seed(0)
        model = regrow.sparsify(build().double(), 0.5, storage=storage)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        regrow.RigL(model, optimizer, total_steps=20, update_every=2)
        before = [w.fingerprint() for w in sparse_weights(model)]
        for step in range(5):
            x = torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            penalty(model, x, only=step % 2 == 0).backward()
            optimizer.step()
        topologies.append([w.fingerprint() for w in sparse_weights(model)])
        assert topologies[-1] != before
    assert topologies[0] == topologies[1]


def test_flops_of_a_penalty_are_counted() -> None:
    model = regrow.sparsify(nn.Sequential(nn.Linear(40, 30)), 0.9, storage="compressed")
    x = torch.randn(7, 40, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        given = x * 1  # torch's own counter refuses to differentiate by a leaf
        (gradient,) = torch.autograd.grad(model(given).pow(2).sum(), given, create_graph=True)
        gradient.pow(2).sum().backward()
    # forward 1; the first backward 2; of its own derivative 2; then the first graph again 2
    assert counter.get_total_flops() == 7 * 2 * 120 * 7
