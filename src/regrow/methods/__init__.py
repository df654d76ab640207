"""How a topology evolves: one file per published method, and the parts they share."""

from regrow.methods.base import Method
from regrow.methods.dynamic import Dynamic
from regrow.methods.granet import GraNet
from regrow.methods.grasp import GraSP
from regrow.methods.itop import ITOP, SetITOP
from regrow.methods.mest import MEST, SoftMEST
from regrow.methods.partially_masked import PartiallyMasked
from regrow.methods.periodic import Periodic
from regrow.methods.pruning import Pruning
from regrow.methods.registry import MethodRecord, register
from regrow.methods.rigl import RigL
from regrow.methods.rst import RST
from regrow.methods.selfish import SelfishRNN
from regrow.methods.set import SET
from regrow.methods.snfs import SNFS
from regrow.methods.snip import SNIP
from regrow.methods.srigl import SRigL
from regrow.methods.static import Static
from regrow.methods.synflow import SynFlow
from regrow.methods.top_kast import TopKAST

__all__ = [
    "ITOP",
    "MEST",
    "RST",
    "SET",
    "SNFS",
    "SNIP",
    "SRigL",
    "Dynamic",
    "GraNet",
    "GraSP",
    "Method",
    "MethodRecord",
    "PartiallyMasked",
    "Periodic",
    "Pruning",
    "RigL",
    "SelfishRNN",
    "SetITOP",
    "SoftMEST",
    "Static",
    "TopKAST",
    "SynFlow",
    "register",
]
