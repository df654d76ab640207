"""What the operators refuse: operands that do not fit a compressed weight."""

from __future__ import annotations

import torch
from torch import Tensor

from regrow.errors import RegrowRuntimeError
from regrow.ops.csr import Csr


def check_weight(input: Tensor, values: Tensor, bias: Tensor | None, index: Csr) -> None:
    """Refuse operands whose shapes or types do not fit in a layer of any kind; the index's maker checks its content.

    Raises:
        RegrowRuntimeError: naming the operand, what it is and what is allowed.
    """
    if values.dim() != 2 or values.shape[1] != 1 or not values.is_floating_point():
        raise RegrowRuntimeError(
            f"`values` must be floating point of shape [capacity, 1], got {values.dtype} of {tuple(values.shape)}"
        )
    if input.dtype != values.dtype:
        raise RegrowRuntimeError(f"`input` must be of the weight's dtype {values.dtype}, got {input.dtype}")
    if bias is not None:
        rows = len(index.crow) - 1
        if bias.shape != (rows,):
            raise RegrowRuntimeError(f"`bias` must have shape ({rows},), got {tuple(bias.shape)}")
        if bias.dtype != values.dtype:
            raise RegrowRuntimeError(f"`bias` must be of the weight's dtype {values.dtype}, got {bias.dtype}")
    capacity = len(values)
    operands = (input, bias, *index)
    for name, part in zip(("input", "bias", *Csr._fields), operands, strict=True):
        if part is not None and part.device != values.device:
            raise RegrowRuntimeError(
                f"`{name}` must be on the weight's device {values.device}, got {part.device}"
            )
    for name, part in (("col", index.col), ("row_t", index.row_t), ("order", index.order)):
        if part.shape != (capacity,) or part.dtype != torch.int32:
            raise RegrowRuntimeError(
                f"`{name}` must be int32 of shape ({capacity},), got {part.dtype} of {tuple(part.shape)}"
            )
    for name, part in (("crow", index.crow), ("crow_t", index.crow_t)):
        if part.dim() != 1 or len(part) == 0 or part.dtype != torch.int32:
            raise RegrowRuntimeError(
                f"`{name}` must be an int32 vector, got {part.dtype} of {tuple(part.shape)}"
            )
