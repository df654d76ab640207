"""The compressed linear layer against a dense float64 reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from machine import threads
from torch import Tensor, nn

from regrow import SparseLinear
from regrow._random import generator, sample
from regrow.errors import RegrowRuntimeError, RegrowValueError
from regrow.ops.linear import sparse_linear


def layer(rows: int, columns: int, nnz: int, bias: bool, dtype: torch.dtype, seed: int = 0) -> SparseLinear:
    positions = sample(nnz, rows * columns, generator(seed, "layer"))
    values = torch.randn(nnz, generator=generator(seed, "values"), dtype=torch.float64).to(dtype)
    sparse = SparseLinear(columns, rows, bias, positions=positions, values=values)
    if sparse.bias is not None:
        nn.init.normal_(sparse.bias, generator=generator(seed, "bias"))
    return sparse


def dense_weight(sparse: SparseLinear) -> Tensor:
    weight = torch.zeros(sparse.out_features * sparse.in_features, dtype=torch.float64)
    crow = sparse.weight_crow.long()
    rows = torch.repeat_interleave(torch.arange(sparse.out_features), crow.diff())
    positions = rows * sparse.in_features + sparse.weight_col.long()[: len(rows)]
    weight[positions] = sparse.weight_values.detach().double()[: len(rows), 0]
    return weight.view(sparse.out_features, sparse.in_features)


shapes = st.tuples(st.integers(1, 40), st.integers(1, 40))
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 0.15}


@settings(deadline=None, max_examples=80)
@given(
    shape=shapes,
    density=st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0]),
    lead=st.sampled_from([(), (1,), (5,), (33,), (2, 3), (0,)]),
    bias=st.booleans(),
    dtype=st.sampled_from(list(TOLERANCE)),
    layout=st.sampled_from(["torch", "batch innermost", "strided"]),
    seed=st.integers(0, 10**6),
)
def test_forward_and_backward(
    shape: tuple[int, int],
    density: float,
    lead: tuple[int, ...],
    bias: bool,
    dtype: torch.dtype,
    layout: str,
    seed: int,
) -> None:
    rows, columns = shape
    sparse = layer(rows, columns, int(density * rows * columns), bias, dtype, seed)
    x = torch.randn(*lead, columns, generator=generator(seed, "x"), dtype=torch.float64).to(dtype)
    if layout == "batch innermost":
        x = x.reshape(-1, columns).t().contiguous().t().reshape(x.shape)
    elif layout == "strided":
        x = torch.stack([x, x], -1)[..., 0]
    x.requires_grad_()
    gradient = torch.randn(*lead, rows, generator=generator(seed, "g"), dtype=torch.float64).to(dtype)

    output = sparse(x)
    output.backward(gradient)

    weight = dense_weight(sparse).requires_grad_()
    reference_bias = None if sparse.bias is None else sparse.bias.detach().double().requires_grad_()
    reference_x = x.detach().double().requires_grad_()
    reference = nn.functional.linear(reference_x, weight, reference_bias)
    reference.backward(gradient.double())

    def close(found: Tensor, expected: Tensor) -> None:
        scale = 1 + columns**0.5 + rows**0.5
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=TOLERANCE[dtype] * scale)

    assert output.shape == reference.shape
    close(output, reference)
    assert x.grad is not None
    assert reference_x.grad is not None
    close(x.grad, reference_x.grad)
    assert weight.grad is not None
    active = weight.grad.view(-1)[
        sample(len(sparse.weight.values()), rows * columns, generator(seed, "layer"))
    ]
    assert sparse.weight_values.grad is not None
    close(sparse.weight_values.grad[: len(active), 0], active)
    if sparse.bias is not None:
        assert sparse.bias.grad is not None
        assert reference_bias is not None
        assert reference_bias.grad is not None
        close(sparse.bias.grad, reference_bias.grad)


@pytest.mark.parametrize("bias", [True, False])
def test_gradcheck(bias: bool) -> None:
    sparse = layer(7, 9, 20, bias, torch.float64)
    x = torch.randn(3, 2, 9, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, values: Tensor, b: Tensor | None) -> Tensor:
        result: Tensor = sparse_linear(x, values, b, *sparse._index)[0]
        return result

    assert torch.autograd.gradcheck(function, (x, sparse.weight_values, sparse.bias))


@pytest.mark.parametrize("lead", [(4,), (2, 3)])
def test_opcheck(lead: tuple[int, ...]) -> None:
    sparse = layer(7, 9, 20, True, torch.float32)
    x = torch.randn(*lead, 9, requires_grad=True)
    torch.library.opcheck(sparse_linear, (x, sparse.weight_values, sparse.bias, *sparse._index))


def test_the_batch_is_innermost() -> None:
    sparse = layer(7, 9, 20, True, torch.float32)
    x = torch.randn(16, 9, requires_grad=True)
    y = sparse(x)
    assert y.stride() == (1, 16)
    gradient = torch.autograd.grad(y.sum(), x)[0]
    assert gradient.stride() == (1, 16)


def test_padding_stays_zero_and_is_not_used() -> None:
    full = layer(5, 6, 10, False, torch.float64)
    weight = next(iter(__import__("regrow").weights.sparse_weights(sparsified(full))))
    weight.update(torch.tensor([0, 3, 9]), torch.tensor([], dtype=torch.int64))
    assert weight.nnz == 7
    x = torch.randn(4, 6, dtype=torch.float64)
    torch.testing.assert_close(full(x), x @ weight.to_dense().t())
    full(x).sum().backward()
    assert full.weight_values.grad is not None
    assert not full.weight_values.grad[7:].any()
    assert full.weight.values().shape == (7,)


def sparsified(module: SparseLinear) -> nn.Module:
    """A model whose one layer is `module`, known to regrow as `sparsify` leaves it."""
    from regrow.weights import Record
    from regrow.weights.attach import attach

    shape = (module.out_features, module.in_features)
    attach(module, "weight", Record("weight", shape, 1.0, "compressed"))
    return nn.Sequential(module)


def test_weight_shows_the_dense_one() -> None:
    sparse = layer(7, 9, 20, True, torch.float32)
    weight = sparse.weight
    assert (weight.shape, weight.dtype) == ((7, 9), torch.float32)
    assert weight.values().data_ptr() == sparse.weight_values.data_ptr()
    with pytest.raises(RegrowRuntimeError, match="`weight` of a layer in compressed storage is read-only"):
        sparse.weight = torch.zeros(7, 9)  # type: ignore[misc]
    assert "connections=20" in repr(sparse)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, 8), r"`input` must have 9 as its last dimension, got shape \(3, 8\)"),
        (
            torch.zeros(3, 9, dtype=torch.float64),
            r"`input` must be of the weight's dtype torch.float32, got torch.fl",
        ),
    ],
)
def test_input_that_does_not_fit(x: Tensor, message: str) -> None:
    with pytest.raises(RegrowRuntimeError, match=message):
        layer(7, 9, 20, True, torch.float32)(x)


def test_sizes_beyond_the_limit() -> None:
    empty = torch.empty(0, dtype=torch.int64)
    with pytest.raises(RegrowValueError, match=r"`out_features` must be in \[1, 2\^31 - 1\], got 2147483648"):
        SparseLinear(4, 2**31, positions=empty, values=empty.float())


def test_autocast_computes_in_bfloat16() -> None:
    sparse = layer(7, 9, 20, True, torch.float32)
    x = torch.randn(4, 9)
    with torch.autocast("cpu", torch.bfloat16):
        y = sparse(x)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert sparse.weight_values.grad is not None
    assert sparse.weight_values.grad.dtype == torch.float32


def test_the_number_of_threads_changes_nothing() -> None:
    sparse = layer(300, 500, 15_000, True, torch.float32)
    x = torch.randn(64, 500, requires_grad=True)
    results = []
    for number in (1, 2):
        with threads(number):
            y = sparse(x)
            results.append((y, *torch.autograd.grad(y.square().sum(), [x, sparse.weight_values])))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)
