"""``storage="auto"``: which layers are faster compressed than masked on this device.

The limits were measured (docs/performance.md, "Which storage"): training of one layer, forward and backward, float32,
against the same layer masked or dense. A convolution is measured between layers of its kind, which hand it activations
in batch tiles: that is how `sparsify` leaves a network.
"""

from __future__ import annotations

from torch import nn

from regrow.layers import Layer, why_not_compressed
from regrow.nn import SparseConv2d
from regrow.ops import native
from regrow.weights.base import as_matrix

NARROWEST = 64
"""Rows and columns below which the calls around a kernel take longer than the product."""

DENSEST = ((1 << 16, 0.3), (1 << 18, 0.5))
"""Positions of a weight from which on compressed storage wins up to a density."""

NARROWEST_CONVOLUTION = 16
"""Channels on either side below which that holds for convolutions."""

DENSEST_CONVOLUTION = 0.5
"""Density up to which a convolution is faster compressed."""


def choose_storage(layer: Layer, model: nn.Module, density: float) -> tuple[str, str]:
    """Storage of a sparse layer of `model`, and why.

    Args:
        layer: a layer that is to be sparse.
        model: what it is part of.
        density: that it is to have.

    Returns:
        ``"compressed"`` or ``"masked"``, and the reason in words.
    """
    slower = _why_slower_convolution if isinstance(layer.module, nn.Conv2d) else _why_slower
    against = why_not_compressed(layer, model) or _why_no_kernel(layer) or slower(layer, model, density)
    return ("masked", against) if against else ("compressed", "faster so on this device")


def _why_no_kernel(layer: Layer) -> str | None:
    device, dtype = layer.parameter.device, layer.parameter.dtype
    if device.type != "cpu":
        return f"the kernels run on the CPU, the weight is on {device}"
    if dtype not in native.DTYPES:
        return f"there are no kernels for {dtype}"
    return None if native.available() else f"there are no kernels: {native.load()}"


def _why_slower(layer: Layer, model: nn.Module, density: float) -> str | None:
    rows, columns = as_matrix(layer.shape)
    limit = max((most for size, most in DENSEST if rows * columns >= size), default=0.0)
    if min(rows, columns) < NARROWEST or not limit:
        return "too small to be faster compressed"
    return _why_too_dense(density, limit)


def _why_slower_convolution(layer: Layer, model: nn.Module, density: float) -> str | None:
    if min(layer.shape[:2]) < NARROWEST_CONVOLUTION:
        return "too few channels to be faster compressed"
    if not any(map(_is_spatial, model.modules())):
        return "1x1 convolutions alone do not pay for the change of layout around them"
    return _why_too_dense(density, DENSEST_CONVOLUTION)


def _is_spatial(module: nn.Module) -> bool:
    """Whether it is a convolution over several pixels that can be compressed."""
    if not isinstance(module, nn.Conv2d | SparseConv2d) or module.groups > 1 or max(module.kernel_size) == 1:
        return False
    return min(module.in_channels, module.out_channels) >= NARROWEST_CONVOLUTION


def _why_too_dense(density: float, limit: float) -> str | None:
    return f"faster masked at a density above {limit:g}" if density > limit else None
