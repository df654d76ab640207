"""What a run shows while it trains: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


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
    """Where a training tells how it stands, which may go away without ending it: standard output, or that of errors."""
    return Console(file=cast(TextIO, Lasting(sys.stderr if errors else sys.stdout)))


@dataclass
class Status:
    """Where a run stands."""

    step: int
    total: int
    sparsity: float
    loss: float | None = None
    """Mean training loss over the last `log_every` steps."""
    accuracy: float | None = None
    """Of the last test, 0 to 1."""
    test_loss: float | None = None
    """Of the last test: mean cross entropy in nats."""
    ece: float | None = None
    """Of the last test: expected calibration error."""
    moved: int = 0
    """Connections grown since the beginning, each of which replaced a dropped one."""
    seconds: float = 0.0
    """Of training; tests and checkpoints left out."""

    def fields(self) -> dict[str, str]:
        """The numbers as text, by column."""
        return {
            "loss": "-" if self.loss is None else f"{self.loss:.3f}",
            "accuracy": "-" if self.accuracy is None else f"{self.accuracy:.2%}",
            "sparsity": f"{self.sparsity:.1%}",
            "moved": f"{self.moved:,}",
        }


class Progress(Protocol):
    """Shows a status; called a few times a second, and after each test with `tested`."""

    def __call__(self, status: Status, *, tested: bool = False) -> None:
        """Show `status`."""


@contextmanager
def bar(console: Console) -> Iterator[Progress]:
    """One bar of columns: step, loss, accuracy, sparsity, connections moved, time left."""
    columns: list[ProgressColumn] = [
        TextColumn("step {task.completed:,}/{task.total:,}"),
        *([BarColumn(bar_width=None)] if console.width >= 100 else []),  # the numbers come first
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
        TextColumn("loss [bold]{task.fields[loss]}[/]"),
        TextColumn("accuracy [bold]{task.fields[accuracy]}[/]"),
        TextColumn("sparsity {task.fields[sparsity]}"),
        TextColumn("moved {task.fields[moved]}"),
    ]
    with RichProgress(*columns, console=console, expand=True) as display:
        nothing: dict[str, Any] = Status(0, 0, 0.0).fields()
        task = display.add_task("train", total=None, visible=False, **nothing)

        def show(status: Status, *, tested: bool = False) -> None:
            fields: dict[str, Any] = status.fields()
            display.update(task, completed=status.step, total=status.total, visible=True, **fields)

        yield show


@contextmanager
def lines(console: Console, every: float = 10.0) -> Iterator[Progress]:
    """A plain line after each test, and otherwise every `every` seconds."""
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
        numbers = " · ".join(f"{name} {text}" for name, text in status.fields().items())
        console.print(
            f"step {status.step:,}/{status.total:,} · {numbers} · left {left}",
            highlight=False,
            soft_wrap=True,
        )

    yield show
