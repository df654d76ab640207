"""Modules whose weight is stored compressed, and the layout of activations between them."""

from regrow.nn.base import SparseModule
from regrow.nn.conv import SparseConv2d
from regrow.nn.dense import TiledConv2d
from regrow.nn.forms import compressed_form, dense_form
from regrow.nn.linear import SparseLinear
from regrow.nn.norm import FusedBatchNorm2d
from regrow.tiles.tensor import BatchTiles

__all__ = [
    "BatchTiles",
    "FusedBatchNorm2d",
    "SparseConv2d",
    "SparseLinear",
    "SparseModule",
    "TiledConv2d",
    "compressed_form",
    "dense_form",
]
