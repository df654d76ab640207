"""Linear layers with a compressed weight on plain torch operators: what the kernels are checked against.

Runs on any device. A CSR product each way and `torch.sparse.sampled_addmm` for the gradient of the values; products
are accumulated in float32 or better.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from regrow.ops.csr import Csr

ROUND = 16
"""Batch elements that are stored together."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": torch.relu,
    "gelu": torch.nn.functional.gelu,
    "silu": torch.nn.functional.silu,
}
"""What can be fused to a layer, in the order of the kernels' numbers."""

THROUGH: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": lambda gradient, output: torch.ops.aten.threshold_backward.default(gradient, output, 0),
    "gelu": torch.ops.aten.gelu_backward.default,
    "silu": torch.ops.aten.silu_backward.default,
}
"""The gradient before an activation from that after it, and the output of a ReLU or the input of another."""


@cache
def _accept_beta() -> None:
    """Take the warning that CSR tensors are beta, which comes once, here, where it tells nobody anything."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 1], [0], [1.0], (1, 1), device="cpu")


def _matrix(crow: Tensor, col: Tensor, values: Tensor, columns: int) -> Tensor:
    """Make a `torch.sparse_csr` tensor [rows, columns] over the memory of its arguments; `values` is [nnz]."""
    _accept_beta()
    size = (len(crow) - 1, columns)
    return torch.sparse_csr_tensor(
        crow, col[: len(values)], values, size, check_invariants=False, device=values.device
    )


def _product(crow: Tensor, col: Tensor, values: Tensor, dense: Tensor) -> Tensor:
    """Multiply sparse [rows, columns] by dense [columns, batch], accumulated in float32 or better."""
    if len(values) == 0 or dense.shape[1] == 0:
        return dense.new_zeros(len(crow) - 1, dense.shape[1])
    exact = torch.promote_types(values.dtype, torch.float32)
    with torch.autocast(dense.device.type, enabled=False):
        return (_matrix(crow, col, values.to(exact), dense.shape[0]) @ dense.to(exact)).to(dense.dtype)


def stride_of(batch: int) -> int:
    """Return the distance of two features in an output: whole lines of the cache, but for small batches."""
    return batch if batch < ROUND else (batch + ROUND - 1) // ROUND * ROUND


def empty(like: Tensor, features: int) -> Tensor:
    """Allocate activations [..., features] with the leading dimensions of `like`, in the layout of outputs."""
    batch = like.shape[:-1].numel()
    laid_out = like.new_empty(features, stride_of(batch))[:, :batch].t()
    return laid_out.reshape(*like.shape[:-1], features)


def forward(
    input: Tensor, values: Tensor, bias: Tensor | None, index: Csr, activation: str, keep: bool
) -> tuple[Tensor, Tensor]:
    """Map an input [batch, columns] to [batch, rows], with what went into the activation, empty unless to `keep`."""
    product = _product(index.crow, index.col, values[: int(index.crow[-1]), 0], input.t())
    if bias is not None:
        product += bias[:, None]
    output = empty(input, len(index.crow) - 1).copy_(ACTIVATIONS[activation](product).t())
    return output, torch.empty_like(output).copy_(product.t()) if keep else input.new_empty(0)


def backward(
    gradient: Tensor,
    input: Tensor,
    kept: Tensor | None,
    values: Tensor,
    index: Csr,
    activation: str,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of input, values and bias, empty where `needs` is False."""
    if kept is not None:
        gradient = THROUGH[activation](gradient, kept)
    return (
        _input_gradient(gradient, input, values, index) if needs[0] else input.new_empty(0),
        _values_gradient(gradient, input, values, index) if needs[1] else values.new_empty(0),
        gradient.sum(0) if needs[2] else input.new_empty(0),
    )


def _input_gradient(gradient: Tensor, input: Tensor, values: Tensor, index: Csr) -> Tensor:
    nnz = int(index.crow_t[-1])
    mirrored = values[:nnz, 0].index_select(0, index.order[:nnz])
    found = _product(index.crow_t, index.row_t, mirrored, gradient.t())
    return empty(input, input.shape[1]).copy_(found.t())


def _values_gradient(gradient: Tensor, input: Tensor, values: Tensor, index: Csr) -> Tensor:
    nnz = int(index.crow[-1])
    values_gradient = torch.zeros_like(values)
    if nnz and len(input):
        exact = torch.promote_types(values.dtype, torch.float32)
        zeros = torch.zeros(nnz, dtype=exact, device=values.device)
        pattern = _matrix(index.crow, index.col, zeros, input.shape[1])
        sampled = torch.sparse.sampled_addmm(pattern, gradient.t().to(exact), input.to(exact), beta=0.0)
        values_gradient[:nnz, 0] = sampled.values()
    return values_gradient
