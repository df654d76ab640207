"""The loop behind the command line: it builds what a recipe names, trains it, and survives being killed."""

from __future__ import annotations

from regrow.app.training.build import Setup, build, calendar
from regrow.app.training.folder import RunFolder
from regrow.app.training.progress import Progress, bar, lasting_console, lines, say, width
from regrow.app.training.run import train
from regrow.app.training.stopping import Interrupted, Leash, follow_parent, require_one_process, stop_signals

__all__ = [
    "Interrupted",
    "Leash",
    "Progress",
    "RunFolder",
    "Setup",
    "bar",
    "build",
    "calendar",
    "follow_parent",
    "lasting_console",
    "lines",
    "require_one_process",
    "say",
    "stop_signals",
    "train",
    "width",
]
