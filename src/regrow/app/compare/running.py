"""Do the runs of a comparison: ordinary ``regrow train`` processes, a few at a time, resumed where they were."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from regrow.app.compare.grid import Run
from regrow.app.compare.progress import Show, shower
from regrow.app.training import Interrupted, Leash, RunFolder, stop_signals
from regrow.arguments import require_count
from regrow.errors import RegrowRuntimeError
from regrow.ops.compiling import cores

GRACE = 60.0
"""Seconds that a run gets to write its checkpoint when the comparison is stopped."""
NOTICE = "stopping when every run has written its checkpoint; Ctrl-C again stops at once, without"


@dataclass(frozen=True)
class Failure:
    """A run that did not come to its end, and what it said."""

    run: Run
    reason: str


@dataclass
class _Child:
    run: Run
    process: subprocess.Popen[bytes]
    log: Path
    start: float


def run_all(
    runs: Sequence[Run], *, workers: int | None = None, console: Console | None = None
) -> list[Failure]:
    """Do `runs`, `workers` at a time; finished ones are not repeated, others continue from their checkpoint.

    A run that fails, for example because its training diverges, does not stop the others.

    Args:
        runs: of `plan`.
        workers: processes at a time, which share the cores; default 2, or 1 on one core.
        console: where one line a run goes, and a bar for each on a terminal.

    Returns:
        The runs that failed.

    Raises:
        Interrupted: after Ctrl-C, SIGTERM or SIGHUP, when every run has written its checkpoint.
        RegrowRuntimeError: no run came to its end.
    """
    count = min(2, cores()) if workers is None else require_count("--workers", workers)
    threads = max(1, cores() // count)
    failures: list[Failure] = []
    # the runs end with this process, even with a killed one
    with (
        shower(console or Console(), runs) as show,
        stop_signals(NOTICE) as stop,
        closing(Leash()) as leash,
    ):
        waiting = []
        for run in runs:
            if run.finished:
                show.ended(run, "was finished before")
            else:
                waiting.append(run)
        children: list[_Child] = []
        try:
            while waiting or children:
                while waiting and len(children) < count and not stop.is_set():
                    children.append(_start(waiting.pop(0), threads, leash))
                stop.wait(0.1)
                for child in [child for child in children if child.process.poll() is not None]:
                    children.remove(child)
                    _end(child, show, failures)
                show.running([child.run for child in children])
                if stop.is_set():
                    break
        finally:
            _stop(children)
        if stop.is_set():
            raise Interrupted("stopped; the same command continues where it was")
    if runs and len(failures) == len(runs):
        raise RegrowRuntimeError(
            f"no run came to its end; the first, {failures[0].run}, said:\n{failures[0].reason}"
        )
    return failures


def _start(run: Run, threads: int, leash: Leash) -> _Child:
    if run.begun:
        arguments = ["train", "--resume", str(run.folder)]
    else:
        own = [] if run.recipe.threads is not None else [f"threads={threads}"]
        arguments = ["train", *run.arguments, *own, f"out={run.folder}"]
    log = run.folder.parent / f"{run.folder.name}.log"
    # read when a process imports torch; more threads than the run's own would wait for one another
    environment = {**os.environ, "OMP_NUM_THREADS": str(run.recipe.threads or threads)}
    with RunFolder(run.folder).disk(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        stream = log.open("w")
    with stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "regrow", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            **leash.options(environment),
        )
    return _Child(run, process, log, time.monotonic())


def _end(child: _Child, show: Show, failures: list[Failure]) -> None:
    if child.run.finished:  # whatever happened after that
        show.ended(child.run, f"{time.monotonic() - child.start:.0f} s")
        return
    text = "\n" + child.log.read_text(encoding="utf-8", errors="replace").strip()
    place = text.rfind("\nerror: ")
    said = text[place + len("\nerror: ") :] if place >= 0 else text.rpartition("\n")[2]  # of a traceback
    code = child.process.returncode
    reason = f"{said or f'it ended with code {code}'}\nAll it printed is in {child.log}."
    failures.append(Failure(child.run, reason))
    show.failed(child.run, reason)


def _stop(children: Sequence[_Child]) -> None:
    """Ask the processes that still run to write their checkpoint, and wait for them."""
    for child in children:
        child.process.terminate()  # signals of the terminal have reached them already; asked twice they do the same
    deadline = time.monotonic() + GRACE
    try:
        for child in children:
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.1, deadline - time.monotonic()))
    finally:  # also after a second Ctrl-C
        for child in children:
            child.process.kill()
            child.process.wait()


def summary_of(run: Run) -> dict[str, Any]:
    """Return ``summary.json`` of a finished run."""
    return RunFolder(run.folder).summary()
