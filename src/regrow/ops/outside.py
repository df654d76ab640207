"""Whether a masked weight has values where it has no connection."""

from __future__ import annotations

import torch
from torch import Tensor

from regrow._torch import tracing_state, untraced
from regrow.ops.backends import OUTSIDE, use_kernel


def outside(values: Tensor, mask: Tensor) -> bool:
    """Return whether any of `values` is not zero where the boolean `mask` of its shape is False."""
    if tracing_state() is not None:
        # torch.jit.trace takes no operator that returns a bool, and warns of any decision
        with untraced():
            return outside(values, mask)
    if use_kernel(OUTSIDE, values, mask):
        return bool(torch.ops.regrow_native.outside.default(values, mask))
    return bool(values.masked_fill(mask, 0).any())
