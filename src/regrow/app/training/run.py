"""Train what a recipe asks for: one run, or the whole runs of an ensemble or of a ticket loop."""

from __future__ import annotations

from typing import Any

from regrow.app.training import loop, members
from regrow.app.training.build import Setup
from regrow.app.training.folder import RunFolder
from regrow.app.training.progress import Progress
from regrow.tickets import kind_of


def train(setup: Setup, folder: RunFolder, progress: Progress) -> dict[str, Any]:
    """Train `setup` in `folder`, from where it was, to the end: one run, or several whole runs.

    Returns:
        What ``summary.json`` holds.

    Raises:
        Interrupted: see `loop.train`.
        RegrowRuntimeError: loss or weights that are not finite, or a disk that is full; the last
            checkpoint is whole.
    """
    part = setup.recipe.tickets
    independent = part is not None and kind_of(part.name).independent
    do = members.train if independent else loop.train
    return do(setup, folder, progress)
