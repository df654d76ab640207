"""Tricks that train a fixed mask better and leave nothing in the network: those of ToST (arXiv 2206.12755)."""

from regrow.tricks.activations import GhostActivations, soft
from regrow.tricks.fade import Fade
from regrow.tricks.ghosts import Ghosts, has_ghosts, remove_ghosts
from regrow.tricks.gradinit import GradInit, Rescaled
from regrow.tricks.registry import TrickRecord, tricks
from regrow.tricks.skips import GhostSkip, GhostSkips
from regrow.tricks.smoothing import LabelSmoothing, over_all, smoothed_cross_entropy

__all__ = [
    "Fade",
    "GhostActivations",
    "GhostSkip",
    "GhostSkips",
    "Ghosts",
    "GradInit",
    "LabelSmoothing",
    "Rescaled",
    "TrickRecord",
    "has_ghosts",
    "over_all",
    "remove_ghosts",
    "smoothed_cross_entropy",
    "soft",
    "tricks",
]
