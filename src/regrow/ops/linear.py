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

import math
from typing import Any

import torch
from torch import Tensor

from regrow._torch import apply, dispatch_modes
from regrow.errors import RegrowRuntimeError, RegrowValueError
from regrow.ops import flops, reference, twice
from regrow.ops.backends import LINEAR, use_kernel
from regrow.ops.listener import settle, tell
from regrow.ops.products import Products
from regrow.ops.reference import ACTIVATIONS, ROUND, THROUGH


def _flat(x: Tensor) -> Tensor:
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


_NUMBERS = {activation: number for number, activation in enumerate(ACTIVATIONS)}
"""What the kernels call them."""


def _keeps_input(activation: str) -> bool:
    """Whether the backward pass needs what went into the activation; that of a ReLU needs its output."""
    return activation not in ("none", "relu")


def _forward(
    input: Tensor,
    values: Tensor,
    bias: Tensor | None,
    crow: Tensor,
    col: Tensor,
    activation: str,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """Input [batch, columns] -> [batch, rows], and what went into the activation, empty unless to `keep`."""
    if use_kernel(LINEAR, values):
        found: tuple[Tensor, Tensor] = torch.ops.regrow_native.linear_forward.default(
            input, values, bias, crow, col, _NUMBERS[activation], keep
        )
        return found
    return reference.forward(input, values, bias, crow, col, activation, keep)


def _backward(
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
    if need_values:
        tell(crow, lambda: _products(gradient, input, kept, activation))
    if use_kernel(LINEAR, values):
        found: tuple[Tensor, Tensor, Tensor] = torch.ops.regrow_native.linear_backward.default(
            gradient,
            input,
            kept,
            values,
            crow_t,
            row_t,
            order,
            _NUMBERS[activation],
            need_input,
            need_values,
            need_bias,
        )
        return found
    return reference.backward(
        gradient,
        input,
        kept,
        values,
        crow,
        col,
        crow_t,
        row_t,
        order,
        activation,
        need_input,
        need_values,
        need_bias,
    )


def _differentiable_gradients(
    gradient: Tensor,
    input: Tensor,
    output: Tensor | None,
    values: Tensor,
    bias: Tensor | None,
    index: tuple[Tensor, ...],
    activation: str,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, ...]:
    """What `_backward` finds, to be differentiated again; `output` is wanted of a ReLU."""
    flops.count_linear_kernels()
    crow, col, crow_t, row_t, order = index

    def back(gradient: Tensor, input: Tensor, values: Tensor, *needs: bool) -> tuple[Tensor, Tensor, Tensor]:
        rest = (values, crow, col, crow_t, row_t, order, "none", *needs)
        return _backward(gradient, input, None, *rest)  # type: ignore[arg-type]

    layer = twice.Bilinear(
        lambda x, v: _forward(x, v, None, crow, col, "none", False)[0],
        lambda g, v: back(g, input.detach(), v, True, False, False)[0],
        lambda g, x: back(g, x, values.detach(), False, True, False)[1],
        index,
    )
    if _keeps_input(activation):
        before = twice.output(layer, input, values)
        before = before if bias is None else before + bias
        (gradient,) = twice.gradients_of(ACTIVATIONS[activation], [before], gradient)
    elif output is not None:
        gradient = THROUGH[activation](gradient, output)
    return (
        twice.of_input(layer, gradient, values) if needs[0] else None,
        twice.of_values(layer, gradient, input) if needs[1] else None,
        gradient.sum(0) if needs[2] else None,
    )


def _products(gradient: Tensor, input: Tensor, kept: Tensor | None, activation: str) -> Products:
    before = gradient.clone() if kept is None else THROUGH[activation](gradient, kept)
    return Products(input.clone(), before)


def _check(
    input: Tensor,
    values: Tensor,
    bias: Tensor | None,
    crow: Tensor,
    col: Tensor,
    crow_t: Tensor,
    row_t: Tensor,
    order: Tensor,
    activation: str,
) -> None:
    """Refuse operands whose shapes or types do not fit; what the index holds, its maker has checked.

    Raises:
        RegrowRuntimeError: naming the operand, what it is and what is allowed.
    """
    columns = len(crow_t) - 1
    if input.dim() == 0 or input.shape[-1] != columns:
        raise RegrowRuntimeError(
            f"`input` must have {columns} as its last dimension, got shape {tuple(input.shape)}"
        )
    check_weight(input, values, bias, crow, col, crow_t, row_t, order)
    if activation not in ACTIVATIONS:
        raise RegrowValueError(f"`activation` must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")


def check_weight(
    input: Tensor,
    values: Tensor,
    bias: Tensor | None,
    crow: Tensor,
    col: Tensor,
    crow_t: Tensor,
    row_t: Tensor,
    order: Tensor,
) -> None:
    """Refuse what does not fit in a layer of any kind; raises as `_check` does."""
    if values.dim() != 2 or values.shape[1] != 1 or not values.is_floating_point():
        raise RegrowRuntimeError(
            f"`values` must be floating point of shape [capacity, 1], got {values.dtype} of {tuple(values.shape)}"
        )
    if input.dtype != values.dtype:
        raise RegrowRuntimeError(f"`input` must be of the weight's dtype {values.dtype}, got {input.dtype}")
    if bias is not None and bias.shape != (len(crow) - 1,):
        raise RegrowRuntimeError(f"`bias` must have shape ({len(crow) - 1},), got {tuple(bias.shape)}")
    if bias is not None and bias.dtype != values.dtype:
        raise RegrowRuntimeError(f"`bias` must be of the weight's dtype {values.dtype}, got {bias.dtype}")
    parts = {"bias": bias, "crow": crow, "col": col, "crow_t": crow_t, "row_t": row_t, "order": order}
    for name, part in {"input": input, **parts}.items():
        if part is not None and part.device != values.device:
            raise RegrowRuntimeError(
                f"`{name}` must be on the weight's device {values.device}, got {part.device}"
            )
    for name, part in (("col", col), ("row_t", row_t), ("order", order)):
        if part.shape != (len(values),) or part.dtype != torch.int32:
            raise RegrowRuntimeError(
                f"`{name}` must be int32 of shape ({len(values)},), got {part.dtype} of {tuple(part.shape)}"
            )
    for name, part in (("crow", crow), ("crow_t", crow_t)):
        if part.dim() != 1 or len(part) == 0 or part.dtype != torch.int32:
            raise RegrowRuntimeError(
                f"`{name}` must be an int32 vector, got {part.dtype} of {tuple(part.shape)}"
            )


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
) -> tuple[Tensor, Tensor]:
    """``activation(input @ W.T + bias)``: input [..., columns] -> [..., rows]; index as in the module's docstring.

    Returns also what went into the activation, [..., rows], where its backward pass needs that (GELU, SiLU; not
    differentiable), else an empty tensor.
    """
    settle(crow)
    _check(input, values, bias, crow, col, crow_t, row_t, order, activation)
    keep = _keeps_input(activation)
    output, kept = _forward(_flat(input), values, bias, crow, col, activation, keep)
    shape = (*input.shape[:-1], len(crow) - 1)
    return output.reshape(shape), kept.reshape(shape) if keep else kept


def _symbolic(like: Tensor, features: int) -> Tensor:
    """`empty` for a compiler: nothing is asked about the batch that would hold for some batches only."""
    *lead, _ = like.shape
    strides = [math.prod(lead[i + 1 :]) for i in range(len(lead))]
    batch = math.prod(lead)
    lines = (batch + ROUND - 1) // ROUND * ROUND
    return like.new_empty_strided((*lead, features), (*strides, torch.sym_ite(batch < ROUND, batch, lines)))


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
) -> tuple[Tensor, Tensor]:
    _check(input, values, bias, crow, col, crow_t, row_t, order, activation)
    rows = len(crow) - 1
    return _symbolic(input, rows), _symbolic(input, rows) if _keeps_input(activation) else input.new_empty(0)


