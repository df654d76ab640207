"""What `make demo` runs: does it pay to let the topology evolve, and how much faster is sparse than dense?

A 784-1024-1024-10 network on all of Fashion-MNIST: dense once, and 98% and 99.5% sparse with a fixed topology
(Static) and with one that evolves (RigL), three seeds each: thirteen ordinary `regrow train` runs, as `regrow compare`
makes them, two at a time on a core each. Started again, it continues where it was; finished runs are not repeated.
Exits with 1 if at 99.5% RigL is not better than Static, or if RigL's first layer does not come to look at the centre
of the images.

    python examples/studies/demo.py [--runs FOLDER] [--seeds N] [key=value ...]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

from regrow.app.compare import Grid, plan, run_all, tabulate
from regrow.app.report import CentreAndBorder, mean_connections
from regrow.errors import RegrowError

LEVELS = {"98%": "fashion-wide", "99.5%": "fashion-wide-99.5"}
METHODS = {"static": "Static", "rigl": "RigL"}
HEAD = "sparsity  method  n   mean %  deviation   s a run   speed-up   connections a pixel: centre, border"


def looks(grid: Grid, method: str, when: str) -> CentreAndBorder:
    """Return the connections a pixel of the first layer at the centre and at the border, over the seeds."""
    maps = [mean_connections(run.folder)[when] for run in grid.runs if run.cell.method == method]
    return CentreAndBorder(*(statistics.mean(part) for part in zip(*maps, strict=True)))


def show_dense(grid: Grid) -> float:
    """Print the row of the dense network and return the seconds it took."""
    row = tabulate(grid).rows[0]
    print(f"{'0%':<9} {'dense':<7} {row.n}   {row.mean:6.2f}  {'-':>9}   {row.seconds:7.1f}   {1:7.1f}x")
    return row.seconds


def show(level: str, grid: Grid, dense_seconds: float) -> list[str]:
    """Print the rows of one level and return what does not hold."""
    rows = {row.cell.method: row for row in tabulate(grid).rows}
    for method, row in rows.items():
        first, last = looks(grid, method, "first"), looks(grid, method, "last")
        moved = "" if method == "static" else f" -> {last.centre:.1f}, {last.border:.1f}"
        deviation = "-" if row.deviation is None else f"{row.deviation:.2f}"
        times = f"{row.seconds:7.1f}   {dense_seconds / row.seconds:7.1f}x"
        figures = f"{row.n}   {row.mean:6.2f}  {deviation:>9}   {times}"
        print(f"{level:<9} {METHODS[method]:<7} {figures}   {first.centre:.1f}, {first.border:.1f}{moved}")
    failures = []
    if not last.centre > last.border:
        failures.append(
            f"at {level} RigL's map holds {last.centre:.2f} at the centre, {last.border:.2f} at the border"
        )
    static, rigl = rows["static"].mean, rows["rigl"].mean
    if level == "99.5%" and not rigl > static:
        failures.append(f"at 99.5% RigL's mean of {rigl:.2f} is not above Static's of {static:.2f}")
    return failures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/demo"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=3, help="seeds for each method and level")
    parser.add_argument("extra", nargs="*", metavar="key=value", help="recipe keys for all runs")
    options = parser.parse_args()
    start = time.monotonic()
    grids = {
        level: plan(
            recipe, list(METHODS), seeds=options.seeds, overrides=options.extra, folder=options.runs / recipe
        )
        for level, recipe in LEVELS.items()
    }
    dense = plan(
        "fashion-wide", ["dense"], seeds=1, overrides=options.extra, folder=options.runs / "fashion-wide"
    )
    runs = [run for grid in (dense, *grids.values()) for run in grid.runs]
    print(f"{len(runs)} runs in {options.runs}/; finished ones are not repeated", flush=True)
    for failure in run_all(runs):
        sys.exit(f"{failure.run} failed:\n{failure.reason}")
    print(f"\n{HEAD}")
    dense_seconds = show_dense(dense)
    failures = [failure for level, grid in grids.items() for failure in show(level, grid, dense_seconds)]
    print(
        "\nTraining times of one core each, tests left out. The two large layers are stored as their connections alone;"
        "\nthe speed-up is over the dense network's time in this same run."
    )
    print("\nPictures (the first layer's map first and last, the map over training, learning curves):")
    for run in runs:
        if run.cell.method == "rigl" and run.seed == 0:
            for picture in ("first-layer.png", "first-layer.gif", "curves.png"):
                if (run.folder / picture).is_file():
                    print(f"  {run.folder / picture}")
    print(f"\n{time.monotonic() - start:.0f} s in all")
    if failures:
        sys.exit("The demo did not show what it should:\n" + "\n".join(failures))


if __name__ == "__main__":
    try:
        main()
    except RegrowError as error:
        sys.exit(f"error: {error}")
