"""`explain`: where the time of a network goes, trained or deployed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from regrow._text import table
from regrow.arguments import require_example, require_positive
from regrow.inference.graph import CONV, LINEAR, Connections, Graph
from regrow.inference.module import Deployed
from regrow.inference.plan import Work
from regrow.measure.example import Example
from regrow.measure.explain import Explanation
from regrow.measure.explain import explain as explain_training
from regrow.measure.timing import Load, Watch

RUNS = 5
"""Of the network, at least, over which the median is taken."""


@dataclass(frozen=True)
class DeployedLayer:
    """What one layer of a deployed network takes, with all that is fused behind it."""

    name: str
    kernels: tuple[str, ...]
    """What does its work, in order; ``torch aten...`` for what torch does at dense cost."""
    shape: tuple[int, ...] | None
    """Of its weight; None where it has none."""
    density: float | None
    milliseconds: float
    share: float
    """Of the time of the network, in [0, 1]."""
    reason: str
    """Why it runs at dense cost; empty where it does not."""


@dataclass(frozen=True)
class DeployedExplanation:
    """Where the time of a deployed network goes; ``str()`` is a table."""

    layers: tuple[DeployedLayer, ...]
    milliseconds: float
    """Of the whole network; reading the clock after each step is in it."""
    cut: dict[str, int]
    """Outputs that were constant, or that nothing read, by layer: `regrow.deploy` has cut them."""
    load: Load
    """How busy the machine was meanwhile."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings, for JSON."""
        return {
            "layers": [asdict(row) for row in self.layers],
            "milliseconds": self.milliseconds,
            "cut": self.cut,
            "load": self.load.to_dict(),
        }

    def __str__(self) -> str:
        rows = [
            (
                row.name,
                " x ".join(map(str, row.shape or ())),
                "" if row.density is None else f"{row.density:.4f}",
                ", ".join(row.kernels),
                f"{row.milliseconds:.3f}",
                f"{row.share:.1%}",
                row.reason,
            )
            for row in self.layers
        ]
        lines = table([("layer", "shape", "density", "kernel", "ms", "share", ""), *rows])
        lines.append(f"{self.milliseconds:.3f} ms in all")
        if self.cut:
            units = ", ".join(f"{count} of `{name}`" for name, count in self.cut.items())
            lines.append(f"outputs cut, because they are constant or nothing reads them: {units}")
        if not self.load.quiet:
            lines.append(f"The machine was not quiet ({self.load}): times may be far off.")
        return "\n".join(lines)


def explain(model: nn.Module, example: Example, *, seconds: float = 0.2) -> Explanation | DeployedExplanation:
    """Return what each layer of `model` costs.

    Of a sparse model: each sparse layer, forward and backward, against a dense one, and where activations change
    their layout; a linear layer in compressed storage puts out activations with the batch innermost, a convolution
    batch tiles, and an operation of torch's that knows its own layout only breaks the chain. The model is run once, in
    evaluation mode, and is left as it was; layers are timed on copies.

    Of a deployed network: the kernel of each layer, its time and share of all, and what runs at dense cost and why.

    Args:
        model: a sparse model, or what `regrow.deploy` returned.
        example: one batch of it: a tensor, or a list or dictionary of the arguments of its forward pass.
        seconds: for how long each layer of a sparse model is timed, or a deployed network as a whole.

    Raises:
        RegrowValueError: a model that is not sparse, or an example that it does not take.
        RegrowRuntimeError: a deployed network that could not be traced, or that runs without kernels.

    Example:
        >>> import torch
        >>> from regrow import sparsify
        >>> model = torch.nn.Sequential(torch.nn.Linear(784, 512), torch.nn.ReLU(), torch.nn.Linear(512, 10))
        >>> found = explain(sparsify(model, 0.9), torch.randn(128, 784), seconds=0.01)
        >>> [row.storage for row in found.layers]
        ['compressed', 'masked']
    """
    if isinstance(model, Deployed):
        return _explain(model, example, require_positive("seconds", seconds, zero=True))
    return explain_training(model, example, seconds=seconds)


def _explain(model: Deployed, example: Example, seconds: float) -> DeployedExplanation:
    args, kwargs, _ = require_example("example", example)
    plan, tensors = model.plan(args, kwargs, "example")
    watch, start = Watch(), time.perf_counter()
    plan.time(tensors)
    runs: list[list[Work]] = []
    while len(runs) < RUNS or time.perf_counter() - start < seconds:
        runs.append(plan.time(tensors))
    return _summed(plan.graph, runs, watch)


def _summed(graph: Graph, runs: list[list[Work]], watch: Watch) -> DeployedExplanation:
    """Sum the medians of each layer's steps."""
    took = [statistics.median(work.seconds for work in step) for step in zip(*runs, strict=True)]
    total = sum(took)
    layers: dict[str, list[tuple[Work, float]]] = {}
    for work, seconds in zip(runs[0], took, strict=True):
        layers.setdefault(work.layer, []).append((work, seconds))
    weights = {node.layer or node.name: node.args[1] for node in graph.nodes if node.op in (CONV, LINEAR)}
    rows = []
    for name, works in layers.items():
        weight = graph.weights[weights[name]] if name in weights else None
        seconds = sum(each for _, each in works)
        rows.append(
            DeployedLayer(
                name,
                _unique(work.kernel for work, _ in works),
                None if weight is None else tuple(weight.shape),
                weight.density if isinstance(weight, Connections) else None if weight is None else 1.0,
                1000 * seconds,
                seconds / total if total else 0.0,
                _why_dense(weight, [work for work, _ in works]),
            )
        )
    return DeployedExplanation(tuple(rows), 1000 * total, dict(graph.cut), watch.load())


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _why_dense(weight: Tensor | Connections | None, works: list[Work]) -> str:
    """Return why a layer runs at dense cost; empty where it does not, or has no weight and runs on the kernels."""
    reasons = _unique(work.reason for work in works if work.reason)
    if reasons:
        return "; ".join(reasons)
    if isinstance(weight, Tensor):
        return "its weight is dense"
    if any(work.kernel.startswith("dense") for work in works):
        return "so few zeros that the dense kernel is faster"
    return ""
