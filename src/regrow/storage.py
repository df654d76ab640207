"""``storage="auto"``: which layers are faster compressed than masked on this device.

The limits were measured (docs/performance.md, "Which storage"): training of one layer, forward and backward, batch 128,
float32, against the same layer masked.
"""

from __future__ import annotations

from torch import nn

from regrow.layers import Layer, why_not_compressed
from regrow.ops import native
from regrow.weights.base import as_matrix

NARROWEST = 64
"""Rows and columns below which the calls around a kernel take longer than the product."""

DENSEST = ((1 << 16, 0.3), (1 << 18, 0.5))
"""Positions of a weight from which on compressed storage wins up to a density."""


def choose_storage(layer: Layer, model: nn.Module, density: float) -> tuple[str, str]:
    """Storage of a sparse layer of `model`, and why.

    Args:
        layer: a layer that is to be sparse.
        model: what it is part of.
        density: that it is to have.

    Returns:
        ``"compressed"`` or ``"masked"``, and the reason in words.
    """
    against = why_not_compressed(layer, model) or _why_no_kernel(layer) or _why_slower(layer, density)
    return ("masked", against) if against else ("compressed", "faster so on this device")


def _why_no_kernel(layer: Layer) -> str | None:
    device, dtype = layer.parameter.device, layer.parameter.dtype
    if device.type != "cpu":
        return f"the kernels run on the CPU, the weight is on {device}"
    if dtype not in native.DTYPES:
        return f"there are no kernels for {dtype}"
    return None if native.available() else f"there are no kernels: {native.load()}"


def _why_slower(layer: Layer, density: float) -> str | None:
    if isinstance(layer.module, nn.Conv2d):
        return "a convolution gains where its neighbours keep its layout: ask for storage='compressed'"
    rows, columns = as_matrix(layer.shape)
    limit = max((most for size, most in DENSEST if rows * columns >= size), default=0.0)
    if min(rows, columns) < NARROWEST or not limit:
        return "too small to be faster compressed"
    if density > limit:
        return f"faster masked at a density above {limit:g}"
    return None
