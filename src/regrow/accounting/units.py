"""The weights of a model as costs see them, and the size that they are stored in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from regrow._torch import ConvNd, ConvTransposeNd
from regrow.arguments import require_fraction, require_mapping
from regrow.errors import RegrowValueError
from regrow.sparsity import distributions
from regrow.sparsity.layers import NOT_WEIGHTS, Layer, find_layers
from regrow.weights import SparseWeight, views
from regrow.weights.storages import dense_class_of

CONVENTIONS = CLEAN, PUBLISHED = "clean", "rigl"
"""Ways to count; the latter as the RigL paper's tables were computed."""


@dataclass(frozen=True)
class Unit:
    """One weight of two or more dimensions."""

    name: str
    module: nn.Module
    parameter_name: str
    shape: tuple[int, ...]
    connections: int
    density: float
    """The unrounded density asked for, where the connections are what was asked; else the real one."""
    shared: bool
    """Whether the parameter was listed before, under another name."""

    @property
    def positions(self) -> int:
        return math.prod(self.shape)

    @property
    def depthwise(self) -> bool:
        """A convolution with one filter, or several, for each input channel alone."""
        module: Any = self.module
        return (
            issubclass(dense_class_of(module), ConvNd)
            and module.groups > 1
            and module.groups == module.in_channels
        )

    def outputs(self, convention: str) -> int:
        """Return the outputs that have a bias, whether or not the layer does; none for embeddings and the like.

        The published counter takes a depthwise kernel for a convolution with one output: ``rigl`` does too.
        """
        module: Any = self.module
        kind = dense_class_of(module)
        if convention == PUBLISHED and self.depthwise:
            return 1
        if issubclass(kind, ConvTransposeNd):
            return int(module.out_channels)
        if issubclass(kind, nn.RNNBase | nn.RNNCellBase | nn.MultiheadAttention):
            return self.shape[0]
        features = getattr(
            module, "out_channels", getattr(module, "out_features", getattr(module, "nf", None))
        )
        return int(features) if features is not None else 0


def units(model: nn.Module, sparsities: Mapping[str, float] | None = None) -> list[Unit]:
    """List every weight of `model` in the order of its modules.

    Args:
        model: dense or sparse, in any storage; on the meta device only if dense.
        sparsities: the sparsity that each weight named here is taken to have, as `sparsify` would ask for it;
            the others are dense. Default: as the model is.

    Raises:
        RegrowValueError: a model without weights.
    """
    if sparsities is not None:
        given = require_mapping("sparsities", sparsities, "a dictionary {weight name: sparsity}")
        sparsities = {name: require_fraction(f"sparsities[{name!r}]", s) for name, s in given.items()}
    dense = {(id(layer.module), layer.parameter_name): layer for layer in find_layers(model)}
    # a weight that modules share is as sparse in all of them as in the one that `sparsify` has made it sparse in
    held = {id(weight.parameter): weight for module in model.modules() for weight in views(module)}
    asked = None if sparsities is None else _by_parameter(sparsities, dense.values())
    found, seen = [], set()
    for module_name, module in model.named_modules():
        sparse = {weight.parameter_name: weight for weight in views(module)}
        own = [key[1] for key in dense if key[0] == id(module)]
        for parameter_name in dict.fromkeys([*sparse, *own]):
            layer = dense.get((id(module), parameter_name))
            if layer is not None and layer.dense_because in NOT_WEIGHTS:
                continue
            weight = sparse.get(parameter_name)
            parameter = weight.parameter if weight is not None else getattr(module, parameter_name)
            weight = held.get(id(parameter))
            shape = tuple(weight.shape if weight is not None else parameter.shape)
            name = f"{module_name}.{parameter_name}" if module_name else parameter_name
            sparsity = None if asked is None else asked.get(id(parameter), 0.0)
            connections, density = _density(shape, weight, sparsity)
            shared = id(parameter) in seen
            seen.add(id(parameter))
            found.append(Unit(name, module, parameter_name, shape, connections, density, shared))
    if not found:
        raise RegrowValueError(
            "`model` has no weights of two or more dimensions, so there is nothing to count"
        )
    return found


def _by_parameter(sparsities: Mapping[str, float], layers: Iterable[Layer]) -> dict[int, float]:
    """Return the sparsity given for each parameter, whichever of its names that is given for."""
    return {
        id(layer.parameter): sparsities[layer.weight_name]
        for layer in layers
        if layer.weight_name in sparsities
    }


def _density(
    shape: tuple[int, ...], weight: SparseWeight | None, sparsity: float | None
) -> tuple[int, float]:
    """Return the connections of a weight, and its density: what was asked for, unless the connections are others
    by now.
    """
    positions = math.prod(shape)
    if sparsity is not None:
        return distributions.connections(shape, sparsity), 1 - sparsity
    if weight is None:
        return positions, 1.0
    asked, count = weight.record.asked, weight.nnz
    # the record keeps the density, and 1 - (1 - s) is s only up to rounding
    return count, asked if abs(asked * positions - count) < 1 + 1e-6 else count / positions


def stored_megabytes(found: Sequence[Unit], convention: str = "clean", *, dense: bool = False) -> float:
    """Return the size in 10^6 bytes as the RigL paper counts it.

    32 bits a connection, one bit a position of each sparse weight (its mask), 32 bits a bias for each output of
    every layer, whether or not the layer has one; norms are not counted.

    Args:
        found: the weights.
        convention: ``rigl`` takes unrounded densities, and one bias for a whole depthwise kernel.
        dense: as though no weight were sparse.
    """
    bits = 0.0
    for unit in found:
        bits += 32 * unit.outputs(convention)
        if unit.shared:
            continue
        if dense or unit.density == 1:
            bits += 32 * unit.positions
        else:
            count = unit.positions * unit.density if convention == PUBLISHED else unit.connections
            bits += 32 * count + unit.positions
    return bits / 8e6
