"""Whole training steps, optimizer included: the two multilayer perceptrons, and a user's own network."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import regrow
from regrow.app.bench.bound import bound, layer_shares
from regrow.app.bench.dense import FORMS, Way, dense_ways, formatted, in_format
from regrow.app.bench.rows import Settings, Step
from regrow.app.recipes import Part, find
from regrow.errors import RegrowError, RegrowValueError
from regrow.measure.timing import Watch, interleaved
from regrow.weights import SparseWeight, sparse_weights

RATE = 1e-4
"""So small that the networks stay what they were at the start."""


@dataclass(frozen=True)
class Network:
    """A network that can be built dense, and made sparse, with an input for it."""

    name: str
    build: Callable[[], nn.Module]
    sparsify: Callable[[nn.Module, float], nn.Module]
    input: Tensor


def mlp(width: int, batch: int) -> Network:
    """Build 784-WIDTH-WIDTH-10 with ReLU; made sparse, the last layer stays dense and the ReLUs are fused."""

    def build() -> nn.Module:
        first, second, last = nn.Linear(784, width), nn.Linear(width, width), nn.Linear(width, 10)
        return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)

    def sparse(model: nn.Module, sparsity: float) -> nn.Module:
        return regrow.fuse(
            regrow.sparsify(
                model, sparsity, "uniform", include=["0", "2"], rescale=False, storage="compressed"
            )
        )

    return Network(f"mlp 784-{width}-{width}-10", build, sparse, torch.rand(batch, 784))


def own(name: str, x: Tensor, storage: str, distribution: str) -> Network:
    """Return the user's ``package.module:function``, or a network of the zoo, as `regrow.sparsify` makes it sparse.

    Args:
        name: what builds it, without arguments.
        x: an input of it.
        storage: as for `regrow.sparsify`.
        distribution: as for `regrow.sparsify`, its name.
    """
    build = find("model", Part(name=name))

    def sparse(model: nn.Module, sparsity: float) -> nn.Module:
        return regrow.fuse(regrow.sparsify(model, sparsity, distribution, rescale=False, storage=storage))

    return Network(f"{name}, {distribution}", build, sparse, x)


def example(model: nn.Module, sizes: Sequence[int]) -> Tensor:
    """Return an input of `model`; two sizes are a batch of tokens where it embeds them."""
    embeddings = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]
    tokens = bool(embeddings) and len(sizes) == 2
    return torch.randint(min(embeddings), tuple(sizes)) if tokens else torch.randn(*sizes)


def one_step(model: nn.Module, x: Tensor) -> None:
    """Take one usual step."""
    step(model, x)()


def tried(name: str, sizes: Sequence[int], use: Callable[[nn.Module, Tensor], object] = one_step) -> Tensor:
    """Return an input of the network that `name` builds, after `use` of both, to see whether it can be measured.

    Raises:
        RegrowValueError: nothing of that name, or what it gives is not a network or does not take the input.
    """
    try:
        model = find("model", Part(name=name))()
    except TypeError as error:
        raise RegrowValueError(f"`--model` {name} must build a network without arguments: {error}") from error
    if not isinstance(model, nn.Module):
        raise RegrowValueError(f"`--model` {name} returned {model!r}, no torch module")
    try:
        x = example(model, sizes)
        use(model, x)
    except Exception as error:  # whatever a user's network raises
        shape = ",".join(map(str, sizes))
        raise RegrowValueError(
            f"`--model` {name} does not take an input of sizes {shape}: {type(error).__name__}: {error}\n"
            "Give `--input` with the batch first, such as 128,3,32,32."
        ) from error
    return x


def logits(model: nn.Module, x: Tensor) -> Tensor:
    """Return the output of `model` [..., classes], also where it is called ``logits``.

    Raises:
        RegrowValueError: an output that is neither a tensor nor has ``logits``.
    """
    output: Any = model(x)
    output = getattr(output, "logits", output)
    if not isinstance(output, Tensor) or output.dim() < 2:
        raise RegrowValueError(f"the output must be a tensor of two or more dimensions, got {type(output)}")
    return output


def step(model: nn.Module, x: Tensor) -> Way:
    """Return a function that takes one usual step: cross entropy over the last dimension, SGD with momentum."""
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, fused=True)
    with torch.no_grad():
        *lead, classes = logits(model, x).shape
    targets = torch.arange(math.prod(lead)) % classes

    def one() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits(model, x).flatten(0, -2), targets).backward()
        optimizer.step()

    return one


def measure(network: Network, sparsities: Sequence[float], settings: Settings) -> list[Step]:
    """Measure a training step of `network` at each sparsity; a step's FLOPs are counted as those of three forward
    passes.
    """
    x = network.input.to(settings.dtype) if network.input.is_floating_point() else network.input
    dense = network.build().to(settings.dtype)
    flops, sparse, densities = {}, {}, {}
    for sparsity in sparsities:
        model = network.sparsify(network.build(), sparsity).to(settings.dtype)
        flops[sparsity], sparse[str(sparsity)] = _flops(model, x), step(model, x)
        densities[sparsity] = _densities(model)
    ways = dense_ways(lambda model, form: step(model, formatted(x, form)), dense, settings)
    watch = Watch()
    took = interleaved({**ways, **sparse}, seconds=settings.seconds * (len(ways) + len(sparse)))
    load, times = watch.load(), {way: took[way] for way in ways}
    names = {name for found in densities.values() for name in found}
    form = min(FORMS.keys() & times, key=lambda way: times[way].median)
    formed, given = in_format(dense, FORMS[form]), formatted(x, FORMS[form])
    shares = layer_shares(formed, lambda: logits(formed, given), ways[form], names, settings.seconds / 10)

    def row(sparsity: float) -> Step:
        own, limit = took[str(sparsity)], bound(shares, densities[sparsity])
        return Step(network.name, len(x), sparsity, "step", flops[sparsity], times, own, load, limit)

    return [row(sparsity) for sparsity in sparsities]


def _densities(model: nn.Module) -> dict[str, float]:
    """Return the density of each sparse layer, of all its sparse weights together, by its name."""
    layers: dict[str, list[SparseWeight]] = {}
    for weight in sparse_weights(model):
        layers.setdefault(weight.name.rpartition(".")[0], []).append(weight)
    return {name: sum(w.nnz for w in own) / sum(w.numel for w in own) for name, own in layers.items()}


def _flops(model: nn.Module, x: Tensor) -> tuple[float, float] | None:
    """Count the FLOPs of a training step, dense and sparse; None if the network has a module that cannot be counted."""
    try:
        counted = regrow.costs(model, x[:1]).flops
    except RegrowError:
        return None
    return 3 * len(x) * counted["dense"], 3 * len(x) * counted["sparse"]
