"""From a dense module to its compressed form, and back."""

from __future__ import annotations

from torch import Tensor, nn

from regrow.nn.base import SparseModule
from regrow.nn.conv import SparseConv2d
from regrow.nn.linear import SparseLinear


def compressed_form(module: nn.Module, positions: Tensor, values: Tensor | None = None) -> SparseModule:
    """The connections at `positions` of a Linear or Conv2d, with the module's own bias parameter.

    Their `values` [nnz] are the module's, unless they are given.
    """
    if isinstance(module, nn.Conv2d):
        return SparseConv2d.from_conv(module, positions, values)
    assert isinstance(module, nn.Linear)
    return SparseLinear.from_linear(module, positions, values)


def dense_form(module: SparseModule, weight: Tensor) -> nn.Module:
    """The dense module that does what `module` does, with the dense `weight` and the module's own bias parameter."""
    if isinstance(module, SparseConv2d):
        return module.to_conv(weight)
    assert isinstance(module, SparseLinear)
    return module.to_linear(weight)
