"""``storage="auto"``: which layers are faster compressed than masked on this device.

The limits were measured (docs/performance.md, "Which storage"): training of one layer, or of networks, float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import nn

from regrow.errors import RegrowValueError
from regrow.ops import backends, native
from regrow.sparsity.layers import Layer, why_not_stored
from regrow.sparsity.meta import is_on_meta
from regrow.weights.reading import as_matrix
from regrow.weights.storages import STORAGES

NARROWEST = 64
"""Rows and columns below which the calls around a kernel take longer than the product."""

DENSEST = ((1 << 16, 0.3), (1 << 18, 0.5))
"""Positions of a weight from which on compressed storage wins up to a density."""

REFERENCE = (256, 1 << 18, 0.1)
"""Rows and columns, and positions, from which on linear layers are faster on the reference than masked, where there
are no kernels, and the density up to which they are."""

CHANNELS = 16
"""Channels on either side that a convolution over several pixels has where batch tiles pay."""

CONVOLUTIONS = 0.5
"""Density of all sparse convolutions together up to which batch tiles pay."""

RECURRENT = (128, 0.25)
"""Units from which on a recurrent layer wins, up to this density of its sparse weights together: a cautious choice,
measured on a busy machine alone."""


def choices() -> tuple[str, ...]:
    """List what `sparsify` takes as the storage of all weights."""
    return "auto", *STORAGES


def storages(
    model: nn.Module,
    layers: Sequence[Layer],
    connections: Mapping[str, int],
    storage: str | Mapping[str, str],
) -> dict[str, tuple[str, str]]:
    """Return the storage of the layers of `model` that are to be sparse, by weight name, and why if it was chosen here.

    Args:
        model: what the layers are part of.
        layers: those that are to be sparse.
        connections: that each is to have, by the weight's name.
        storage: of `choices`, or ``{weight name: storage}``.

    Raises:
        RegrowValueError: a layer that cannot be stored as it is to be.
    """
    if storage == "auto" and not is_on_meta(model):
        return choose_storages(layers, model, connections)
    wanted = dict.fromkeys(connections, storage) if isinstance(storage, str) else storage
    for layer in layers:
        kind = wanted.get(layer.weight_name)
        if kind not in (STORAGES if wanted is storage else choices()):
            raise RegrowValueError(
                f"`storage` must say {' or '.join(STORAGES)} for `{layer.weight_name}`, got {kind!r}\n"
                "Give one storage for all, or a dictionary with each weight that is to be sparse."
            )
    stored = {}
    for layer in layers:
        name, kind = layer.weight_name, wanted[layer.weight_name]
        if kind == "auto":
            obstacle = why_not_stored("compressed", layer, model, _beside(layer, layers))
            stored[name] = (
                ("masked", obstacle) if obstacle else ("compressed", "on the meta device: never dense")
            )
            continue
        if obstacle := why_not_stored(kind, layer, model, _beside(layer, layers, wanted)):
            raise RegrowValueError(
                f"`storage` is {kind!r}, but `{name}` cannot be stored so: {obstacle}.\n"
                f"Use storage='auto', or name what is {kind} with `include` and call sparsify again for the rest."
            )
        stored[name] = kind, ""
    return stored


def _beside(layer: Layer, layers: Sequence[Layer], wanted: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the storage of each weight that is to be sparse in the module of `layer`, compressed unless `wanted`."""
    names = {y.parameter_name: y.weight_name for y in layers if y.module is layer.module}
    return {own: "compressed" if wanted is None else wanted[name] for own, name in names.items()}


def choose_storages(
    layers: Sequence[Layer], model: nn.Module, connections: Mapping[str, int]
) -> dict[str, tuple[str, str]]:
    """Choose the storage of the layers of `model` that are to be sparse, and say why.

    Convolutions go together: between compressed ones activations stay in batch tiles, and a masked one among them
    would cost two changes of layout.

    Args:
        layers: those that are to be sparse.
        model: what they are part of.
        connections: that each is to have, by the weight's name.

    Returns:
        By the weight's name ``"compressed"`` or ``"masked"``, and the reason in words.
    """
    against = {
        layer.weight_name: why_not_stored("compressed", layer, model, _beside(layer, layers))
        or _why_no_kernel(layer)
        for layer in layers
    }
    convolutions = [x for x in layers if isinstance(x.module, nn.Conv2d) and not against[x.weight_name]]
    together = _why_masked_convolutions(convolutions, connections)
    for layer in layers:
        if not against[layer.weight_name]:
            if isinstance(layer.module, nn.Conv2d):
                own = together
            elif isinstance(layer.module, nn.RNNBase):
                own = _why_masked_recurrent([y for y in layers if y.module is layer.module], connections)
            else:
                own = _why_masked(layer, connections[layer.weight_name])
            against[layer.weight_name] = own
    for layer in layers:  # weights of one module go together too
        owned = [against[y.weight_name] for y in layers if y.module is layer.module]
        against[layer.weight_name] = against[layer.weight_name] or next(filter(None, owned), None)
    faster = f"faster so {'on this device' if native.available() else 'without kernels too'}"
    return {
        name: ("masked", reason) if reason else ("compressed", faster) for name, reason in against.items()
    }


def _why_no_kernel(layer: Layer) -> str | None:
    """Say why no kernel would run `layer`; None too if the layer is large enough for the reference to pay."""
    rows, columns = as_matrix(layer.shape)
    narrowest, smallest, _ = REFERENCE
    large = min(rows, columns) >= narrowest and rows * columns >= smallest
    if isinstance(layer.module, nn.Conv2d):
        reasons = backends.why_not(backends.CONV, layer.parameter)
    elif isinstance(layer.module, nn.RNNBase):
        reasons = backends.why_not(backends.RECURRENT, layer.parameter)
    else:
        reasons = (backends.unfit if large else backends.why_not)(backends.LINEAR, layer.parameter)
    return "; ".join(reasons) or None


def _why_masked(layer: Layer, connections: int) -> str | None:
    rows, columns = as_matrix(layer.shape)
    if native.available():
        limit = max((most for size, most in DENSEST if rows * columns >= size), default=0.0)
    else:
        limit = REFERENCE[-1]
    if min(rows, columns) < NARROWEST or not limit:
        return "too small to be faster compressed"
    if connections >= limit * rows * columns + 1:  # counts are rounded up
        return f"faster masked at a density above {limit:g}"
    return None


def _why_masked_convolutions(layers: Sequence[Layer], connections: Mapping[str, int]) -> str | None:
    if not any(min(layer.shape[:2]) >= CHANNELS and max(layer.shape[2:]) > 1 for layer in layers):
        return "batch tiles do not pay without a larger convolution that is sparse"
    size = sum(math.prod(layer.shape) for layer in layers)
    if sum(connections[layer.weight_name] for layer in layers) > CONVOLUTIONS * size:
        return f"convolutions are faster masked at a density above {CONVOLUTIONS:g} together"
    return None


def _why_masked_recurrent(layers: Sequence[Layer], connections: Mapping[str, int]) -> str | None:
    units, limit = RECURRENT
    if any(layer.shape[1] < units for layer in layers if layer.parameter_name.startswith("weight_hh")):
        return "too small to be faster compressed"
    size = sum(math.prod(layer.shape) for layer in layers)
    if sum(connections[layer.weight_name] for layer in layers) > limit * size + len(layers):
        return f"recurrent layers are faster masked at a density above {limit:g} together"
    return None
