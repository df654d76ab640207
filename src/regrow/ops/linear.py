"""Linear layers with a compressed weight, as torch operators.

Activations run in the layout (features, batch): outputs and input gradients have the shape that a dense layer gives
them, and the batch is innermost in memory, each feature beginning a line of the cache (`stride_of`). The kernels
(`regrow.ops.native`) do the work where there are some; elsewhere the reference on plain torch operators does, a CSR
product each way and `torch.sparse.sampled_addmm` for the gradient of the values.

A weight of shape [rows, columns] is given by `values` [capacity, 1] with `crow` [rows + 1] and `col` [capacity]
(int32, CSR; entries past ``crow[-1]`` are padding) and its mirrored index: `crow_t` [columns + 1], `row_t`
[capacity] (CSR of the transpose) and `order` [capacity], the place in `values` of each mirrored entry.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from regrow.ops import native

ROUND = 16
"""Batch elements that are stored together."""

ACTIVATIONS = ("none", "relu")
"""What can be fused to a layer."""


class Listener(Protocol):
    """Someone who wants the operands of backward passes, from which the dense gradient can be computed."""

    pending: list[tuple[int, Tensor, Tensor]]
    """Number of the running backward pass, input [batch, columns] and output gradient [batch, rows]."""

    @property
    def recording(self) -> bool:
        """Whether the backward pass that runs now is of interest."""


_listeners: WeakValueDictionary[int, Listener] = WeakValueDictionary()


def listen(crow: Tensor, listener: Listener) -> None:
    """Let `listener` have the operands of backward passes through the weight whose row pointers are `crow`."""
    _listeners[crow.data_ptr()] = listener


@cache
def _accept_beta() -> None:
    """CSR tensors warn once that they are beta: take that warning here, where it tells nobody anything."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 1], [0], [1.0], (1, 1))


def csr(crow: Tensor, col: Tensor, values: Tensor, columns: int) -> Tensor:
    """A `torch.sparse_csr` tensor [rows, columns] over the memory of its arguments; `values` is [nnz]."""
    _accept_beta()
    size = (len(crow) - 1, columns)
    return torch.sparse_csr_tensor(crow, col[: len(values)], values, size, check_invariants=False)


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


def _empty(like: Tensor, features: int) -> Tensor:
    """Uninitialised activations [..., features] with the leading dimensions of `like`, in the layout of outputs."""
    batch = like.shape[:-1].numel()
    laid_out = like.new_empty(features, stride_of(batch))[:, :batch].t()
    return laid_out.reshape(*like.shape[:-1], features)


def _flat(x: Tensor) -> Tensor:
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


def _forward(
    input: Tensor, values: Tensor, bias: Tensor | None, crow: Tensor, col: Tensor, activation: str
) -> Tensor:
    """Input [batch, columns] -> [batch, rows]."""
    if native.serves(values):
        output: Tensor = torch.ops.regrow_native.linear_forward.default(
            input, values, bias, crow, col, ACTIVATIONS.index(activation)
        )
        return output
    product = _product(crow, col, values[: int(crow[-1]), 0], input.t())
    if bias is not None:
        product += bias[:, None]
    if activation == "relu":
        product.relu_()
    return _empty(input, len(crow) - 1).copy_(product.t())


