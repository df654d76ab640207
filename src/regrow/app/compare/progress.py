"""One line a run: plain text as each ends, and on a terminal a bar for each that runs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, Task, TaskID

from regrow.app.compare.grid import Run
from regrow.app.recipes import Recipe
from regrow.app.tasks import measures_of
from regrow.app.training import RunFolder
from regrow.app.training.progress import bars, say
from regrow.tickets import kind_of


class Show:
    """Tells how the runs of a comparison stand.

    Args:
        console: where it goes.
        runs: all of them.
        bars: a live display, on a terminal.
    """

    def __init__(self, console: Console, runs: Sequence[Run], bars: Progress | None = None) -> None:
        self.console, self.total, self.bars = console, len(runs), bars
        self.several = len({run.recipe.name for run in runs}) > 1
        self.done = 0
        self.tasks: dict[Path, TaskID] = {}

    def ended(self, run: Run, how: str) -> None:
        """Note that `run` has finished."""
        summary = RunFolder(run.folder).summary()
        best = measures_of(summary).best
        self._line(run, f"{best.text(summary[best.name])}   ({how})")

    def failed(self, run: Run, reason: str) -> None:
        """Note that `run` did not reach its end."""
        self._line(run, f"failed: {reason.splitlines()[0]}")

    def running(self, runs: Sequence[Run]) -> None:
        """Note that `runs` are the ones training now."""
        if self.bars is None:
            return
        for run in runs:
            if run.folder not in self.tasks:
                self.tasks[run.folder] = self.bars.add_task(self._name(run), total=1.0, loss="-")
            share, loss = _where(run)
            self.bars.update(self.tasks[run.folder], completed=share, loss=loss)
        for folder in self.tasks.keys() - {run.folder for run in runs}:
            self.bars.remove_task(self.tasks.pop(folder))

    def _name(self, run: Run) -> str:
        return f"{run.recipe.name} {run}" if self.several else str(run)

    def _line(self, run: Run, text: str) -> None:
        self.done += 1
        digits = len(str(self.total))
        say(self.console, f"[{self.done:{digits}}/{self.total}] {self._name(run)}: {text}")


@contextmanager
def shower(console: Console, runs: Sequence[Run]) -> Iterator[Show]:
    """Show `runs` on `console` while the body runs."""
    if not console.is_terminal:
        yield Show(console, runs)
        return

    def numbers(task: Task) -> list[str]:
        return [f"{task.percentage:3.0f}%", f"loss {task.fields['loss']}"]

    with bars(console, lambda task: task.description, numbers, transient=True) as display:
        yield Show(console, runs, display)


def _where(run: Run) -> tuple[float, str]:
    """Return the share of `run` that is done and its last loss, from the end of its log, or of its members' logs."""
    tickets = run.recipe.tickets
    if tickets is None or not kind_of(tickets.name).independent:
        return _read(run.folder / "metrics.jsonl", run.recipe)
    count = kind_of(tickets.name).runs(tickets.options)
    read = [
        _read(run.folder / "members" / str(index) / "metrics.jsonl", run.recipe) for index in range(count)
    ]
    losses = [loss for _, loss in read if loss != "-"]
    return sum(share for share, _ in read) / count, losses[-1] if losses else "-"


def _read(log: Path, recipe: Recipe) -> tuple[float, str]:
    """Return the share of one run that is done, and its last loss."""
    for line in reversed(_tail(log)):
        try:
            record = json.loads(line)
        except ValueError:  # cut at the front, or being written
            continue
        if record.get("kind") == "train":
            length = recipe.steps or recipe.epochs or 1
            done = record["step"] if recipe.steps else record["epoch"]
            return min(1.0, done / length), f"{record['loss']:.3f}"
    return 0.0, "-"


def _tail(path: Path, size: int = 20_000) -> list[str]:
    try:
        with path.open("rb") as stream:
            stream.seek(-min(size, stream.seek(0, os.SEEK_END)), os.SEEK_END)
            return stream.read().decode(errors="replace").splitlines()
    except OSError:
        return []
