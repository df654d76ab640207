"""``regrow export``: the network of a finished run, in a file for inference."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

import regrow
from regrow._files import write_atomically
from regrow.app.cli.printing import Json, show
from regrow.app.export import to_onnx
from regrow.app.tasks import Task
from regrow.app.training.batches import Batches
from regrow.app.training.evaluation import evaluate
from regrow.app.training.finished import Finished
from regrow.arguments import require_choice
from regrow.errors import RegrowRuntimeError, RegrowValueError
from regrow.inference.program import PRECISIONS

FILES = {"regrow": "deployed.safetensors", "torch-export": "deployed.pt2", "onnx": "dense.onnx"}
"""What each kind of file is called in the run folder."""
CALIBRATION = 16
"""Training batches on which int8 measures activations."""


@dataclass(frozen=True)
class Exported:
    """What came of an export."""

    run: str
    to: str
    precision: str
    file: str
    bytes: int
    dense_bytes: int
    """Of the same network's dense weights and buffers in float32."""
    tested_on: str
    examples: int
    before: Mapping[str, float]
    """Each metric of the network as it was trained."""
    after: Mapping[str, float] | None
    """Of what is in the file; None where that was compared with the network's outputs instead."""
    dense: Mapping[str, str]
    """Layers that stayed dense, and why."""
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings, for JSON."""
        return asdict(self)

    def text(self, task: Task) -> str:
        """Return lines for people."""
        best = task.measures.best
        share = self.bytes / self.dense_bytes
        found = f"{best.text(self.before[best.name])} before"
        if self.after is not None:
            found += f", {best.text(self.after[best.name])} after"
        lines = [
            f"file         {self.file}",
            f"size         {self.bytes:,} bytes in {self.precision}, {share:.3f} of the {self.dense_bytes:,} of the "
            "dense network",
            f"{best.name:12} {found}, of {self.examples:,} {self.tested_on} examples",
            *(f"dense        {name}: {why}" for name, why in self.dense.items()),
            *(f"note         {note}" for note in self.notes),
        ]
        return "\n".join(lines)


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    to: Annotated[str, typer.Option(help="regrow, torch-export, or onnx: dense, with its zeros.")] = "regrow",
    precision: Annotated[
        str, typer.Option(help="Of the connections: float32, bfloat16, or int8, calibrated on training data.")
    ] = "float32",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: a file in the run folder.")
    ] = None,
    json_: Json = False,
) -> None:
    """Write the network of a finished run to a file for inference: regrow export runs/mine --precision int8"""
    exported, task = written(run, to=to, precision=precision, out=out)
    show(exported.to_dict(), json_, lambda width: exported.text(task))


def written(run: Path, *, to: str, precision: str, out: Path | None) -> tuple[Exported, Task]:
    """Write the network of the finished run in folder `run` to a file.

    Args:
        run: the run folder.
        to: ``regrow``, ``torch-export`` or ``onnx``.
        precision: of the values of connections, as `regrow.deploy` takes it.
        out: the file; None for one in the run folder.

    Raises:
        RegrowValueError: a run that is not there or not finished, or arguments that do not go together.
        RegrowRuntimeError: a network that cannot be exported, and why.
    """
    require_choice("--to", to, FILES)
    if to == "onnx" and precision != "float32":
        raise RegrowValueError(
            f"`--precision` {precision} is for files of regrow and torch-export, got it with onnx\nLeave it out."
        )
    require_choice("--precision", precision, PRECISIONS)
    finished = Finished(run)
    file = run / FILES[to] if out is None else out
    if not file.parent.is_dir() or file.is_dir():
        raise RegrowValueError(
            f"`--out` {file} must be a file in a folder that exists\nCreate the folder, or name another file."
        )
    batches = Batches(finished.data, finished.recipe, torch.device("cpu"))
    network, example = finished.network(), batches.example()
    test = partial(_tested, batches)
    dense: dict[str, str] = {}
    after = None
    if to == "onnx":
        notes = [to_onnx(network, example, file)]
    else:
        deployed = _deployed(network, batches, precision)
        dense = _dense(deployed)
        notes = _write(deployed, example, to, file)
        after = test(deployed)
    exported = Exported(
        run=str(run),
        to=to,
        precision=precision,
        file=str(file),
        bytes=file.stat().st_size,
        dense_bytes=sum(4 * tensor.numel() for tensor in regrow.dense_state_dict(network).values()),
        tested_on=batches.final.name,
        examples=len(batches.final),
        before=test(network),
        after=after,
        dense=dense,
        notes=tuple(notes),
    )
    return exported, batches.task


def _tested(batches: Batches, network: nn.Module) -> dict[str, float]:
    """Return each metric on the examples that the run was tested on."""
    return dict(evaluate(batches.task, network, batches.test(batches.final), "float32"))


def _deployed(network: nn.Module, batches: Batches, precision: str) -> regrow.Deployed:
    """Deploy `network`, calibrated on its training data; refuse what cannot be traced."""
    calibration: list[Tensor] | None = None
    if precision == "int8":
        calibration = [batches.train(step)[0] for step in range(min(CALIBRATION, batches.steps_per_epoch))]
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "`model` runs at dense cost", RuntimeWarning
        )  # said below, as an error
        deployed = regrow.deploy(network, batches.example(), precision=precision, calibration=calibration)
    if deployed.reason is not None:
        raise RegrowRuntimeError(
            f"the network of the run cannot be deployed: {deployed.reason}\n"
            "Change its forward pass so that torch.export can follow it, or use --to onnx."
        )
    return deployed


def _dense(deployed: regrow.Deployed) -> dict[str, str]:
    """Return the layers whose weights stayed dense, and why."""
    graph = deployed.graph
    assert graph is not None
    weights = {name: weight for name, weight in graph.weights.items() if isinstance(weight, Tensor)}
    return {
        name: f"{float((weight == 0).float().mean()):.0%} of {weight.numel():,} weights are zero, fewer than half"
        for name, weight in weights.items()
    }


def _write(deployed: regrow.Deployed, example: Tensor, to: str, file: Path) -> list[str]:
    """Write a deployed network, and return what there is to say of the file."""
    if to == "regrow":
        deployed.save(file)
        return [f'load it with regrow.Deployed.load("{file}")']
    # torch.save writes the example with all of its storage, which may be that of the whole data set
    program = torch.export.export(deployed, (torch.zeros_like(example),))
    save: Callable[[Path], object] = partial(_save_program, program)
    write_atomically(file, save)
    return [
        f"it takes a batch of {len(example)}, and needs the kernels: torch.ops.load_library"
        f'("{regrow.Deployed.library()}") before torch.export.load'
    ]


def _save_program(program: Any, path: Path) -> None:
    with path.open("wb") as stream:
        torch.export.save(program, stream)
