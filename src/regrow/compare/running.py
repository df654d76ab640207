"""Do the runs of a comparison: ordinary ``regrow train`` processes, a few at a time, resumed where they were."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from regrow.compare.grid import Run
from regrow.compare.progress import Show, shower
from regrow.errors import RegrowRuntimeError, require_count
from regrow.ops.compiling import cores
from regrow.training import Interrupted, RunFolder

GRACE = 60.0
"""Seconds that a run gets to write its checkpoint when the comparison is stopped."""


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
        Interrupted: after Ctrl-C or SIGTERM, when every run has written its checkpoint.
        RegrowRuntimeError: no run came to its end.
    """
    count = min(2, cores()) if workers is None else require_count("--workers", workers)
    threads = max(1, cores() // count)
    failures: list[Failure] = []
    with shower(console or Console(), runs) as show, _stopping() as stop:
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
                    children.append(_start(waiting.pop(0), threads))
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


def _start(run: Run, threads: int) -> _Child:
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    if run.begun:
        arguments = ["train", "--resume", str(run.folder)]
    else:
        own = [] if run.recipe.threads is not None else [f"threads={threads}"]
        arguments = ["train", *run.arguments, *own, f"out={run.folder}"]
    log = run.folder.parent / f"{run.folder.name}.log"
    # read when a process imports torch; more threads than the run's own would wait for one another
    environment = {**os.environ, "OMP_NUM_THREADS": str(run.recipe.threads or threads)}
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "regrow", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    return _Child(run, process, log, time.monotonic())


def _end(child: _Child, show: Show, failures: list[Failure]) -> None:
    if child.process.returncode == 0 and child.run.finished:
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
        child.process.terminate()  # Ctrl-C has reached them already; asked twice they do the same
    deadline = time.monotonic() + GRACE
    for child in children:
        try:
            child.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """Set when Ctrl-C or SIGTERM arrives; only the main thread can ask for signals."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: Any) -> None:
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def summary_of(run: Run) -> dict[str, Any]:
    """``summary.json`` of a finished run."""
    return RunFolder(run.folder).summary()
