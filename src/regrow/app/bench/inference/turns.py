"""Engines take turns in running one network."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

from regrow.app.bench.inference.engines import COMPILED, ENGINES, Engine
from regrow.app.bench.inference.handed import hand_over
from regrow.app.bench.inference.networks import Network
from regrow.app.bench.inference.process import Process
from regrow.app.bench.inference.rows import Inference, Latency, LeftOut, Setting, best_dense
from regrow.app.bench.rows import Row, Settings
from regrow.errors import RegrowRuntimeError
from regrow.measure.timing import Watch

TURN = 0.1
"""Seconds of a turn."""
PAUSE = 0.02
"""Seconds after a turn, in which the threads of the engine that had it stop waiting for more work."""
ROUNDS = 3
"""Turns that each engine has at least."""


def installed(compiled: bool) -> tuple[Engine, ...]:
    """Return the engines that are installed, torch.compile among them if `compiled`."""
    return tuple(e for e in ENGINES if e.version is not None and (compiled or e is not COMPILED))


def not_installed() -> list[LeftOut]:
    """Return a row for each engine that is not installed."""
    missing = [engine for engine in ENGINES if engine.version is None]
    return [LeftOut("all", each.name, f"{each.package} is not installed") for each in missing]


def measure(
    network: Network,
    sparsity: float,
    batches: Sequence[int],
    threads: Sequence[int],
    settings: Settings,
    among: Sequence[Engine],
) -> list[Row]:
    """Measure `network` on each of `among`, for each batch and number of threads."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="regrow-bench-") as name:
        folder = Path(name)
        failed = hand_over(network, sparsity, batches, among, folder)
        rows += [LeftOut(str(network), e.name, failed[e.file]) for e in among if e.file in failed]
        handed = [engine for engine in among if engine.file not in failed]
        for count in threads:
            with started(handed, folder, count) as processes:
                for batch in sorted(batches):
                    setting = (str(network), sparsity, batch, count)
                    rows += block(setting, processes, settings.seconds, folder)
    return rows


@contextmanager
def started(among: Sequence[Engine], folder: Path, threads: int) -> Iterator[list[Process]]:
    """Hold a process for each engine."""
    with ExitStack() as stack:
        yield [stack.enter_context(closing(Process(engine, folder, threads))) for engine in among]


def block(
    setting: tuple[str, float, int, int], processes: list[Process], seconds: float, folder: Path
) -> list[Row]:
    """Measure one batch size: load it everywhere, then let the engines take turns."""
    name, _, batch, _ = setting
    left_out: list[Row] = []
    differences: dict[Process, float] = {}
    for process in processes:
        try:
            differences[process] = process.load(batch)
        except RegrowRuntimeError as error:
            left_out.append(LeftOut(f"{name}, batch {batch}", process.engine.name, str(error)))
    used, watch = {process: process.seconds for process in differences}, Watch()
    times: dict[Process, list[float]] = {process: [] for process in differences}
    start, done = time.perf_counter(), 0
    while times and (done < ROUNDS or time.perf_counter() - start < seconds * len(times)):
        for process in list(times):
            try:
                times[process] += process.turn(min(TURN, seconds))
            except RegrowRuntimeError as error:
                left_out.append(LeftOut(f"{name}, batch {batch}", process.engine.name, str(error)))
                del times[process]
            time.sleep(PAUSE)
        done += 1
    load = watch.load(sum(process.seconds - before for process, before in used.items()))
    rows = [
        Inference(
            Setting(*setting, load),
            process.engine.name,
            process.engine.version or "",
            process.engine.precision,
            Latency.of(times[process]),
            (folder / process.engine.file).stat().st_size,
            process.peak,
            differences[process],
        )
        for process in times
    ]
    return [*(replace(row, rival=best_dense(rows, row.precision)) for row in rows), *left_out]
