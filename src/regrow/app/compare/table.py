"""From finished runs to the rows of a table."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

import regrow
from regrow.app.compare.grid import Cell, Grid, Run
from regrow.app.compare.running import summary_of
from regrow.app.recipes import Recipe, find, method_of
from regrow.app.training import RunFolder
from regrow.errors import RegrowError, RegrowRuntimeError


@dataclass(frozen=True)
class Row:
    """One condition: what its runs came to."""

    cell: Cell
    accuracies: tuple[float, ...]
    """Of each finished run, in percent."""
    connections: float | None
    """At the end, those of dense layers included; biases and norms are not connections."""
    training: float | None
    """FLOPs of the whole training relative to dense training of the recipe's own length; measured."""
    test: float | None
    """FLOPs of a test relative to the dense network; counted."""
    length: float
    """Examples seen relative to the recipe's own length."""
    seconds: float
    time_is: str
    memory: float | None
    """Peak memory of the process in megabytes, the largest of the runs."""
    needs_dense: bool
    nll: float | None = None
    """Negative log likelihood of what is tested, mean of the runs."""
    ece: float | None = None
    """Expected calibration error, mean of the runs."""
    networks: int = 1
    """How many networks a test runs: the members of an ensemble."""
    curve: tuple[tuple[float, float], ...] = ()
    """Seconds of training until each test of the runs, and accuracy in percent then, means of the runs."""

    @property
    def n(self) -> int:
        return len(self.accuracies)

    @property
    def mean(self) -> float:
        return statistics.mean(self.accuracies)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation; None for one run."""
        return statistics.stdev(self.accuracies) if self.n > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        rest = {
            key: value for key, value in asdict(self).items() if key not in ("cell", "accuracies", "curve")
        }
        return {
            "method": self.cell.method,
            "multiplier": self.cell.multiplier,
            **dict(self.cell.values),
            "n": self.n,
            "mean": self.mean,
            "deviation": self.deviation,
            **rest,
            "accuracies": list(self.accuracies),
        }


@dataclass(frozen=True)
class Table:
    """The rows of a comparison, and how its runs were made."""

    grid: Grid
    rows: tuple[Row, ...]
    machine: dict[str, Any]
    """``environment.json`` of one of the runs, with device and threads."""


def tabulate(grid: Grid) -> Table:
    """The table of the runs of `grid` that are finished.

    Raises:
        RegrowRuntimeError: no run is finished.
    """
    finished = [run for run in grid.runs if run.finished]
    if not finished:
        raise RegrowRuntimeError(f"no run of the comparison in {grid.folder} is finished")
    dense = reference(grid.base.recipe, finished)
    cells: dict[Cell, list[Run]] = {}
    for run in finished:
        cells.setdefault(run.cell, []).append(run)
    rows = tuple(_row(cell, runs, grid.base.recipe, dense) for cell, runs in cells.items())
    folder, summary = RunFolder(finished[0].folder), summary_of(finished[0])
    machine = folder.read("environment.json") if (folder.path / "environment.json").is_file() else {}
    known = {key: summary.get(key) for key in ("device", "threads", "reference")}
    return Table(grid, rows, {**machine, **known})


def _row(cell: Cell, runs: Sequence[Run], base: Recipe, dense: float | None) -> Row:
    summaries = [summary_of(run) for run in runs]
    seen = summaries[0]["steps"] * runs[0].recipe.batch_size
    epoch = summaries[0]["steps_per_epoch"] * runs[0].recipe.batch_size
    length = seen / (base.steps * base.batch_size if base.steps else (base.epochs or 0) * epoch)
    flops = [summary.get("flops") for summary in summaries]
    training = [f["training"] for f in flops if f]
    test = [f["test"] for f in flops if f]
    memory = [m for summary in summaries if (m := summary.get("peak_memory_megabytes"))]
    return Row(
        cell,
        tuple(100 * summary["accuracy"] for summary in summaries),
        statistics.mean(f["connections"] for f in flops if f) if training else None,
        statistics.mean(training) / (3 * dense) * length if training and dense else None,
        statistics.mean(test) / dense if test and dense else None,
        length,
        statistics.mean(summary["seconds"] for summary in summaries),
        summaries[0]["time_is"],
        max(memory, default=None),
        method_of(runs[0].recipe.method).needs_dense,
        _mean(summary.get("nll") for summary in summaries),
        _mean(summary.get("ece") for summary in summaries),
        summaries[0].get("networks", 1),
        _curve(runs),
    )


def _curve(runs: Sequence[Run]) -> tuple[tuple[float, float], ...]:
    """Of the tests that all runs have; none where an older version did not note their times."""
    tests = [
        [
            (record["seconds"], 100 * record["accuracy"])
            for record in RunFolder(run.folder).records("metrics.jsonl")
            if record["kind"] == "test" and "seconds" in record
        ]
        for run in runs
    ]
    return tuple(
        (statistics.fmean(at for at, _ in same), statistics.fmean(accuracy for _, accuracy in same))
        for same in zip(*tests, strict=False)
    )


def _mean(values: Iterable[float | None]) -> float | None:
    """Of numbers that runs of an older version may not have."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def reference(base: Recipe, runs: Iterable[Run]) -> float | None:
    """FLOPs of a forward pass of the recipe's own network, dense, for one example."""
    for run in runs:
        same = run.recipe.model == base.model and not method_of(run.recipe.method).is_narrow
        if (flops := summary_of(run).get("flops")) and same:
            return float(flops["dense"])
    shape = RunFolder(next(iter(runs)).folder).read("data.json")["shape"]
    state = torch.get_rng_state()
    try:
        model = find("model", base.model)(**base.model.options)
        return float(regrow.costs(model, torch.zeros(1, *shape)).flops["dense"])
    except RegrowError:
        return None
    finally:
        torch.set_rng_state(state)


