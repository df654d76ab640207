"""Modules whose weight is stored compressed, and the layout of activations between them."""

from regrow.nn import forms as forms  # compressed storage knows them from here on
from regrow.nn.base import SparseModule
from regrow.nn.conv import SparseConv2d
from regrow.nn.dense import TiledConv2d
from regrow.nn.linear import SparseLinear
from regrow.nn.low_rank import LowRankLinear
from regrow.nn.norm import FusedBatchNorm2d
from regrow.nn.owner import CompressedModule
from regrow.nn.recurrent import SparseGRU, SparseLSTM, SparseRNN
from regrow.tiles.tensor import BatchTiles

__all__ = [
    "BatchTiles",
    "CompressedModule",
    "FusedBatchNorm2d",
    "LowRankLinear",
    "SparseConv2d",
    "SparseGRU",
    "SparseLSTM",
    "SparseLinear",
    "SparseModule",
    "SparseRNN",
    "TiledConv2d",
]
