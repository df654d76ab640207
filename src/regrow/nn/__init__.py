"""Modules whose weight is stored compressed, and the layout of what flows between convolutions."""

from regrow.nn.base import SparseModule
from regrow.nn.conv import SparseConv2d
from regrow.nn.forms import compressed_form, dense_form
from regrow.nn.linear import SparseLinear
from regrow.nn.tiles import BatchTiles

__all__ = [
    "BatchTiles",
    "SparseConv2d",
    "SparseLinear",
    "SparseModule",
    "compressed_form",
    "dense_form",
]