def _backward(
    gradient: Tensor,
    input: Tensor,
    output: Tensor | None,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    crow_t: Tensor,
    row_t: Tensor,
    order: Tensor,
    need_input: bool,
    need_values: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    listener = _listeners.get(crow.data_ptr())
    if need_values and listener is not None and listener.recording:
        before = gradient if output is None else _through_relu(gradient, output)
        # clones: inductor reuses the memory of both
        listener.pending.append((torch._C._current_graph_task_id(), input.clone(), before.clone()))
    if native.serves(values):
        found: tuple[Tensor, Tensor, Tensor] = torch.ops.regrow_native.linear_backward.default(
            gradient, input, output, values, crow_t, row_t, order, need_input, need_values, need_bias
        )
        return found
    if output is not None:
        gradient = _through_relu(gradient, output)
    return (
        _input_gradient(gradient, input, values, crow_t, row_t, order) if need_input else input.new_empty(0),
        _values_gradient(gradient, input, values, crow, col) if need_values else values.new_empty(0),
        gradient.sum(0) if need_bias else input.new_empty(0),
    )


def _through_relu(gradient: Tensor, output: Tensor) -> Tensor:
    return gradient.where(output > 0, 0)


def _input_gradient(
    gradient: Tensor, input: Tensor, values: Tensor, crow_t: Tensor, row_t: Tensor, order: Tensor
) -> Tensor:
    nnz = int(crow_t[-1])
    mirrored = values[:nnz, 0].index_select(0, order[:nnz])
    return _empty(input, input.shape[1]).copy_(_product(crow_t, row_t, mirrored, gradient.t()).t())


def _values_gradient(gradient: Tensor, input: Tensor, values: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    nnz = int(crow[-1])
    values_gradient = torch.zeros_like(values)
    if nnz and len(input):
        exact = torch.promote_types(values.dtype, torch.float32)
        pattern = csr(crow, col, torch.zeros(nnz, dtype=exact, device=values.device), input.shape[1])
        sampled = torch.sparse.sampled_addmm(pattern, gradient.t().to(exact), input.to(exact), beta=0.0)
        values_gradient[:nnz, 0] = sampled.values()
    return values_gradient


@torch.library.custom_op("regrow::sparse_linear", mutates_args=())
def sparse_linear(
    input: Tensor,
    values: Tensor,
    bias: Tensor | None,
    crow: Tensor,
    col: Tensor,
    crow_t: Tensor,
    row_t: Tensor,
    order: Tensor,
    activation: str = "none",
) -> Tensor:
    """``activation(input @ W.T + bias)``: input [..., columns] -> [..., rows]; index as in the module's docstring."""
    output = _forward(_flat(input), values, bias, crow, col, activation)
    return output.reshape(*input.shape[:-1], len(crow) - 1)


@sparse_linear.register_fake
def _(
    input: Tensor,
    values: Tensor,
    bias: Tensor | None,
    crow: Tensor,
    col: Tensor,
    crow_t: Tensor,
    row_t: Tensor,
    order: Tensor,
    activation: str = "none",
) -> Tensor:
    return _empty(input, len(crow) - 1)


@torch.library.custom_op("regrow::sparse_linear_backward", mutates_args=())
def sparse_linear_backward(
    gradient: Tensor,
    input: Tensor,
    output: Tensor | None,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    crow_t: Tensor,
    row_t: Tensor,
    order: Tensor,
    need_input: bool,
    need_values: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of input [..., columns], values [capacity, 1] and bias [rows], empty where not needed.

    `output` is that of a fused ReLU. Opaque to compilers, so that it can hand its operands to a `Listener`.
    """
    index = (crow, col, crow_t, row_t, order)
    flat_output = None if output is None else _flat(output)
    input_gradient, *rest = _backward(
        _flat(gradient), _flat(input), flat_output, values, *index, need_input, need_values, need_bias
    )
    return (input_gradient.reshape(input.shape) if need_input else input_gradient, *rest)  # type: ignore[return-value]


@sparse_linear_backward.register_fake
def _(
    gradient: Tensor,
    input: Tensor,
    output: Tensor | None,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    crow_t: Tensor,
    row_t: Tensor,
    order: Tensor,
    need_input: bool,
    need_values: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        _empty(input, input.shape[-1]) if need_input else input.new_empty(0),
        torch.empty_like(values) if need_values else values.new_empty(0),
        input.new_empty(gradient.shape[-1] if need_bias else 0),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, values, bias, *index, activation = inputs
    ctx.save_for_backward(input, output if activation == "relu" else None, values, *index)
    ctx.has_bias = bias is not None


def _gradients(ctx: Any, gradient: Tensor, run: Any = sparse_linear_backward) -> tuple[Tensor | None, ...]:
    need_input, need_values, need_bias, *_ = ctx.needs_input_grad
    need_bias = need_bias and ctx.has_bias
    found = run(gradient, *ctx.saved_tensors, need_input, need_values, need_bias)
    needed = (need_input, need_values, need_bias)
    return (*(g if need else None for g, need in zip(found, needed, strict=True)), *[None] * 6)


sparse_linear.register_autograd(_gradients, setup_context=_save)


class _Direct(torch.autograd.Function):
    """`sparse_linear` on an input [batch, columns], with less on the way to the kernels."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        input, values, bias, crow, col, _, _, _, activation = inputs
        if ctx.needs_input_grad[1] and not is_laid_out(input):
            input = torch.ops.regrow_native.lay_out.default(input)  # once for both passes
        output = _forward(input, values, bias, crow, col, activation)
        _save(ctx, (input, *inputs[1:]), output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, gradients[0], _backward)


def is_laid_out(input: Tensor) -> bool:
    """Whether the kernels read an input [batch, columns] where it is."""
    return (input.stride(0) == 1 and input.stride(1) % ROUND == 0) or input.dtype == torch.bfloat16


def linear(
    input: Tensor,
    values: Tensor,
    bias: Tensor | None,
    crow: Tensor,
    col: Tensor,
    crow_t: Tensor,
    row_t: Tensor,
    order: Tensor,
    activation: str = "none",
) -> Tensor:
    """`sparse_linear`, by the shortest way: dispatching an operator of Python's takes longer than a small layer."""
    arguments = (values, bias, crow, col, crow_t, row_t, order, activation)
    if torch.compiler.is_compiling() or not native.serves(values):
        output: Tensor = sparse_linear(input, *arguments)
        return output
    flat: Tensor = _Direct.apply(_flat(input), *arguments)  # type: ignore[no-untyped-call]
    return flat if input.dim() == 2 else flat.reshape(*input.shape[:-1], len(crow) - 1)
