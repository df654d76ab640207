"""One record for each trick: what recipes and commands know of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from regrow.tricks.activations import GhostActivations
from regrow.tricks.ghosts import Ghosts
from regrow.tricks.gradinit import CONSTRAINT, STEP, GradInit
from regrow.tricks.skips import GhostSkips
from regrow.tricks.smoothing import LabelSmoothing

TOST = "arXiv 2206.12755"


@dataclass(frozen=True)
class TrickRecord:
    """A trick by name: something that helps a network through its training and is not in it at the end."""

    name: str
    cls: Callable[..., Any]
    line: str
    needs: str
    """What of the network and its task."""
    cost: str
    """What it costs beside the training, in words: f_S is a forward pass of the network, f_G that of its ghosts."""
    paper: str = TOST

    @property
    def is_ghost(self) -> bool:
        """Whether it is in the network for a part of the training."""
        return isinstance(self.cls, type) and issubclass(self.cls, Ghosts)


_RECORDS = (
    TrickRecord(
        "label-smoothing",
        LabelSmoothing,
        "a share of the target goes to the other classes",
        "classes",
        "none",
    ),
    TrickRecord(
        "gradinit",
        GradInit,
        "a scale for each initial weight, by the loss after a step",
        "second derivatives",
        f"{STEP} f_S an iteration, {CONSTRAINT} f_S where the gradient is above gamma",
    ),
    TrickRecord(
        "ghost-skips",
        GhostSkips,
        "a shortcut over each convolution, at first",
        "convolutions",
        "3 f_G a step while they are in",
    ),
    TrickRecord(
        "ghost-activations",
        GhostActivations,
        "a smooth function for each ReLU, at first",
        "ReLU",
        "none counted",
    ),
)


def tricks() -> dict[str, TrickRecord]:
    """Return the tricks by name."""
    return {record.name: record for record in _RECORDS}
