"""Linear layers with a compressed weight, as torch operators.

The reference on plain torch operators: a CSR product each way and `torch.sparse.sampled_addmm` for the
gradient of the values. Activations run in the layout (features, batch): outputs and input gradients have the
shape a dense layer gives them and the strides of a transposed matrix.

A weight of shape [rows, columns] is given by `values` [capacity, 1] with `crow` [rows + 1] and `col` [capacity]
(int32, CSR; entries past ``crow[-1]`` are padding) and its mirrored index: `crow_t` [columns + 1], `row_t`
[capacity] (CSR of the transpose) and `order` [capacity], the place in `values` of each mirrored entry.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor


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


def mirror(crow: Tensor, col: Tensor, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """The index of the transposed matrix: ``crow_t, row_t, order`` (int32), padded like `col`."""
    nnz = int(crow[-1])
    rows = torch.repeat_interleave(torch.arange(len(crow) - 1, device=crow.device), crow.diff())
    used = col[:nnz].long()
    by_column = used.argsort(stable=True)
    crow_t = torch.zeros(columns + 1, dtype=torch.int32, device=crow.device)
    crow_t[1:] = used.bincount(minlength=columns).cumsum(0)
    row_t, order = torch.zeros_like(col), torch.zeros_like(col)
    row_t[:nnz], order[:nnz] = rows[by_column].int(), by_column.int()
    return crow_t, row_t, order


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
) -> Tensor:
    """``input @ W.T + bias``: input [..., columns] -> [..., rows]; index as in the module's docstring."""
    nnz = int(crow[-1])
    output = _product(crow, col, values[:nnz, 0], input.reshape(-1, input.shape[-1]).t())
    if bias is not None:
        output += bias[:, None]
    return output.t().reshape(*input.shape[:-1], len(crow) - 1)


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
) -> Tensor:
    batch = input.shape[:-1].numel()
    return input.new_empty(len(crow) - 1, batch).t().reshape(*input.shape[:-1], len(crow) - 1)


@torch.library.custom_op("regrow::sparse_linear_backward", mutates_args=())
def sparse_linear_backward(
    gradient: Tensor,
    input: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    crow_t: Tensor,
    row_t: Tensor,
    order: Tensor,
    need_input: bool,
    need_values: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of the input [..., columns] and of the values [capacity, 1], empty where not needed.

    Registered from Python and opaque to compilers, so that it can hand its operands to a `Listener`.
    """
    nnz = int(crow[-1])
    rows, columns = len(crow) - 1, input.shape[-1]
    output_gradient, flat_input = gradient.reshape(-1, rows), input.reshape(-1, columns)
    listener = _listeners.get(crow.data_ptr())
    if need_values and listener is not None and listener.recording:
        # clones: inductor reuses the memory of both
        listener.pending.append(
            (torch._C._current_graph_task_id(), flat_input.clone(), output_gradient.clone())
        )
    values_gradient = torch.zeros_like(values) if need_values else values.new_empty(0)
    if need_values and nnz and len(flat_input):
        exact = torch.promote_types(values.dtype, torch.float32)
        pattern = csr(crow, col, torch.zeros(nnz, dtype=exact, device=values.device), columns)
        sampled = torch.sparse.sampled_addmm(
            pattern, output_gradient.t().to(exact), flat_input.to(exact), beta=0.0
        )
        values_gradient[:nnz, 0] = sampled.values()
    if not need_input:
        return input.new_empty(0), values_gradient
    mirrored = values[:nnz, 0].index_select(0, order[:nnz])
    input_gradient = _product(crow_t, row_t, mirrored, output_gradient.t())
    return input_gradient.t().reshape(input.shape), values_gradient


@sparse_linear_backward.register_fake
def _(
    gradient: Tensor,
    input: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    crow_t: Tensor,
    row_t: Tensor,
    order: Tensor,
    need_input: bool,
    need_values: bool,
) -> tuple[Tensor, Tensor]:
    values_gradient = torch.empty_like(values) if need_values else values.new_empty(0)
    if not need_input:
        return input.new_empty(0), values_gradient
    batch = input.shape[:-1].numel()
    return input.new_empty(input.shape[-1], batch).t().reshape(input.shape), values_gradient


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    input, values, bias, *index = inputs
    ctx.save_for_backward(input, values, *index)
    ctx.has_bias = bias is not None


def _backward(ctx, gradient: Tensor):  # type: ignore[no-untyped-def]
    input, values, *index = ctx.saved_tensors
    need_input, need_values, need_bias, *_ = ctx.needs_input_grad
    input_gradient, values_gradient = sparse_linear_backward(
        gradient, input, values, *index, need_input, need_values
    )
    return (
        input_gradient if need_input else None,
        values_gradient if need_values else None,
        gradient.reshape(-1, gradient.shape[-1]).sum(0) if ctx.has_bias and need_bias else None,
        *(None for _ in index),
    )


sparse_linear.register_autograd(_backward, setup_context=_save)
