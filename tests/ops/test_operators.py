"""The operators as torch's own tools see them: torch.compile, FLOP counters, fused activations beside torch's."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from regrow import SparseLinear
from regrow._random import generator, sample
from regrow.ops.reference import ACTIVATIONS


def layer(activation: str, connections: int = 60, dtype: torch.dtype = torch.float64) -> SparseLinear:
    positions = sample(connections, 9 * 14, generator(0, "layer"))
    values = torch.randn(connections, generator=generator(0, "values"), dtype=dtype)
    return SparseLinear(14, 9, positions=positions, values=values, activation=activation)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("lead", [(20,), (2, 3)])
def test_compiled_without_a_graph_break(activation: str, lead: tuple[int, ...]) -> None:
    torch._dynamo.reset()
    sparse = layer(activation)
    compiled = torch.compile(sparse, fullgraph=True, backend="aot_eager")
    x = torch.randn(*lead, 14, dtype=torch.float64, requires_grad=True)
    leaves = [x, *sparse.parameters()]
    eager, traced = sparse(x), compiled(x)
    torch.testing.assert_close(traced, eager)
    assert traced.stride() == eager.stride()
    for found, expected in zip(
        torch.autograd.grad(traced.square().sum(), leaves),
        torch.autograd.grad(eager.square().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("input_needed", "products"), [(True, 3), (False, 2)])
def test_flops_are_two_for_each_connection_and_example(input_needed: bool, products: int) -> None:
    sparse = layer("relu")
    x = torch.randn(2, 10, 14, dtype=torch.float64, requires_grad=input_needed)
    with FlopCounterMode(display=False) as counter:
        sparse(x).sum().backward()
    assert counter.get_total_flops() == products * 2 * 60 * 20


@pytest.mark.parametrize("activation", ["gelu", "silu"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-7), (torch.float64, 1e-14)])
def test_activations_over_their_whole_range(activation: str, dtype: torch.dtype, tolerance: float) -> None:
    """One feature, passed on as it is; errors are relative to the larger of the result and 1."""
    sparse = SparseLinear(
        1, 1, False, positions=torch.tensor([0]), values=torch.ones(1, dtype=dtype), activation=activation
    )
    x = torch.cat([torch.linspace(-100, 100, 4001), torch.tensor([1e-30, -0.0, float("nan")])]).to(dtype)
    x = x[:, None].requires_grad_()
    exact = x.detach().double().requires_grad_()
    outputs = sparse(x), ACTIVATIONS[activation](exact)
    gradients = (torch.autograd.grad(y.sum(), t)[0] for y, t in zip(outputs, (x, exact), strict=True))
    for found, expected in (outputs, tuple(gradients)):
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def test_infinity() -> None:
    sparse = SparseLinear(1, 1, False, positions=torch.tensor([0]), values=torch.ones(1), activation="gelu")
    assert sparse(torch.tensor([[float("inf")]])).item() == float("inf")
