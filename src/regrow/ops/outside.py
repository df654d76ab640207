"""Whether a masked weight has values where it has no connection."""

from __future__ import annotations

import torch
from torch import Tensor

from regrow.ops import native


def outside(values: Tensor, mask: Tensor) -> bool:
    """Whether any of `values` is not zero where the boolean `mask` of its shape is False."""
    if (
        values.is_cpu
        and values.dtype in native.DTYPES
        and values.stride() == mask.stride()
        and native.available()
    ):
        return bool(torch.ops.regrow_native.outside.default(values, mask))
    return bool(values.masked_fill(mask, 0).any())
