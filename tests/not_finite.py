"""Tensors with inf and nan in some places, for hypothesis to draw."""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st
from torch import Tensor

STRANGE = (math.nan, math.inf, -math.inf)

places = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from(STRANGE)), max_size=3)
"""Where in a tensor, as a share of its length, and what."""


def with_strange(tensor: Tensor, drawn: list[tuple[float, float]]) -> Tensor:
    """A copy with what `places` has drawn."""
    changed = tensor.clone()
    for share, value in drawn if tensor.numel() else ():
        changed.view(-1)[int(share * tensor.numel())] = value
    return changed


def assert_same(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """The same nan and the same infinities in the same places, and all else close."""
    torch.testing.assert_close(
        found.double(), expected.double(), rtol=tolerance, atol=tolerance, equal_nan=True
    )
