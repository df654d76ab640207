"""The table of batch tiles: for each operation that does not leave them, its handler.

A handler is called with the operation's own arguments, and returns NotImplemented for those it cannot serve. What has
no row, and what its handler refuses, runs on plain tensors (`regrow.tiles.tensor`); pointwise operators below autograd
run on the buffers without a row.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from regrow.tiles.functions import attributes, named
from regrow.tiles.handlers import (
    alias,
    clone,
    contiguous,
    copy,
    dropout,
    element_wise,
    relu,
    sum_all,
    zeros_like,
)
from regrow.tiles.norm import batch_norm
from regrow.tiles.pool import adaptive_avg_pool2d, avg_pool2d, max_pool2d, mean
from regrow.tiles.sums import add, add_
from regrow.tiles.tensor import BatchTiles, Handler, unchanged

aten = torch.ops.aten


def _each(handler: Handler, functions: Iterable[Any]) -> dict[Any, Handler]:
    """Make a row for each of `functions`; `handler` is told which one it answers."""
    return {func: partial(handler, func) for func in functions}


FUNCTIONS: dict[Any, Handler] = {
    # f(0) = 0: on whole buffers
    **_each(
        element_wise,
        named(
            "relu neg negative abs add sub subtract mul multiply div divide true_divide leaky_relu elu gelu silu tanh "
            "hardtanh relu6 clone __add__ __radd__ __iadd__ __sub__ __rsub__ __isub__ __mul__ __rmul__ __imul__ "
            "__truediv__ __itruediv__ __neg__ __abs__ positive __pos__ zeros_like copy"
        ),
    ),
    # of these, what a layer before may have done already, or can do with its own work
    **_each(relu, (F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)),
    **_each(add, (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__)),
    **_each(add_, (Tensor.add_, Tensor.__iadd__)),
    # questions about a tensor, and autograd's own
    **_each(unchanged, attributes()),
    **_each(
        unchanged,
        named(
            "size dim ndimension numel nelement stride is_contiguous storage_offset element_size get_device __len__ "
            "__hash__ is_floating_point is_complex is_signed is_inference is_same_size requires_grad register_hook "
            "register_post_accumulate_grad_hook retain_grad backward detach"
        ),
    ),
    **_each(unchanged, (torch.autograd.backward, torch.autograd.grad)),
    # an operation of their own in this layout
    F.batch_norm: batch_norm,
    F.max_pool2d: max_pool2d,
    torch.max_pool2d: max_pool2d,
    F.avg_pool2d: avg_pool2d,
    F.adaptive_avg_pool2d: adaptive_avg_pool2d,
    torch.mean: mean,
    Tensor.mean: mean,
    F.dropout: dropout,
    Tensor.contiguous: contiguous,
}
"""Public functions, as `__torch_function__` sees them."""

OPERATORS: dict[Any, Handler] = {
    aten.copy_.default: copy,
    aten.detach.default: alias,
    aten.alias.default: alias,
    aten.view.default: alias,
    aten.expand.default: alias,
    aten.clone.default: clone,
    aten.zeros_like.default: zeros_like,
    aten.sum.default: sum_all,
}
"""Operators below autograd, as `__torch_dispatch__` sees them."""

# the class cannot import what makes instances of it
BatchTiles.functions, BatchTiles.operators = FUNCTIONS, OPERATORS
