"""Modules whose weight is stored compressed."""

from regrow.nn.linear import SparseLinear

__all__ = ["SparseLinear"]
