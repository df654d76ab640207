"""Whether a masked weight has values where it has no connection."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C import _set_tracing_state  # type: ignore[attr-defined]

from regrow.ops.backends import OUTSIDE, use_kernel


def outside(values: Tensor, mask: Tensor) -> bool:
    """Whether any of `values` is not zero where the boolean `mask` of its shape is False."""
    tracing: Any = torch._C._get_tracing_state()
    if tracing is not None:
        # torch.jit.trace takes no operator that returns a bool, and warns of any decision
        _set_tracing_state(None)
        try:
            return outside(values, mask)
        finally:
            _set_tracing_state(tracing)
    if use_kernel(OUTSIDE, values, mask):
        return bool(torch.ops.regrow_native.outside.default(values, mask))
    return bool(values.masked_fill(mask, 0).any())
