"""What `make demo` runs: does it pay to let the topology evolve?

A 784-300-100-10 network on all of Fashion-MNIST, 98% and 99.5% sparse, with a fixed topology (Static) and with
one that evolves (RigL), three seeds each: twelve ordinary `regrow train` runs, two at a time with one thread
each. Started again, it continues where it was; finished runs are not repeated. Exits with 1 if at 99.5% RigL is
not better than Static, or if RigL's first layer does not come to look at the centre of the images.

    python examples/demo.py [--runs FOLDER] [--seeds N] [key=value ...]
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from regrow.report import mean_connections

LEVELS = {"98%": "fashion-mlp", "99.5%": "fashion-mlp-99.5"}
METHODS = {"Static": "static", "RigL": "rigl"}
WORKERS = 2


@dataclass(frozen=True)
class Run:
    """One training run of the comparison."""

    level: str
    method: str
    seed: int
    runs: Path
    extra: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return self.runs / f"{LEVELS[self.level]}-{METHODS[self.method]}-seed{self.seed}"

    @property
    def arguments(self) -> list[str]:
        keys = [f"method={METHODS[self.method]}", f"seed={self.seed}", "threads=1", f"out={self.folder}"]
        return ["train", LEVELS[self.level], *keys, *self.extra]

    def finished(self) -> bool:
        return (self.folder / "summary.json").is_file()

    def do(self) -> None:
        """Start the run, or continue it; nothing where it is finished. Raises CalledProcessError."""
        made_by = self.folder / "environment.json"
        if made_by.is_file() and json.loads(made_by.read_text())["command"] != shlex.join(
            ["regrow", *self.arguments]
        ):
            shutil.rmtree(self.folder)  # another length or other keys: no result of this comparison
        if self.finished():
            return
        if not made_by.is_file():  # killed before it began
            shutil.rmtree(self.folder, ignore_errors=True)
        arguments = ["train", "--resume", str(self.folder)] if self.folder.exists() else self.arguments
        self.runs.mkdir(parents=True, exist_ok=True)
        with (self.runs / f"{self.folder.name}.log").open("w") as log:
            command = [sys.executable, "-m", "regrow", *arguments]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=True)

    def result(self) -> dict[str, float]:
        result: dict[str, float] = json.loads((self.folder / "summary.json").read_text())
        return result


def train_all(runs: list[Run]) -> None:
    """Do all runs, `WORKERS` at a time, with one line for each as it ends."""
    start, done = time.monotonic(), 0

    def do(run: Run) -> None:
        nonlocal done
        before = run.finished()
        try:
            run.do()
        except subprocess.CalledProcessError as error:
            log = run.runs / f"{run.folder.name}.log"
            sys.exit(f"{shlex.join(map(str, error.cmd))} failed:\n{log.read_text()[-2000:]}")
        done += 1
        how = "was finished before" if before else f"{time.monotonic() - start:.0f} s since the start"
        accuracy = run.result()["accuracy"]
        print(
            f"[{done:2}/{len(runs)}] {run.level:>5} {run.method:<6} seed {run.seed}: {accuracy:.2%}   ({how})",
            flush=True,
        )

    pool = ThreadPoolExecutor(WORKERS)
    try:
        for waiting in [pool.submit(do, run) for run in runs]:
            waiting.result()
    except KeyboardInterrupt:
        sys.exit("stopped; start again to continue where it was")  # Ctrl-C reached the runs too: they save
    finally:
        pool.shutdown(cancel_futures=True)


def compare(runs: list[Run]) -> list[str]:
    """Print the comparison and return what does not hold."""
    failures, mean = [], {}
    print(
        f"\n{'sparsity':<9} {'method':<7} n   mean %  deviation   s a run   connections a pixel: centre, border"
    )
    for level in LEVELS:
        for method in METHODS:
            some = [run for run in runs if (run.level, run.method) == (level, method)]
            accuracy = [100 * run.result()["accuracy"] for run in some]
            seconds = statistics.mean(run.result()["seconds"] for run in some)
            mean[level, method] = statistics.mean(accuracy)
            deviation = f"{statistics.stdev(accuracy):.2f}" if len(accuracy) > 1 else "-"
            maps = [mean_connections(run.folder) for run in some]
            first, last = (
                [statistics.mean(part) for part in zip(*(one[when] for one in maps), strict=True)]
                for when in ("first", "last")
            )
            moved = f"{first[0]:.1f}, {first[1]:.1f}" + (
                f" -> {last[0]:.1f}, {last[1]:.1f}" if method != "Static" else ""
            )
            figures = f"{len(some)}   {mean[level, method]:6.2f}  {deviation:>9}   {seconds:7.1f}   {moved}"
            print(f"{level:<9} {method:<7} {figures}")
            if method == "RigL" and not last[0] > last[1]:
                failures.append(
                    f"at {level} RigL's map holds {last[0]:.2f} at the centre, {last[1]:.2f} at the border"
                )
    static, rigl = mean["99.5%", "Static"], mean["99.5%", "RigL"]
    print(
        "\nTimes are those of masks over dense weights, so no faster than dense training; one thread a run."
    )
    if not rigl > static:
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
    runs = [
        Run(level, method, seed, options.runs, tuple(options.extra))
        for level in LEVELS
        for seed in range(options.seeds)
        for method in METHODS
    ]
    print(
        f"{len(runs)} runs in {options.runs}/, {WORKERS} at a time; finished ones are not repeated",
        flush=True,
    )
    train_all(runs)
    failures = compare(runs)
    print("\nPictures (the first layer's map first and last, the map over training, learning curves):")
    for run in runs:
        if run.method == "RigL" and run.seed == 0:
            for picture in ("first-layer.png", "first-layer.gif", "curves.png"):
                if (run.folder / picture).is_file():
                    print(f"  {run.folder / picture}")
    print(f"\n{time.monotonic() - start:.0f} s in all")
    if failures:
        sys.exit("The demo did not show what it should:\n" + "\n".join(failures))


if __name__ == "__main__":
    main()
