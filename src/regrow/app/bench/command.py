"""What ``regrow bench`` does: look at the machine, measure case by case, show, save."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from regrow._files import write_atomically
from regrow.app.bench.inference import Inference, LeftOut
from regrow.app.bench.plan import Plan
from regrow.app.bench.rows import Row
from regrow.app.bench.scale import Fit, Scale, fit
from regrow.app.bench.showing import show, steps
from regrow.app.training import say
from regrow.errors import RegrowValueError
from regrow.measure.machine import busiest, describe
from regrow.measure.timing import Load, load
from regrow.ops.backends import why_reference

NOTES = (
    "±: half the distance of the quartiles. e, l, c: the best dense way was eager, channels-last, compiled. "
    "utilisation: useful FLOP/s "
    "of the sparse side over FLOP/s of the dense one. others: share of all cores that other processes used meanwhile."
)
DEPLOYED = (
    "faster: than the best dense engine of the same class, int8 or floating point. difference: the largest from "
    "torch's outputs, over the largest output; what is WRONG is compared with none. others: share of all cores that "
    "other processes used meanwhile."
)


def bench(
    plan: Plan, arguments: Sequence[str], *, wait: float = 0.0, out: Path | None = None, json_: bool = False
) -> int:
    """Run the command.

    Args:
        plan: what to measure.
        arguments: those of ``regrow``, for the record.
        wait: up to how many seconds it waits for a quiet machine.
        out: a file for the JSON document, brought up to date after every case.
        json_: print the JSON document instead of tables.

    Returns:
        The exit code: 1 where a case could not be measured, 130 after Ctrl-C; the rows that are done stay.

    Raises:
        RegrowValueError: a file in a folder that is not there.
    """
    if out is not None and not out.absolute().parent.is_dir():
        raise RegrowValueError(f"`--out` {out}: there is no folder {out.absolute().parent}")
    console = Console(stderr=True)
    torch.set_num_threads(plan.settings.threads)
    machine = describe(arguments)
    say(console, heading(machine, str(plan.settings.dtype).removeprefix("torch.")))
    before = look(console, wait)
    rows: list[Row] = []
    failures: list[str] = []
    interrupted = False

    def document() -> dict[str, Any]:
        return {
            "machine": machine,
            "load": before.to_dict(),
            "rows": [{"kind": type(row).__name__.lower(), **row.to_dict()} for row in [*rows, *fits(rows)]],
            "left_out": failures,
            "interrupted": interrupted,
        }

    try:
        for case in steps(plan.cases, console):
            try:
                rows += case.measure()
            except (RuntimeError, MemoryError) as error:  # torch's, where there is not memory enough
                failures.append(f"{case.name}: {error}")
                say(console, f"left out: {failures[-1]}")
            if out is not None:
                save(document(), out)
    except KeyboardInterrupt:
        interrupted = True
        say(console, "stopped; the rows that are done follow")
    if out is not None:
        save(document(), out)
    if json_:
        print(json.dumps(document(), indent=2))
    else:
        show(sorted([*rows, *fits(rows)], key=lambda row: isinstance(row, LeftOut)))
        say(Console(), "\n".join(notes(rows)))
        if reference := why_reference([torch.empty(0, dtype=plan.settings.dtype)]):
            say(Console(), f"These are times without kernels: {reference}")
    return 130 if interrupted else int(bool(failures))


def notes(rows: Sequence[Row]) -> list[str]:
    """Return what the columns of the tables mean."""
    inference = {isinstance(row, Inference) for row in rows if not isinstance(row, LeftOut)}
    return [text for text, of_inference in ((NOTES, False), (DEPLOYED, True)) if of_inference in inference]


def heading(machine: dict[str, Any], dtype: str) -> str:
    """Return the conditions in one line."""
    threads = machine["threads"]
    return (
        f"{machine['processor']}, {threads} thread{'s' if threads > 1 else ''}, {dtype}, torch "
        f"{machine['packages']['torch']}, kernels {machine['kernels'] or 'none: ' + machine['no_kernels_because']}"
    )


def look(console: Console, wait: float) -> Load:
    """Look whether the machine is quiet, for up to `wait` seconds, and say so where it is not."""
    deadline = time.monotonic() + wait
    found = load()
    while not found.quiet and time.monotonic() < deadline:
        found = load(1.0)
    say(console, str(found))
    if not found.quiet:
        who = ", ".join(map(str, busiest())) or "nobody who can be named"
        say(
            console,
            f"THE MACHINE IS NOT QUIET ({who}): times will be too long, dense ones most.\n"
            "Stop the others, or let `--wait SECONDS` wait for them.",
        )
    return found


def fits(rows: Sequence[Row]) -> list[Fit]:
    """Return the fitted exponents of each series of `Scale` rows."""
    series: dict[tuple[str, int], list[Scale]] = {}
    for row in rows:
        if isinstance(row, Scale):
            series.setdefault((row.series, row.batch), []).append(row)
    return [fit(members) for members in series.values() if len(members) > 1]


def save(document: dict[str, Any], file: Path) -> None:
    """Write the JSON document to `file`, whole or not at all."""
    text = json.dumps(document, indent=2) + "\n"
    write_atomically(file, lambda path: path.write_text(text, encoding="utf-8"))
