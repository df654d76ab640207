"""regrow: sparse training for PyTorch that is really sparse."""

from regrow import landscape, topology
from regrow.compact import compact
from regrow.compress import compress
from regrow.costs import Costs, costs
from regrow.errors import RegrowError
from regrow.methods import SET, SNFS, SNIP, Dynamic, Method, Pruning, RigL, Static
from regrow.nn import SparseLinear
from regrow.saving import load, save
from regrow.sparsify import densify, is_sparse, masks, sparsify
from regrow.summary import summary

__version__ = "0.1.0"

__all__ = [
    "SET",
    "SNFS",
    "SNIP",
    "Costs",
    "Dynamic",
    "Method",
    "Pruning",
    "RegrowError",
    "RigL",
    "SparseLinear",
    "Static",
    "compact",
    "costs",
    "compress",
    "densify",
    "is_sparse",
    "landscape",
    "load",
    "masks",
    "save",
    "sparsify",
    "summary",
    "topology",
]
