"""The loop behind the command line: it builds what a recipe names, trains it, and survives being killed."""

from __future__ import annotations

from regrow.training.build import Setup, build, calendar
from regrow.training.folder import RunFolder
from regrow.training.loop import Interrupted
from regrow.training.members import train
from regrow.training.progress import Progress, bar, lines, say, width

__all__ = [
    "Interrupted",
    "Progress",
    "RunFolder",
    "Setup",
    "bar",
    "build",
    "calendar",
    "lines",
    "say",
    "train",
    "width",
]
