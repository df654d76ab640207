"""Accuracy and calibration of finished runs on corrupted test images, over the severity of the corruption.

    python examples/studies/robustness.py single=runs/rigl superposed=runs/sup ensemble=runs/edst [--out FOLDER]

The mean over the common corruptions (`regrow.data.corruptions`) at each severity; severity 0 is the clean test set.
The runs must be of one data set. Leaves robustness.json, robustness.png and robustness.pdf.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from torch import Tensor

from regrow.app.report import style
from regrow.app.training.finished import Finished
from regrow.data import MISSING, corrupted, prepared
from regrow.tickets import accuracy, expected_calibration_error, negative_log_likelihood, probabilities

METRICS = {
    "accuracy": lambda p, y: 100 * accuracy(p, y),
    "nll": negative_log_likelihood,
    "ece": expected_calibration_error,
}
COLOURS = (style.BLUE, style.ORANGE, style.GREEN, style.GREY, style.INK)


def measure(runs: dict[str, Finished], examples: int) -> dict[str, Any]:
    """Each metric of each network, by severity 0 to 5 and corruption."""
    first = next(iter(runs.values()))
    every = max(1, len(first.data.test_inputs) // examples)
    images, targets = first.data.test_inputs[::every], first.data.test_targets[::every]
    networks = {name: run.network() for name, run in runs.items()}
    found: dict[str, Any] = {name: {} for name in runs}

    def note(corruption: str, severity: int, inputs: Tensor) -> None:
        batches = list(zip(prepared(first.data, inputs).split(1000), targets.split(1000), strict=True))
        for name, network in networks.items():
            predicted = probabilities(network, batches)
            values = {metric: float(of(*predicted)) for metric, of in METRICS.items()}
            found[name].setdefault(severity, {})[corruption] = values

    images = first.data.in_bytes(images)
    note("none", 0, images)
    for corruption, severity, inputs in corrupted(images):
        note(corruption, severity, inputs)
        print(f"{corruption} {severity}", flush=True)
    return found


def mean(found: dict[int, Any], severity: int, metric: str) -> float:
    return statistics.fmean(values[metric] for values in found[severity].values())


def draw(found: dict[str, Any], out: Path) -> None:
    """Draw the means over the corruptions against severity."""
    figure = style.Figure(figsize=(11, 4), layout="constrained")
    figure.suptitle("Robustness to common corruptions", fontweight="bold")
    labels = {
        "accuracy": "accuracy (%)",
        "nll": "negative log likelihood (nats)",
        "ece": "expected calibration error",
    }
    for axes, (metric, label) in zip(figure.subplots(1, 3), labels.items(), strict=True):
        for (name, own), colour in zip(found.items(), COLOURS, strict=False):
            axes.plot(
                range(6),
                [mean(own, severity, metric) for severity in range(6)],
                "o-",
                color=colour,
                label=name,
            )
        axes.set(title=label, xlabel="severity (0: clean)")
    figure.axes[0].legend(frameon=False)
    for ending in ("png", "pdf"):
        print(style.save(figure, out / f"robustness.{ending}"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="+", metavar="NAME=RUN", help="what to call it, and the folder of a finished run"
    )
    parser.add_argument("--examples", type=int, default=2000, help="test images that are looked at")
    parser.add_argument("--out", type=Path, default=Path("runs/robustness"))
    options = parser.parse_args()
    if len(options.runs) > len(COLOURS) or not all("=" in one for one in options.runs):
        parser.error(f"give one to {len(COLOURS)} runs as NAME=RUN")
    runs = {name: Finished(Path(path)) for name, _, path in (one.partition("=") for one in options.runs)}
    options.out.mkdir(parents=True, exist_ok=True)
    found = measure(runs, options.examples)
    (options.out / "robustness.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(
        f"{'':<14}{'severity':>9}{'accuracy %':>12}{'nll':>8}{'ece':>8}   "
        f"mean over the corruptions but {', '.join(MISSING)}"
    )
    for name, own in found.items():
        for severity in range(6):
            values = [mean(own, severity, metric) for metric in METRICS]
            print(f"{name:<14}{severity:>9}{values[0]:>12.2f}{values[1]:>8.3f}{values[2]:>8.3f}")
    draw(found, options.out)


if __name__ == "__main__":
    main()
