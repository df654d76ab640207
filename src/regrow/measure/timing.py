"""How long things take, and whether the machine is quiet enough to say so: `interleaved`, `load`.

Import path: ``regrow.measure.timing``. The standard library and torch only.

    >>> took = interleaved({"sum": lambda: sum(range(100)), "len": lambda: len(range(100))}, seconds=0.01)
    >>> took["sum"].median > took["len"].median
    True
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from regrow.arguments import require_count, require_function, require_mapping, require_positive
from regrow.errors import RegrowValueError

TURN = 0.02
"""Seconds that a way runs before the next one has its turn: time enough for its data to come into the caches."""

QUIET = 0.05
"""Share of all cores' time that other processes may use on a quiet machine."""


@dataclass(frozen=True)
class Timing:
    """The times of one way, in seconds: median and quartiles of so many runs."""

    median: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """Return the timing of these runs, at least one."""
        if len(seconds) == 1:
            return cls(seconds[0], seconds[0], seconds[0], 1)
        low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
        return cls(median, low, high, len(seconds))

    @property
    def spread(self) -> float:
        """The distance of the quartiles, as a share of the median."""
        return (self.high - self.low) / self.median if self.median else 0.0


def interleaved(
    ways: Mapping[str, Callable[[], object]], *, seconds: float = 1.0, rounds: int = 3
) -> dict[str, Timing]:
    """Return how long each of several ways to do something takes, measured in turns so that a disturbance meets
    all of them.

    Args:
        ways: functions without arguments, by name; each is called twice before anything is timed. What they start on
            an accelerator is waited for.
        seconds: how long all ways together are measured.
        rounds: how many turns each way has at least, however long they take.

    Raises:
        RegrowValueError: no way, a negative time, or less than one round.
    """
    rounds, seconds = require_count("rounds", rounds), require_positive("seconds", seconds, zero=True)
    if not require_mapping("ways", ways, "a dictionary {name: function}"):
        raise RegrowValueError("`ways` must hold a way, got none")
    for name, way in ways.items():
        require_function(f"ways[{name!r}]", way)
    for way in ways.values():
        way()
        way()
    times: dict[str, list[float]] = {name: [] for name in ways}
    start, done = time.perf_counter(), 0
    while done < rounds or time.perf_counter() - start < seconds:
        for name, way in ways.items():
            times[name] += turn(way)
        done += 1
    return {name: Timing.of(found) for name, found in times.items()}


def turn(way: Callable[[], object], seconds: float = TURN) -> list[float]:
    """Return the times of the calls of `way` in one turn of so many seconds, but for the first where there are more:
    it finds the caches cold.
    """
    found: list[float] = []
    _wait()
    start = end = time.perf_counter()
    while end - start < seconds:
        begin = time.perf_counter()
        way()
        _wait()
        end = time.perf_counter()
        found.append(end - begin)
    return found[1:] or found


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Load:
    """How busy the machine was while somebody looked."""

    average: float
    """Of the last minute: processes that ran or waited for a core, this one included."""
    cores: int
    others: float
    """Share of the time of all cores that other processes used, in [0, 1]."""

    @property
    def quiet(self) -> bool:
        """Whether times measured meanwhile can be trusted."""
        return self.others < QUIET

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers."""
        return {**asdict(self), "quiet": self.quiet}

    def __str__(self) -> str:
        return f"load {self.average:.2f} on {self.cores} cores, others use {self.others:.0%} of them"


class Watch:
    """Watches what other processes use from now on."""

    def __init__(self) -> None:
        self._start = _clocks()

    def load(self, children: float = 0.0) -> Load:
        """Return the load from then to now; children of this process that have ended count as its own, and so do
        `children`: seconds of core time that others have used since.

        Where there is no /proc/stat, what others use is estimated from the load average.
        """
        average, cores = os.getloadavg()[0], os.cpu_count() or 1
        used, own, elapsed = (end - start for end, start in zip(_clocks(), self._start, strict=True))
        own += children
        if used:
            others = (used - own) / (elapsed * cores) if elapsed else 0.0
        else:
            others = average / cores - (own / (elapsed * cores) if elapsed else 0.0)
        return Load(average, cores, min(max(others, 0.0), 1.0))


def load(seconds: float = 0.5) -> Load:
    """Return the load of the machine, looked at for so long; this process sleeps meanwhile."""
    seconds, watch = require_positive("seconds", seconds, zero=True), Watch()
    time.sleep(seconds)
    return watch.load()


def _clocks() -> tuple[float, float, float]:
    """Return the seconds of core time that all processes have used (0 where that is unknown), this one's, and the
    clock's.
    """
    times = os.times()
    own = times.user + times.system + times.children_user + times.children_system
    stat = Path("/proc/stat")
    if not stat.is_file():
        return 0.0, own, times.elapsed
    user, nice, system, _, _, *rest = map(int, stat.read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK"), own, times.elapsed
