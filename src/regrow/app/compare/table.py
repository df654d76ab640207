"""From finished runs to the rows of a table."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

import regrow
from regrow.app.compare.grid import Cell, Grid, Run
from regrow.app.compare.running import summary_of
from regrow.app.recipes import Recipe, find, method_of
from regrow.app.tasks import CLASSIFICATION, Measures, Metric, measures_of
from regrow.app.training import RunFolder
from regrow.errors import RegrowError, RegrowRuntimeError


@dataclass(frozen=True)
class Row:
    """One condition: what its runs came to."""

    cell: Cell
    values: tuple[float, ...]
    """The best metric of each finished run, as it is shown: accuracies in percent."""
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
    further: Mapping[str, float | None] = field(default_factory=dict)
    """The other metrics of the task, means of the runs."""
    networks: int = 1
    """How many networks a test runs: the members of an ensemble."""
    curve: tuple[tuple[float, float], ...] = ()
    """Seconds of training until each test of the runs, and the best metric then, means of the runs."""
    metric: Metric = CLASSIFICATION.best
    """What the values are."""

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation; None for one run."""
        return statistics.stdev(self.values) if self.n > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings."""
        apart = ("cell", "values", "further", "networks", "curve", "metric")
        rest = {key: value for key, value in asdict(self).items() if key not in apart}
        return {
            "method": self.cell.method,
            "multiplier": self.cell.multiplier,
            **dict(self.cell.values),
            "n": self.n,
            "mean": self.mean,
            "deviation": self.deviation,
            **rest,
            **self.further,
            "networks": self.networks,
            self.metric.values: list(self.values),
        }


@dataclass(frozen=True)
class Table:
    """The rows of a comparison, and how its runs were made."""

    grid: Grid
    rows: tuple[Row, ...]
    machine: dict[str, Any]
    """``environment.json`` of one of the runs, with device and threads."""
    measures: Measures = CLASSIFICATION


def tabulate(grid: Grid) -> Table:
    """Return the table of the runs of `grid` that are finished.

    Raises:
        RegrowRuntimeError: no run is finished, or some are of another task than others.
    """
    finished = [run for run in grid.runs if run.finished]
    if not finished:
        raise RegrowRuntimeError(f"no run of the comparison in {grid.folder} is finished")
    measures = measures_of(summary_of(finished[0]))
    for run in finished:
        other = measures_of(summary_of(run))
        if other != measures:
            raise RegrowRuntimeError(
                f"{finished[0]} is of task {measures.task} and {run} of {other.task}\n"
                "Compare them apart, with `data` of one task each."
            )
    dense = reference(grid.base.recipe, finished)
    cells: dict[Cell, list[Run]] = {}
    for run in finished:
        cells.setdefault(run.cell, []).append(run)
    rows = tuple(_row(cell, runs, grid.base.recipe, dense, measures) for cell, runs in cells.items())
    folder, summary = RunFolder(finished[0].folder), summary_of(finished[0])
    machine = folder.read("environment.json") if (folder.path / "environment.json").is_file() else {}
    known = {key: summary.get(key) for key in ("device", "threads", "reference")}
    return Table(grid, rows, {**machine, **known}, measures)


def _row(cell: Cell, runs: Sequence[Run], base: Recipe, dense: float | None, measures: Measures) -> Row:
    summaries, best = [summary_of(run) for run in runs], measures.best
    seen = summaries[0]["steps"] * runs[0].recipe.batch_size
    epoch = summaries[0]["steps_per_epoch"] * runs[0].recipe.batch_size
    length = seen / (base.steps * base.batch_size if base.steps else (base.epochs or 0) * epoch)
    flops = [summary.get("flops") for summary in summaries]
    training = [f["training"] for f in flops if f]
    test = [f["test"] for f in flops if f]
    memory = [m for summary in summaries if (m := summary.get("peak_memory_megabytes"))]
    return Row(
        cell,
        tuple(best.shown(summary[best.name]) for summary in summaries),
        statistics.mean(f["connections"] for f in flops if f) if training else None,
        statistics.mean(training) / (3 * dense) * length if training and dense else None,
        statistics.mean(test) / dense if test and dense else None,
        length,
        statistics.mean(summary["seconds"] for summary in summaries),
        summaries[0]["time_is"],
        max(memory, default=None),
        method_of(runs[0].recipe.method).needs_dense,
        {metric.name: _mean(one.get(metric.name) for one in summaries) for metric in measures.further},
        summaries[0].get("networks", 1),
        _curve(runs, best),
        best,
    )


def _curve(runs: Sequence[Run], best: Metric) -> tuple[tuple[float, float], ...]:
    """Return the curve of the tests that all runs have; none if an older version did not note their times."""
    tests = [
        [
            (record["seconds"], best.shown(record[best.logged]))
            for record in RunFolder(run.folder).records("metrics.jsonl")
            if record["kind"] == "test" and "seconds" in record
        ]
        for run in runs
    ]
    return tuple(
        (statistics.fmean(at for at, _ in same), statistics.fmean(value for _, value in same))
        for same in zip(*tests, strict=False)
    )


def _mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of numbers that runs of an older version may lack."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def reference(base: Recipe, runs: Iterable[Run]) -> float | None:
    """Return the FLOPs of a forward pass of the recipe's own network, dense, for one example."""
    for run in runs:
        same = run.recipe.model == base.model and not method_of(run.recipe.method).is_narrow
        if (flops := summary_of(run).get("flops")) and same:
            return float(flops["dense"])
    about = RunFolder(next(iter(runs)).folder).read("data.json")
    example = torch.zeros(1, *about["shape"], dtype=torch.int64 if "unit" in about else None)
    state = torch.get_rng_state()
    try:
        model = find("model", base.model)(**base.model.options)
        return float(regrow.costs(model, example).flops["dense"])
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
    value: float
    seconds: float | None
    """Of training; None where it never did."""

    def __str__(self) -> str:
        time = "never" if self.seconds is None else f"{self.seconds:.1f} s of training"
        side = "below" if self.row.metric.higher_is_better else "above"
        return f"{self.row.cell} to {self.value:.2f}% ({NEAR:g} points {side} dense): {time}"


def reached(rows: Sequence[Row]) -> list[Reached]:
    """Return what each condition reached, measured by the best dense one.

    Nothing where dense was not trained, or where what is measured is not in percent and has no points.
    """
    trained = [row for row in rows if row.cell.method == "dense"]
    metric = rows[0].metric if rows else None
    if not trained or metric is None or not metric.percent:
        return []
    wanted = metric.best(trained, lambda row: row.mean).mean - (NEAR if metric.higher_is_better else -NEAR)
    return [
        Reached(row, wanted, next((at for at, value in row.curve if not metric.better(wanted, value)), None))
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
        metric = self.above.metric
        points = f"{metric.number(self.points, '+')}{metric.points}"
        return f"{self.above.cell} against {self.below.cell}: {points}, {errors}"


def differences(rows: Sequence[Row]) -> list[Difference]:
    """Return each condition against that of the first method with the same length and values, where both have
    deviations.
    """
    result = []
    for row in rows:
        for first in rows:
            alike = (first.cell.multiplier, first.cell.values) == (row.cell.multiplier, row.cell.values)
            if alike and first.cell.method == rows[0].cell.method != row.cell.method:
                variances = [one.deviation**2 / one.n for one in (row, first) if one.deviation is not None]
                if len(variances) == 2:
                    result.append(Difference(row, first, row.mean - first.mean, sum(variances) ** 0.5))
    return result
