"""A RigL update of one layer against the dense layer's backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import nn

import regrow
from regrow.app.bench.dense import Way
from regrow.app.bench.linear import Linear
from regrow.app.bench.rows import Settings, milliseconds, percent
from regrow.measure.timing import Load, Timing, Watch, interleaved
from regrow.weights import hook_of


@dataclass(frozen=True)
class Update:
    """What an update takes, beside one dense backward pass."""

    title: ClassVar[str] = "topology updates (RigL, 30% of the connections) in dense backward passes"
    subject: str
    batch: int
    sparsity: float
    backward: Timing
    update: Timing
    load: Load

    @property
    def passes(self) -> float:
        """The update's time over that of the backward pass."""
        return self.update.median / self.backward.median

    def cells(self) -> dict[str, str]:
        """Return the cells' texts by column heading."""
        return {
            "": self.subject,
            "batch": str(self.batch),
            "sparsity": percent(self.sparsity),
            "dense backward ms": milliseconds(self.backward),
            "update ms": milliseconds(self.update),
            "update / backward": f"{self.passes:.2f}",
            "others": f"{self.load.others:.0%}",
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings; times in seconds."""
        return {**asdict(self), "passes": self.passes}


def measure(layer: Linear, batch: int, sparsities: Sequence[float], settings: Settings) -> list[Update]:
    """Measure `layer` at one batch size and each sparsity."""
    dense = layer.dense(settings.dtype)
    ways = {"backward": backward(layer, dense, batch, settings.dtype)}
    for sparsity in sparsities:
        ways[str(sparsity)] = update(layer, layer.sparse(dense, sparsity), batch, settings.dtype)
    watch = Watch()
    took = interleaved(ways, seconds=settings.seconds * len(ways))
    load = watch.load()
    return [Update(str(layer), batch, s, took["backward"], took[str(s)], load) for s in sparsities]


def backward(layer: Linear, dense: nn.Module, batch: int, dtype: torch.dtype) -> Way:
    """Return a function that runs the dense backward pass: gradients of the input and of all parameters."""
    x, gradient = layer.example(batch, dtype)
    output = dense(x.requires_grad_())
    leaves = [x, *dense.parameters()]
    return lambda: torch.autograd.grad(output, leaves, gradient, retain_graph=True)


def update(layer: Linear, sparse: nn.Module, batch: int, dtype: torch.dtype) -> Way:
    """Return a function that makes a whole update of RigL.

    Drop, exact candidates, the index and its mirror, the momentum, the bookkeeping.
    """
    model = nn.Sequential(sparse)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, fused=True)
    method = regrow.RigL(model, optimizer, total_steps=10**6, stop_fraction=1.0, update_every=1)
    hook = hook_of(method.weights[0].parameter)
    assert hook is not None
    stashes = []
    for step in range(3):  # there is no update in step 0
        x, gradient = (layer.laid_out(t) for t in layer.example(batch, dtype))
        optimizer.zero_grad()
        model(x).backward(gradient)
        if step == 0:
            optimizer.step()
        else:
            stashes.append(hook.stash)

    def one() -> None:
        assert method.optimizer is optimizer  # which is kept here: a method does not keep it
        stashes.reverse()  # two gradients in turns: by the same one, what came last would come again
        hook.stash = stashes[0]
        method.update(method.step, method.weights)

    return one
