"""Linear layers with a compressed weight on plain torch operators: what the kernels are checked against.

Runs on any device. A CSR product each way and `torch.sparse.sampled_addmm` for the gradient of the values; products
are accumulated in float32 or better. What the index holds, `regrow.ops.linear` says.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

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
    """CSR tensors warn once that they are beta: take that warning here, where it tells nobody anything."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 1], [0], [1.0], (1, 1), device="cpu")


def csr(crow: Tensor, col: Tensor, values: Tensor, columns: int) -> Tensor:
    """A `torch.sparse_csr` tensor [rows, columns] over the memory of its arguments; `values` is [nnz]."""
    _accept_beta()
    size = (len(crow) - 1, columns)
    return torch.sparse_csr_tensor(
        crow, col[: len(values)], values, size, check_invariants=False, device=values.device
    )


def _product(crow: Tensor, col: Tensor, values: Tensor, dense: Tensor) -> Tensor:
    """Sparse [rows, columns] times dense [columns, batch], accumulated in float32 or better."""
    if len(values) == 0 or dense.shape[1] == 0:
        return dense.new_zeros(len(crow) - 1, dense.shape[1])
    exact = torch.promote_types(values.dtype, torch.float32)
    with torch.autocast(dense.device.type, enabled=False):
        return (csr(crow, col, values.to(exact), dense.shape[0]) @ dense.to(exact)).to(dense.dtype)


def stride_of(batch: int) -> int:
    """The distance of two features in an output: whole lines of the cache, but for small batches."""
    return batch if batch < ROUND else (batch + ROUND - 1) // ROUND * ROUND


def empty(like: Tensor, features: int) -> Tensor:
    """Uninitialised activations [..., features] with the leading dimensions of `like`, in the layout of outputs."""
    batch = like.shape[:-1].numel()
    laid_out = like.new_empty(features, stride_of(batch))[:, :batch].t()
    return laid_out.reshape(*like.shape[:-1], features)


def forward(
    input: Tensor,
    values: Tensor,
    bias: Tensor | None,
    crow: Tensor,
    col: Tensor,
    activation: str,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """Input [batch, columns] -> [batch, rows], and what went into the activation, empty unless to `keep`."""
    product = _product(crow, col, values[: int(crow[-1]), 0], input.t())
    if bias is not None:
        product += bias[:, None]
    output = empty(input, len(crow) - 1).copy_(ACTIVATIONS[activation](product).t())
    return output, torch.empty_like(output).copy_(product.t()) if keep else input.new_empty(0)


def backward(
    gradient: Tensor,
    input: Tensor,
    kept: Tensor | None,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    crow_t: Tensor,
    row_t: Tensor,
    order: Tensor,
    activation: str,
    need_input: bool,
    need_values: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of input, values and bias, empty where not needed."""
    if kept is not None:
        gradient = THROUGH[activation](gradient, kept)
    return (
        _input_gradient(gradient, input, values, crow_t, row_t, order) if need_input else input.new_empty(0),
        _values_gradient(gradient, input, values, crow, col) if need_values else values.new_empty(0),
        gradient.sum(0) if need_bias else input.new_empty(0),
    )


def _input_gradient(
    gradient: Tensor, input: Tensor, values: Tensor, crow_t: Tensor, row_t: Tensor, order: Tensor
) -> Tensor:
    nnz = int(crow_t[-1])
    mirrored = values[:nnz, 0].index_select(0, order[:nnz])
    return empty(input, input.shape[1]).copy_(_product(crow_t, row_t, mirrored, gradient.t()).t())


def _values_gradient(gradient: Tensor, input: Tensor, values: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    nnz = int(crow[-1])
    values_gradient = torch.zeros_like(values)
    if nnz and len(input):
        exact = torch.promote_types(values.dtype, torch.float32)
        pattern = csr(crow, col, torch.zeros(nnz, dtype=exact, device=values.device), input.shape[1])
        sampled = torch.sparse.sampled_addmm(pattern, gradient.t().to(exact), input.to(exact), beta=0.0)
        values_gradient[:nnz, 0] = sampled.values()
    return values_gradient
