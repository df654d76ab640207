"""Rows as tables, and how a call of ``regrow bench`` stands while it works."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.progress import Task

from regrow._text import table
from regrow.app.bench.rows import Case, Row
from regrow.app.training.progress import bars, say, time_left, width


def tables(rows: Sequence[Row], width: int | None = None) -> str:
    """Lay out a table for each kind of row, in their order, for a terminal of `width` characters or without a limit."""
    found: dict[str, list[list[str]]] = {}
    for row in rows:
        cells = row.cells()
        found.setdefault(row.title, [list(cells)]).append(list(cells.values()))
    return "\n\n".join("\n".join([title, *table(lines, width, numbers=1)]) for title, lines in found.items())


def show(rows: Sequence[Row]) -> None:
    """Print `rows` on standard output."""
    console = Console()
    say(console, tables(rows, width(console)) + "\n")


def steps(cases: Sequence[Case], console: Console) -> Iterator[Case]:
    """Yield the cases one by one, with a bar and the time left on `console`, or a line each without a terminal."""
    if console.is_terminal:

        def numbers(task: Task) -> list[str]:
            return [f"{task.completed:.0f}/{task.total:.0f}", f"left {time_left(task)}"]

        with bars(console, lambda task: task.description, numbers, transient=True) as bar:
            task = bar.add_task("", total=len(cases))
            for case in cases:
                bar.update(task, description=case.name)
                yield case
                bar.advance(task)
        return
    start = time.monotonic()
    for done, case in enumerate(cases):
        left = f"left {(time.monotonic() - start) / done * (len(cases) - done):.0f} s" if done else "left -"
        say(console, f"[{done + 1}/{len(cases)}] {case.name} · {left}")
        yield case
