"""What a run shows while it trains: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.text import Text

from regrow._text import wrapped
from regrow.app.tasks import CLASSIFICATION, Measures

BAR = 10
"""Characters of a bar at the least: less important numbers go before it does."""


class Lasting:
    """A stream whose other end may go away (a terminal that is closed, a pipe): the rest is lost, nothing else is."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write `text` where there is still somebody to read it."""
        with self._attended():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Hand on what was written."""
        with self._attended():
            self._stream.flush()

    @contextmanager
    def _attended(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            with suppress(OSError), open(os.devnull, "wb") as nowhere:  # for what is buffered, too
                os.dup2(nowhere.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def lasting_console(*, errors: bool) -> Console:
    """Make a console on standard output, or that of errors, which may go away without ending the training."""
    return Console(file=cast(TextIO, Lasting(sys.stderr if errors else sys.stdout)))


@dataclass
class Status:
    """Where a run stands."""

    step: int
    total: int
    sparsity: float
    loss: float | None = None
    """Mean training loss over the last `log_every` steps."""
    moved: int = 0
    """Connections grown since the beginning, each of which replaced a dropped one."""
    seconds: float = 0.0
    """Of training; tests and checkpoints left out."""
    found: Mapping[str, float] | None = None
    """What the last test found, by metric."""
    measures: Measures = CLASSIFICATION

    def fields(self) -> dict[str, str]:
        """Return the numbers as text, by column."""
        best = self.measures.best
        return {
            "loss": f"loss {'-' if self.loss is None else f'{self.loss:.3f}'}",
            "best": f"{best.name} {'-' if self.found is None else best.text(self.found[best.name])}",
            "sparsity": f"sparsity {self.sparsity:.1%}",
            "moved": f"moved {self.moved:,}",
        }

    def to_dict(self) -> dict[str, float | None]:
        """Return the numbers for a checkpoint, those of the last test beside the others."""
        own = {name: getattr(self, name) for name in NUMBERS}
        return own | {metric.kept: self.found and self.found[metric.name] for metric in self.measures.metrics}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], measures: Measures) -> Status:
        """Read what `to_dict` returned."""
        own = {name: value for name, value in state.items() if name in NUMBERS}
        found = {metric.name: state.get(metric.kept) for metric in measures.metrics}
        tested = None if None in found.values() else cast(dict[str, float], found)
        return cls(**own, found=tested, measures=measures)


NUMBERS = ("step", "total", "sparsity", "loss", "moved", "seconds")
"""The fields of a status that are there without a test."""


class Progress(Protocol):
    """Shows a status; called a few times a second, and after each test with `tested`."""

    def __call__(self, status: Status, *, tested: bool = False) -> None:
        """Show `status`."""


def width(console: Console) -> int | None:
    """Measure a line of `console` in characters; None where it is not a terminal, and lines may be of any length."""
    return console.width if console.is_terminal else None


def say(console: Console, text: str, end: str = "\n") -> None:
    """Print `text` as it is, but for long lines on a terminal, which are cut between words."""
    console.print(wrapped(text, width(console)), markup=False, highlight=False, soft_wrap=True, end=end)


class _Whole(ProgressColumn):
    """Texts of a task, side by side: as many as leave room for a bar, the most important first."""

    def __init__(
        self, console: Console, texts: Callable[[Task], list[str]], before: _Whole | None = None
    ) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self.console, self.texts, self.before = console, texts, before

    def render(self, task: Task) -> Text:
        texts = self.texts(task)
        if self.before is None:
            return Text("  ".join(texts))
        room = self.console.width - sum(len(text) + 2 for text in self.before.texts(task)) - BAR
        shown = []
        for text in texts:
            room -= len(text) + 2
            if room < 0:
                break
            shown.append(text)
        return Text("  ".join(shown))


def bars(
    console: Console, name: Callable[[Task], str], texts: Callable[[Task], list[str]], **options: Any
) -> RichProgress:
    """Make a live display of a line a task: its name, a bar, and of its `texts` as many as fit, in their order."""
    first = _Whole(console, lambda task: [name(task)])
    columns = [first, BarColumn(bar_width=None), _Whole(console, texts, first)]
    return RichProgress(*columns, console=console, expand=True, **options)


@contextmanager
def bar(console: Console) -> Iterator[Progress]:
    """Show a line: step, bar, time left, best metric, and where there is room loss, sparsity and moved connections."""

    def step(task: Task) -> str:
        return f"step {task.completed:,.0f}/{task.total or 0:,.0f}"

    def numbers(task: Task) -> list[str]:
        return [f"left {time_left(task)}", *(task.fields[name] for name in IN_ORDER)]

    with bars(console, step, numbers) as display:
        nothing: dict[str, Any] = Status(0, 0, 0.0).fields()
        task = display.add_task("train", total=None, visible=False, **nothing)

        def show(status: Status, *, tested: bool = False) -> None:
            fields: dict[str, Any] = status.fields()
            display.update(task, completed=status.step, total=status.total, visible=True, **fields)

        yield show


IN_ORDER = ("best", "loss", "sparsity", "moved")
"""The numbers of a status, the most important first."""


def time_left(task: Task) -> str:
    """Write the time that `task` has left: minutes and seconds, or hours before them."""
    seconds = task.time_remaining
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def lines(console: Console, every: float = 10.0) -> Iterator[Progress]:
    """Print a plain line after each test, and otherwise every `every` seconds."""
    start: tuple[int, float] | None = None
    last = time.monotonic()

    def show(status: Status, *, tested: bool = False) -> None:
        nonlocal start, last
        if start is None:
            start = (status.step, status.seconds)
        if not tested and time.monotonic() - last < every:
            return
        last = time.monotonic()
        done, spent = status.step - start[0], status.seconds - start[1]
        left = f"{spent / done * (status.total - status.step):.0f} s" if done else "-"
        numbers = " · ".join(status.fields().values())
        say(console, f"step {status.step:,}/{status.total:,} · {numbers} · left {left}")

    yield show
