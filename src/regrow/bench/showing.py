"""Rows as tables, and how a call of ``regrow bench`` stands while it works."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from regrow.bench.rows import Case, Row

WIDTH = 150
"""Characters of a line where there is no terminal to say."""


def tables(rows: Sequence[Row]) -> list[Table]:
    """One table for each kind of row, in their order."""
    found: dict[str, Table] = {}
    for row in rows:
        cells = row.cells()
        if row.title not in found:
            table = Table(
                title=row.title, title_justify="left", box=None, pad_edge=False, header_style="bold"
            )
            for index, head in enumerate(cells):
                table.add_column(head, justify="right" if index else "left", no_wrap=True)
            found[row.title] = table
        found[row.title].add_row(*cells.values())
    return list(found.values())


def show(rows: Sequence[Row]) -> None:
    """Print `rows` on standard output."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    for table in tables(rows):
        console.print(table, markup=False)
        console.print()


def steps(cases: Sequence[Case], console: Console) -> Iterator[Case]:
    """The cases one after the other, with a bar and the time left on `console`, or a line each without a terminal."""
    if console.is_terminal:
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("left")]
        with Progress(*columns, TimeRemainingColumn(compact=True), console=console, transient=True) as bar:
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


def say(console: Console, text: str) -> None:
    """Print `text` as it is."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
