"""Accuracy against latency: dense networks of several widths and sparse ones of several sparsities, on Fashion-MNIST.

    python examples/studies/latency.py [--network conv|mlp] [--runs FOLDER] [--out FOLDER] [--seconds S] [key=value ...]

Trains a network dense at several widths, and sparse at the largest width at several sparsities: `fashion-conv` (four
epochs unless told otherwise), or `fashion-wide` with hidden layers of 4096 (six epochs). Finished runs are not
repeated. Then all networks are timed in turns in one process, one image at a time on one thread: dense ones by the
fastest of torch, torch channels-last and, where it is installed, ONNX Runtime, sparse ones by `regrow.deploy`. Leaves
latency.json, latency.png and latency.pdf.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import regrow
from regrow.app.export import to_onnx
from regrow.app.report import style
from regrow.app.training.finished import Finished
from regrow.measure.timing import Watch, interleaved


@dataclass(frozen=True)
class Study:
    """A network at several widths and sparsities."""

    recipe: tuple[str, ...]
    """With what is the same in all runs."""
    widths: tuple[float, ...]
    sparsities: tuple[float, ...]
    sparse: Callable[[float], str]
    """What makes the recipe so sparse."""

    def runs(self) -> dict[str, list[str]]:
        """Return the arguments of each run by its name."""
        dense = {f"dense-{width:g}": ["method=dense", f"model.width={width:g}"] for width in self.widths}
        return dense | {
            f"sparse-{sparsity:g}": [self.sparse(sparsity), "sparsify.storage=compressed"]
            for sparsity in self.sparsities
        }

    def train(self, folder: Path, overrides: list[str]) -> dict[str, Finished]:
        """Train what is not there yet, and read all of it."""
        runs = self.runs()
        for name, own in runs.items():
            if not (folder / name / "summary.json").exists():
                command = [sys.executable, "-m", "regrow", "train", *self.recipe, f"out={folder / name}"]
                subprocess.run([*command, *own, *overrides], check=True)
        return {name: Finished(folder / name) for name in runs}


STUDIES = {
    "conv": Study(
        ("fashion-conv", "epochs=4"),
        (0.125, 0.25, 0.5, 1.0),
        (0.8, 0.9, 0.95, 0.98),
        "sparsify.sparsity={:g}".format,
    ),
    "mlp": Study(
        ("fashion-wide", "model.hidden=[4096,4096]"),
        (0.0625, 0.125, 0.25, 0.5),
        (0.8, 0.9, 0.95, 0.98, 0.99),
        lambda sparsity: f"sparsify.distribution={{layers.0: {sparsity:g}, layers.2: {sparsity:g}}}",
    ),
}


def onnx_session(model: nn.Module, x: Tensor, folder: Path) -> Callable[[], object]:
    """Return a call of the network in ONNX Runtime, on one thread."""
    import onnxruntime

    file = folder / "dense.onnx"
    to_onnx(model, x, file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    given = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, given)


def ways(name: str, model: nn.Module, x: Tensor, folder: Path) -> dict[str, Callable[[], object]]:
    """Return the engines that compete for one network."""
    if name.startswith("sparse"):
        deployed = regrow.deploy(model, x)
        return {f"{name} regrow": lambda: deployed(x)}
    last = x.to(memory_format=torch.channels_last)
    wide = regrow.fold(model).to(memory_format=torch.channels_last)
    plain = regrow.fold(model)
    found: dict[str, Callable[[], object]] = {
        f"{name} torch": lambda: plain(x),
        f"{name} channels-last": lambda: wide(last),
    }
    if find_spec("onnxruntime") is not None:
        found[f"{name} onnxruntime"] = onnx_session(model, x, folder)
    return found


def measure(runs: dict[str, Finished], seconds: float) -> dict[str, Any]:
    """Time all networks in turns, each by all its engines."""
    torch.set_num_threads(1)
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        all_ways = {
            way: call
            for name, run in runs.items()
            for way, call in ways(
                name, run.network(), torch.rand(1, *run.data.test_inputs.shape[1:]), Path(folder)
            ).items()
        }
        took = interleaved(all_ways, seconds=seconds)
    found: dict[str, Any] = {"load": watch.load().to_dict(), "networks": {}}
    for name, run in runs.items():
        own = {way.split()[1]: 1000 * time.median for way, time in took.items() if way.split()[0] == name}
        best = min(own, key=own.__getitem__)
        accuracy = 100 * run.summary["accuracy"]
        found["networks"][name] = {
            "accuracy": accuracy,
            "engine": best,
            "milliseconds": own[best],
            "engines": own,
        }
    return found


def draw(found: dict[str, Any], out: Path) -> None:
    """Draw accuracy over milliseconds."""
    figure, axes = style.Figure(figsize=(7, 4.5), layout="constrained"), None
    axes = figure.subplots()
    for kind, colour, label in (
        ("dense", style.GREY, "dense, by width"),
        ("sparse", style.BLUE, "sparse, by sparsity"),
    ):
        points = {name: row for name, row in found["networks"].items() if name.startswith(kind)}
        rows = sorted(points.items(), key=lambda item: item[1]["milliseconds"])
        axes.plot(
            [r["milliseconds"] for _, r in rows],
            [r["accuracy"] for _, r in rows],
            "o-",
            color=colour,
            label=label,
        )
        for name, row in rows:
            value = float(name.rpartition("-")[2])
            text = f"{value:.0%}" if kind == "sparse" else f"x{value:g}"
            axes.annotate(
                text, (row["milliseconds"], row["accuracy"]), textcoords="offset points", xytext=(6, -12)
            )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "235" else "")
    axes.set_xlabel("milliseconds for one image, one thread")
    axes.set_ylabel("test accuracy, %")
    axes.set_title("Fashion-MNIST: accuracy against measured latency")
    axes.legend(frameon=False)
    for suffix in ("png", "pdf"):
        figure.savefig(out / f"latency.{suffix}")


def main() -> None:
    """Train, measure, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--network", choices=STUDIES, default="conv")
    parser.add_argument("--runs", type=Path, default=Path("runs/latency"))
    parser.add_argument("--out", type=Path, default=Path("runs/latency"))
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    runs = STUDIES[given.network].train(given.runs / given.network, given.overrides)
    found = measure(runs, given.seconds)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "latency.json").write_text(json.dumps(found, indent=2))
    draw(found, given.out)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
