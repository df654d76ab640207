"""regrow: sparse training for PyTorch that is really sparse."""

from regrow import landscape, tickets, topology
from regrow.compact import compact
from regrow.compress import compress
from regrow.costs import Costs, costs
from regrow.errors import RegrowError
from regrow.explain import explain
from regrow.fold import fold
from regrow.fuse import fuse, unfuse
from regrow.methods import ITOP, SET, SNFS, SNIP, Dynamic, GraNet, Method, Pruning, RigL, SetITOP, Static
from regrow.nn import BatchTiles, SparseConv2d, SparseLinear
from regrow.ops.native import empty_cache
from regrow.saving import dense_state_dict, load, save
from regrow.sparsify import densify, is_sparse, masks, sparsify
from regrow.summary import summary
from regrow.tickets import Ensemble, FreeTickets, SupTickets

__version__ = "0.1.0"

__all__ = [
    "BatchTiles",
    "ITOP",
    "SET",
    "SNFS",
    "SNIP",
    "Costs",
    "Dynamic",
    "Ensemble",
    "FreeTickets",
    "GraNet",
    "Method",
    "Pruning",
    "RegrowError",
    "RigL",
    "SetITOP",
    "SparseConv2d",
    "SparseLinear",
    "Static",
    "SupTickets",
    "compact",
    "costs",
    "compress",
    "dense_state_dict",
    "densify",
    "empty_cache",
    "explain",
    "fold",
    "fuse",
    "is_sparse",
    "landscape",
    "load",
    "masks",
    "save",
    "sparsify",
    "summary",
    "tickets",
    "topology",
    "unfuse",
]