NEAR = 0.5
"""Points below dense that times are told for."""


@dataclass(frozen=True)
class Reached:
    """When a condition first came within `NEAR` points of what dense came to in the end."""

    row: Row
    accuracy: float
    seconds: float | None
    """Of training; None where it never did."""

    def __str__(self) -> str:
        time = "never" if self.seconds is None else f"{self.seconds:.1f} s of training"
        return f"{self.row.cell} to {self.accuracy:.2f}% ({NEAR:g} points below dense): {time}"


def reached(rows: Sequence[Row]) -> list[Reached]:
    """For each condition, the best dense one being the measure; nothing where dense was not trained."""
    dense = max((row for row in rows if row.cell.method == "dense"), key=lambda row: row.mean, default=None)
    if dense is None:
        return []
    wanted = dense.mean - NEAR
    return [
        Reached(row, wanted, next((at for at, accuracy in row.curve if accuracy >= wanted), None))
        for row in rows
        if row.curve
    ]


@dataclass(frozen=True)
class Difference:
    """How far one condition is above another."""

    above: Row
    below: Row
    points: float
    error: float
    """Standard error of the difference, in points."""

    def __str__(self) -> str:
        errors = f"{self.points / self.error:+.1f} standard errors" if self.error else "no deviation"
        return f"{self.above.cell} against {self.below.cell}: {self.points:+.2f} points, {errors}"


def differences(rows: Sequence[Row]) -> list[Difference]:
    """Each condition against that of the first method with the same length and values, where both have deviations."""
    result = []
    for row in rows:
        for first in rows:
            alike = (first.cell.multiplier, first.cell.values) == (row.cell.multiplier, row.cell.values)
            if alike and first.cell.method == rows[0].cell.method != row.cell.method:
                variances = [one.deviation**2 / one.n for one in (row, first) if one.deviation is not None]
                if len(variances) == 2:
                    result.append(Difference(row, first, row.mean - first.mean, sum(variances) ** 0.5))
    return result
