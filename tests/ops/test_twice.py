"""Second derivatives of compressed layers, by the kernels and by the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from machine import ISAS, using
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

import regrow
from regrow.ops.reference import ACTIVATIONS
from regrow.tiles.tensor import plain_of

IMPLEMENTATIONS = ["reference", ISAS[-1]] if ISAS else ["reference"]


def check(layer: nn.Module, x: Tensor) -> None:
    """First and second derivatives of input, values and bias against finite differences."""
    names = [name for name, _ in layer.named_parameters()]

    def run(x: Tensor, *leaves: Tensor) -> Tensor:
        return plain_of(functional_call(layer, dict(zip(names, leaves, strict=True)), (x,)), "check")

    leaves = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    assert gradcheck(run, (x, *leaves))
    assert gradgradcheck(run, (x, *leaves))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("bias", [True, False])
def test_linear(implementation: str, activation: str, bias: bool) -> None:
    torch.manual_seed(0)
    model = regrow.sparsify(nn.Sequential(nn.Linear(6, 5, bias=bias)).double(), 0.5, storage="compressed")
    model[0].activation = activation
    with using(implementation):
        check(model[0], torch.randn(3, 2, 6, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    "window",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "stride": 2, "bias": False},
        {"kernel_size": (1, 2), "padding": (2, 0)},
        {"kernel_size": 3, "dilation": 2, "padding": "same"},
    ],
)
def test_convolution(implementation: str, window: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = regrow.sparsify(nn.Sequential(nn.Conv2d(2, 3, **window)).double(), 0.5, storage="compressed")
    with using(implementation):
        check(model[0], torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True))


def test_a_third_derivative() -> None:
    torch.manual_seed(0)
    sparse = regrow.sparsify(nn.Sequential(nn.Linear(5, 4), nn.Tanh()).double(), 0.4, storage="compressed")
    dense = nn.Linear(5, 4).double()
    regrow.densify(sparse)
    dense.load_state_dict(sparse[0].state_dict())
    regrow.sparsify(sparse, 0.0, storage="compressed")
    found = []
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    for layer in (nn.Sequential(dense, nn.Tanh()), sparse):
        y = layer(x).sum()
        for _ in range(3):
            (derivative,) = torch.autograd.grad(y, x, create_graph=True)
            y = derivative.pow(2).sum()
        found.append(derivative)
    assert torch.allclose(found[1], found[0], 1e-9)


def test_a_topology_that_changed_between_the_two_passes_is_noticed() -> None:
    model = regrow.sparsify(nn.Sequential(nn.Linear(8, 8)), 0.5, storage="compressed")
    x = torch.randn(2, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(x).pow(2).sum(), x, create_graph=True)
    model[0].weight_crow.add_(0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradient.sum().backward()
