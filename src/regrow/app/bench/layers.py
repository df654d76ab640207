"""One layer: its forward pass, and forward and backward together, sparse against dense."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from regrow.app.bench.dense import Make, Way, dense_ways, formatted
from regrow.app.bench.rows import Comparison, Settings
from regrow.measure.timing import Watch, interleaved
from regrow.sparsity.distributions import connections


class Kind(Protocol):
    """A layer that can be measured: `regrow.app.bench.linear.Linear` and others."""

    @property
    def size(self) -> int:
        """Positions of its weights."""

    def flops(self, connections: int, batch: int) -> float:
        """Count the FLOPs of a forward pass with this many connections."""

    def dense(self, dtype: torch.dtype) -> nn.Module:
        """Return the dense layer."""

    def sparse(self, dense: nn.Module, sparsity: float) -> nn.Module:
        """Return `dense` with compressed storage; `dense` stays as it is."""

    def example(self, batch: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return an input and a gradient of the output, in torch's own layout."""

    def laid_out(self, tensor: Tensor) -> Tensor:
        """Return `tensor` as sparse layers of this kind hand it to each other."""


def forward(layer: nn.Module, x: Tensor, gradient: Tensor) -> Way:
    """Return a forward pass that keeps nothing for a backward pass."""
    return torch.no_grad()(lambda: layer(x))


def both(layer: nn.Module, x: Tensor, gradient: Tensor) -> Way:
    """Return a forward and a backward pass that returns the gradients of the input and of all parameters."""
    leaf = x.detach().requires_grad_()
    leaves = [leaf, *layer.parameters()]
    return lambda: torch.autograd.grad(layer(leaf), leaves, gradient)


PASSES: dict[str, tuple[Callable[[nn.Module, Tensor, Tensor], Way], int]] = {
    "forward": (forward, 1),
    "forward + backward": (both, 3),
}
"""How each is done, and its FLOPs over those of a forward pass."""


def measure(layer: Kind, batch: int, sparsities: Sequence[float], settings: Settings) -> list[Comparison]:
    """Measure `layer` at one batch size and each sparsity, each side on inputs in its own layout."""
    x, gradient = layer.example(batch, settings.dtype)
    own = layer.laid_out(x), layer.laid_out(gradient)
    dense = layer.dense(settings.dtype)
    sparse = {str(s): layer.sparse(dense, s) for s in sparsities}
    rows = []
    for what, (make, passes) in PASSES.items():
        ways = dense_ways(_on(make, x, gradient), dense, settings)
        own_ways = {s: make(module, *own) for s, module in sparse.items()}
        watch = Watch()
        took = interleaved({**ways, **own_ways}, seconds=settings.seconds * (len(ways) + len(own_ways)))
        load = watch.load()
        for sparsity in sparsities:
            counts = layer.size, connections((layer.size,), sparsity)
            full, useful = (passes * layer.flops(count, batch) for count in counts)
            times = {way: took[way] for way in ways}
            rows.append(
                Comparison(
                    str(layer), batch, sparsity, what, (full, useful), times, took[str(sparsity)], load
                )
            )
    return sorted(rows, key=lambda row: row.sparsity)


def _on(make: Callable[[nn.Module, Tensor, Tensor], Way], x: Tensor, gradient: Tensor) -> Make:
    """Call `make` on these tensors, in the memory format asked for."""
    return lambda module, form: make(module, formatted(x, form), formatted(gradient, form))
