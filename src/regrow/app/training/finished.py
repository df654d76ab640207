"""A finished run read back from its folder: its data, its network, its tickets."""

from __future__ import annotations

from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from regrow.app.recipes import find, method_of, read
from regrow.app.tasks import task_of
from regrow.app.training.folder import RunFolder
from regrow.data import Tensors, check_dataset
from regrow.errors import RegrowValueError
from regrow.tickets import Ensemble


class Finished:
    """A run that came to its end.

    Args:
        path: its folder.

    Raises:
        RegrowValueError: where there is no run, one that is not finished, or one of a small dense network, whose width
            the recipe does not say.
    """

    def __init__(self, path: Path) -> None:
        self.folder = RunFolder.open(path)
        if not self.folder.finished:
            raise RegrowValueError(
                f"the run in {path} is not finished\nContinue it with `regrow train --resume {path}`."
            )
        self.recipe = read(path / "config.yaml")
        if method_of(self.recipe.method).is_narrow:
            name = self.recipe.method.name
            raise RegrowValueError(f"the run in {path} is one of {name}, allowed are all other methods")
        self.summary: dict[str, Any] = self.folder.summary()

    @cached_property
    def data(self) -> Tensors:
        """The data set that the recipe names."""
        part = self.recipe.data
        return check_dataset(find("data", part)(**part.options), part.name)

    def tickets(self) -> list[nn.Module]:
        """Return the tickets in the order in which they were taken, in evaluation mode; none where the run made
        none.
        """
        files = (self.folder.path / "tickets").glob("*.safetensors")
        numbered = {int(file.stem): file for file in files if file.stem.isdecimal()}
        return [self._load(numbered[number]) for number in sorted(numbered)]

    def network(self) -> nn.Module:
        """Return what the run came to, in evaluation mode: one network, or the ensemble of its tickets."""
        file = self.folder.path / "model.safetensors"
        if file.is_file():
            return self._load(file)
        # a task that comes with regrow is known without its data
        task = task_of(self.data) if "task" in self.summary else None
        return (Ensemble(self.tickets()) if task is None else task.ensemble(self.tickets())).eval()

    def _load(self, file: Path) -> nn.Module:
        part, state = self.recipe.model, torch.get_rng_state()
        try:
            with torch.device("meta") if self.recipe.never_dense else nullcontext():
                model: nn.Module = find("model", part)(**part.options)
            return self.folder.load_model(str(file.relative_to(self.folder.path)), model).eval()
        finally:  # the initial weights are overwritten: nobody's random numbers are used up
            torch.set_rng_state(state)
