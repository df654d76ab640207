"""How long a recipe takes on this machine: its first steps are made in a folder that does not stay."""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import regrow
from regrow.app.recipes import Part, Recipe, find
from regrow.app.training.batches import epoch_of, held_out_of
from regrow.app.training.build import build, device_of
from regrow.app.training.folder import RunFolder
from regrow.app.training.progress import Status
from regrow.app.training.run import train
from regrow.app.training.stopping import Interrupted
from regrow.app.training.ways import prunes
from regrow.data import Dataset, Tensors, Text, check_dataset, datasets
from regrow.errors import RegrowValueError
from regrow.measure.timing import load
from regrow.models import models
from regrow.tickets import kind_of

FLOPS = 1e11
"""A step that would take more is timed with fewer examples."""
STEPS = 10**6
"""Length of the timed run, which is never reached."""


@dataclass(frozen=True)
class Expected:
    """The length of a run, and the time of its steps here."""

    epochs: int | None
    batch_size: int
    device: str
    threads: int
    missing: str | None = None
    """Why the data cannot be read, and how to get them; None where they are here."""
    examples: int | None = None
    """Training examples of an epoch; None where they are not known before the data are here."""
    steps: int | None = None
    """Optimizer steps of the whole run."""
    seconds: float | None = None
    """Of a step of `batch_size` examples, on this machine."""
    timed_steps: int = 0
    timed_batch: int = 0
    """Examples of each step that was timed; the time of a whole one is in proportion."""
    quiet: bool = True
    """Whether the machine had nothing else to do meanwhile."""
    made_up: bool = False
    """Whether random numbers stood for the data."""
    why_not: str | None = None
    """Why nothing was timed."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings."""
        return asdict(self)

    @property
    def length(self) -> str:
        """Say the length in words."""
        steps = None if self.steps is None else f"{self.steps:,} steps of {self.batch_size:,} examples"
        if self.epochs is None:
            return str(steps)
        of = steps or f"steps of {self.batch_size:,} examples, how many is known once the data are here"
        return f"{self.epochs} epoch{'s' if self.epochs > 1 else ''}, {of}"

    @property
    def time(self) -> str:
        """Say the time in words, with how it is known."""
        if self.seconds is None:
            return f"not known: {self.why_not}"
        step = f"{self.seconds * 1e3:.3g} ms" if self.seconds < 1 else f"{self.seconds:.3g} s"
        whole = "" if self.steps is None else f"about {duration(self.seconds * self.steps)}, "
        fewer = f", of {self.timed_batch} examples each" if self.timed_batch < self.batch_size else ""
        data = " and random data" if self.made_up else ""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        busy = "" if self.quiet else ". The machine is not quiet: it takes less when it is"
        return (
            f"{whole}{step} a step: an estimate from {self.timed_steps} of the first steps{fewer}, made just now with "
            f"{threads} on {self.device}{data}; tests and pictures come on top{busy}"
        )


def expected(recipe: Recipe, seconds: float = 2.0) -> Expected:
    """Time the first steps of `recipe` for about so many `seconds`; the data are read where they are here.

    Raises:
        RegrowError: for anything in the recipe that cannot be.
    """
    data, missing = _data(recipe)
    count = _examples(recipe, data)
    steps = recipe.steps
    if recipe.epochs is not None and count is not None:
        steps = recipe.epochs * epoch_of(recipe, count)
    if recipe.tickets is not None and steps is not None:
        steps *= kind_of(recipe.tickets.name).runs(recipe.tickets.options)
    known = Expected(
        recipe.epochs,
        recipe.batch_size,
        str(device_of(recipe.device)),
        recipe.threads or torch.get_num_threads(),
        missing,
        count,
        steps,
    )
    shape = _shape(recipe, data)
    if recipe.never_dense:
        return replace(known, why_not="the network is too large to be made only for its time")
    if shape is None:
        return replace(known, why_not="its network says nothing of its inputs, and the data are not here")
    batch = _batch(recipe, shape, data)
    standing = data if data is not None else _random(recipe, shape, batch)
    quiet = load().quiet
    timed, each = _time(recipe, standing, batch, seconds)
    return replace(
        known,
        seconds=each * recipe.batch_size / batch,
        timed_steps=timed,
        timed_batch=batch,
        quiet=quiet,
        made_up=data is None,
    )


