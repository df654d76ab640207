"""regrow: sparse training for PyTorch that is really sparse."""

from regrow import tickets, tricks
from regrow.accounting import Costs, costs
from regrow.errors import RegrowError
from regrow.inference.deploying import deploy
from regrow.inference.explain import explain
from regrow.inference.module import Deployed
from regrow.measure import landscape
from regrow.methods import (
    ITOP,
    MEST,
    RST,
    SET,
    SNFS,
    SNIP,
    Dynamic,
    GraNet,
    GraSP,
    Method,
    PartiallyMasked,
    Pruning,
    RigL,
    SelfishRNN,
    SetITOP,
    SoftMEST,
    SRigL,
    Static,
    SynFlow,
    TopKAST,
)
from regrow.nn import BatchTiles, SparseConv2d, SparseLinear
from regrow.nn.fused import unfuse
from regrow.ops.native import empty_cache
from regrow.optim import NTASGD, SNTASGD
from regrow.rewrite.compact import compact
from regrow.rewrite.compress import compress
from regrow.rewrite.fold import fold
from regrow.rewrite.fuse import fuse
from regrow.sparsity import distributions
from regrow.sparsity.core import densify, is_sparse, masks, sparsify
from regrow.sparsity.saving import dense_state_dict, load, save
from regrow.sparsity.summary import summary
from regrow.tickets import Ensemble, FreeTickets, SupTickets

__version__ = "0.1.0"

__all__ = [
    "BatchTiles",
    "ITOP",
    "MEST",
    "NTASGD",
    "RST",
    "SET",
    "SNFS",
    "SNIP",
    "SNTASGD",
    "SRigL",
    "Costs",
    "Deployed",
    "Dynamic",
    "Ensemble",
    "FreeTickets",
    "GraNet",
    "GraSP",
    "Method",
    "PartiallyMasked",
    "Pruning",
    "RegrowError",
    "RigL",
    "SelfishRNN",
    "SetITOP",
    "SoftMEST",
    "SparseConv2d",
    "SparseLinear",
    "Static",
    "SupTickets",
    "TopKAST",
    "SynFlow",
    "compact",
    "costs",
    "compress",
    "dense_state_dict",
    "densify",
    "deploy",
    "distributions",
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
    "tricks",
    "unfuse",
]