@torch.library.custom_op("regrow::sparse_linear_backward", mutates_args=())
def sparse_linear_backward(
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
    """Gradients of input [..., columns], values [capacity, 1] and bias [rows], empty where not needed.

    `kept` is the output of a fused ReLU, or what went into another activation. Opaque to compilers, so that it can hand
    its operands to a listener.
    """
    _check(input, values, None, crow, col, crow_t, row_t, order, activation)
    index = (crow, col, crow_t, row_t, order)
    flat_kept = None if kept is None else _flat(kept)
    needs = (need_input, need_values, need_bias)
    input_gradient, *rest = _backward(
        _flat(gradient), _flat(input), flat_kept, values, *index, activation, *needs
    )
    return (input_gradient.reshape(input.shape) if need_input else input_gradient, *rest)  # type: ignore[return-value]


@sparse_linear_backward.register_fake
def _(
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
    return (
        _symbolic(input, input.shape[-1]) if need_input else input.new_empty(0),
        torch.empty_like(values) if need_values else values.new_empty(0),
        input.new_empty(gradient.shape[-1] if need_bias else 0),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, values, bias, *index, activation = inputs
    result, before = output
    ctx.mark_non_differentiable(before)
    kept = before if _keeps_input(activation) else result if activation == "relu" else None
    ctx.save_for_backward(input, kept, values, *index, bias)
    ctx.activation = activation


def _gradients(ctx: Any, gradient: Tensor, _before: Tensor | None) -> tuple[Tensor | None, ...]:
    input, kept, values, *index, bias = ctx.saved_tensors
    need_input, need_values, need_bias, *_ = ctx.needs_input_grad
    needed = (need_input, need_values, need_bias and bias is not None)
    if torch.is_grad_enabled():
        flat = (_flat(gradient), _flat(input), None if kept is None else _flat(kept))
        again = _differentiable_gradients(*flat, values, bias, tuple(index), ctx.activation, needed)
        of_input = None if again[0] is None else again[0].reshape(input.shape)
        return (of_input, *again[1:], *[None] * 6)
    found = sparse_linear_backward(gradient, input, kept, values, *index, ctx.activation, *needed)
    return (*(g if need else None for g, need in zip(found, needed, strict=True)), *[None] * 6)


sparse_linear.register_autograd(_gradients, setup_context=_save)


flops.count_linear_operators()


class _Direct(torch.autograd.Function):
    """`sparse_linear` by the kernels on an input [batch, columns], with less on the way to them.

    The index comes as one argument; saved is `crow` alone, by which autograd sees that the topology has changed. For
    the others it would take four times as long as to look at their versions here.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        values: Tensor,
        bias: Tensor | None,
        index: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
        activation: str,
    ) -> Tensor:
        needed = any(ctx.needs_input_grad)
        keep = _keeps_input(activation) and needed
        output, before = _forward(input, values, bias, index[0], index[1], activation, keep)
        kept = before if keep else output if activation == "relu" else None
        ctx.save_for_backward(input, kept, values, index[0], bias if keep else None)
        ctx.index, ctx.activation = index, activation
        ctx.written = _written(index) if needed else 0
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        need_input, need_values, need_bias, *_ = ctx.needs_input_grad
        input, kept, values, crow, bias = ctx.saved_tensors
        if _written(ctx.index) != ctx.written:
            raise RegrowRuntimeError(
                "the index of a compressed weight was overwritten between the forward and the backward pass.\n"
                "Call backward before anything writes to weight_col, weight_crow_t, weight_row_t or weight_order."
            )
        if torch.is_grad_enabled():
            needs = (need_input, need_values, need_bias)
            again = _differentiable_gradients(
                gradient, input, kept, values, bias, ctx.index, ctx.activation, needs
            )
            return (*again, None, None)
        _, col, crow_t, row_t, order = ctx.index
        of_input, of_values, of_bias = _backward(
            gradient,
            input,
            kept,
            values,
            crow,
            col,
            crow_t,
            row_t,
            order,
            ctx.activation,
            need_input,
            need_values,
            need_bias,
        )
        return (
            of_input if need_input else None,
            of_values if need_values else None,
            of_bias if need_bias else None,
            None,
            None,
        )


def _written(index: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]) -> int:
    """Count how often columns and mirrored index have been written to."""
    _, col, crow_t, row_t, order = index
    return col._version + crow_t._version + row_t._version + order._version


class _LaidOut(torch.autograd.Function):
    """An input [batch, columns] as the kernels read it: once for both passes of the layer."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        found: Tensor = torch.ops.regrow_native.lay_out.default(input)
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


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
    index = (crow, col, crow_t, row_t, order)
    watched = torch.compiler.is_compiling() or dispatch_modes() > 0
    if watched or not use_kernel(LINEAR, values):
        output: Tensor = sparse_linear(input, values, bias, *index, activation)[0]
        # where the batch is innermost, a program that is exported for any batch could not be run on one of 1
        return output.contiguous() if torch.compiler.is_exporting() else output
    flat = _flat(input)
    if values.requires_grad and not is_laid_out(flat):
        flat = apply(_LaidOut, flat) if flat.requires_grad else torch.ops.regrow_native.lay_out.default(flat)
    found: Tensor = apply(_Direct, flat, values, bias, index, activation)
    return found if input.dim() == 2 else found.reshape(*input.shape[:-1], len(crow) - 1)