def duration(seconds: float) -> str:
    """Write a time with two digits in the unit that fits."""
    for unit, size in (("years", 31557600), ("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * size:
            value = seconds / size
            return f"{value:,.0f} {unit}" if value >= 10 else f"{value:.2g} {unit}"
    return f"{seconds:.0f} seconds" if seconds >= 10 else f"{seconds:.2g} seconds"


def _data(recipe: Recipe) -> tuple[Tensors | None, str | None]:
    """Read the data, where they are here and quickly read; else say why not."""
    part, record = recipe.data, datasets().get(recipe.data.name)
    if record is not None and record.is_decoded:
        folder = Path(str(part.options["folder"])).expanduser()
        missing = f"there is no folder {folder}\nPut it there, or name it with `data.folder`."
        return None, None if folder.is_dir() else missing
    try:
        return check_dataset(find("data", part)(**part.options), part.name), None
    except RegrowValueError as error:
        return None, str(error)


def _examples(recipe: Recipe, data: Tensors | None) -> int | None:
    """Count the training examples of an epoch."""
    record = datasets().get(recipe.data.name)
    count = len(data.train_inputs) if data is not None else record.examples if record is not None else None
    if count is None:
        return None
    count = min(count, recipe.data.options.get("limit") or count)
    return count - held_out_of(recipe, count)


def _shape(recipe: Recipe, data: Tensors | None) -> tuple[int, ...] | None:
    """Find the shape of one example as the data set keeps it."""
    if data is not None:
        return tuple(data.train_inputs.shape[1:])
    if _is_text(recipe):
        return (int(recipe.data.options["length"]),)
    record = models().get(recipe.model.name)
    if record is None:
        return None
    *outer, height, width = (1, 1, *record.example_shape(recipe.model.options))
    size = recipe.data.options.get("size")
    shape = (*outer, size or height, size or width)
    return shape[-len(record.input) :]


def _batch(recipe: Recipe, shape: tuple[int, ...], data: Tensors | None) -> int:
    """Choose how many examples a step has that takes about a second at the most."""
    dtype = torch.int64 if _is_text(recipe) else torch.float32
    try:
        with torch.device("meta"):
            model = find("model", recipe.model)(**recipe.model.options)
        one = regrow.costs(model, torch.zeros(1, *shape, dtype=dtype, device="meta")).flops["dense"]
    except Exception:  # a network of the user's that cannot be built without memory
        return recipe.batch_size
    return max(2, min(recipe.batch_size, int(FLOPS / (3 * one))))


def _is_text(recipe: Recipe) -> bool:
    record = datasets().get(recipe.data.name)
    return record is not None and record.is_text


def _random(recipe: Recipe, shape: tuple[int, ...], count: int) -> Tensors:
    """Draw random numbers in the form of the data."""
    inputs: Tensor = torch.randn(count, *shape, device="cpu")
    if _is_text(recipe):
        # two different ones, which every vocabulary has
        symbols = torch.randint(0, 2, (count, *shape), dtype=torch.uint8, device="cpu")
        streams = recipe.data.options.get("streams", False)
        return Text("random", symbols, symbols, symbols, symbols, 2, streams=streams)
    targets = torch.randint(0, 2, (count,), device="cpu")
    return Dataset("random", inputs, targets, inputs, targets, 2)


class _Enough(Exception):
    """The time is up."""


def _time(recipe: Recipe, data: Tensors, batch: int, seconds: float) -> tuple[int, float]:
    """Count the steps that were timed, and give the seconds of one."""
    seen: list[tuple[int, float]] = []

    def watch(status: Status, *, tested: bool = False) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seen.append((status.step, time.perf_counter()))
        if len(seen) > 1 and seen[-1][1] - seen[0][1] >= seconds:
            raise _Enough

    changed: dict[str, Any] = {
        "batch_size": batch,
        "accumulate": 1 if batch < recipe.batch_size else recipe.accumulate,
        "epochs": None,
        "steps": STEPS,
        "validation": None,
        "test_on": None,
        "samples": {},
        "keep": "last",
        "tickets": None,
        "early": {},
        "last_step": None,
        "tricks": [part for part in recipe.tricks if part.name != "gradinit"],  # which takes no time a step
        "log_every": STEPS,
        "evaluate_every": STEPS,
        "checkpoint_every": STEPS,
    }
    if prunes(recipe):  # its first run
        changed["method"] = Part(name="dense")
    setup = build(recipe.model_copy(update=changed), data=data)
    with tempfile.TemporaryDirectory(prefix="regrow-") as place:
        try:
            with RunFolder.create("", str(Path(place) / "run"), "", {}) as folder:
                train(setup, folder, watch)
        except _Enough:
            pass
        except Interrupted as error:  # there is nothing to go on with
            raise Interrupted("stopped") from error
    (first, start), (last, end) = seen[0], seen[-1]
    return last - first, (end - start) / (last - first)
