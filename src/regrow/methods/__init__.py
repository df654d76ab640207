"""How a topology evolves: one file per published method, and the parts they share."""

from regrow.methods.base import Method
from regrow.methods.dynamic import Dynamic
from regrow.methods.granet import GraNet
from regrow.methods.itop import ITOP, SetITOP
from regrow.methods.periodic import Periodic
from regrow.methods.pruning import Pruning
from regrow.methods.registry import MethodRecord, register
from regrow.methods.rigl import RigL
from regrow.methods.selfish import SelfishRNN
from regrow.methods.set import SET
from regrow.methods.snfs import SNFS
from regrow.methods.snip import SNIP
from regrow.methods.srigl import SRigL
from regrow.methods.static import Static

__all__ = [
    "ITOP",
    "SET",
    "SNFS",
    "SNIP",
    "SRigL",
    "Dynamic",
    "GraNet",
    "Method",
    "MethodRecord",
    "Periodic",
    "Pruning",
    "RigL",
    "SelfishRNN",
    "SetITOP",
    "Static",
    "register",
]
