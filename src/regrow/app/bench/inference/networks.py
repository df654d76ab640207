"""Networks whose inference is measured: what builds them, how they become sparse, and inputs for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import regrow
from regrow._torch import BatchNorm
from regrow.app.bench.networks import example, tried
from regrow.app.recipes import Part, find, import_file
from regrow.errors import RegrowValueError
from regrow.models import models

SEEN = 8
"""Examples in a batch from which batch norms and quantisation learn their ranges."""


@dataclass(frozen=True)
class Network:
    """A network that another process can build too."""

    name: str
    model: str
    """A network of the zoo, or ``package.module:function``."""
    shape: tuple[int, ...]
    """Of one example."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the function that builds it."""
    distribution: str = "uniform"
    include: tuple[str, ...] = ()
    """Globs of the layers that are sparse; empty: `regrow.sparsify`'s choice without what the record keeps dense."""
    files: tuple[str, ...] = ()
    """The user's Python files to import first."""

    def __str__(self) -> str:
        return f"{self.name}, {self.distribution}"

    def distributed(self, distributions: Sequence[str]) -> list[Network]:
        """Return it with each of the distributions; as it is if there is none."""
        return [replace(self, distribution=each) for each in distributions] or [self]

    def build(self) -> nn.Module:
        """Build it dense, as its builder does."""
        for file in self.files:
            import_file(Path(file))
        built: nn.Module = find("model", Part(name=self.model))(**self.options)
        return built

    def sparse(self, sparsity: float) -> nn.Module:
        """Build it with random connections in masked storage, weights scaled up to the fan-in, and batch norms that
        have seen two batches, for evaluation.
        """
        torch.manual_seed(0)
        model, record = self.build(), models().get(self.model)
        regrow.sparsify(
            model,
            sparsity,
            self.distribution,
            include=self.include or None,
            exclude=record.dense or None if record is not None and not self.include else None,
            init="random",
            rescale=True,
            storage="masked",
        )
        with torch.no_grad(), averaging(model) as norms:
            for _ in range(2 if norms else 0):
                model.train()(self.example(model, SEEN))
        return model.eval()

    def example(self, model: nn.Module, batch: int) -> Tensor:
        """Return a random batch."""
        return example(model, (batch, *self.shape))

    def to_dict(self) -> dict[str, Any]:
        """Return what `Network` takes, as plain values."""
        return asdict(self)


@contextmanager
def averaging(model: nn.Module) -> Iterator[int]:
    """Let the batch norms of `model` average over all batches they see; yields how many there are."""
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None
    yield len(norms)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def linear(inputs: int, outputs: int) -> nn.Module:
    """Build one linear layer."""
    return nn.Sequential(nn.Linear(inputs, outputs))


STANDARD = (
    Network("resnet50", "resnet50", (3, 224, 224)),
    Network("wrn-22-2", "wrn-22-2", (3, 32, 32)),
    Network("mobilenet-v1", "mobilenet-v1", (3, 224, 224), distribution="erk"),
    Network(
        "mlp 784-4096-4096-10",
        "mlp",
        (784,),
        {"hidden": [4096, 4096]},
        include=("layers.0", "layers.2"),
    ),
    Network(
        "linear 4096x4096", f"{__name__}:linear", (4096,), {"inputs": 4096, "outputs": 4096}, include=("0",)
    ),
    Network("vit-tiny", "vit", (3, 32, 32)),
)
QUICK = (STANDARD[1], STANDARD[3])


def own(model: str, sizes: Sequence[int], files: Sequence[str]) -> Network:
    """Return the user's network, after a forward pass on an input of `sizes`.

    Raises:
        RegrowValueError: nothing of that name, or what it gives is not a network or does not take the input.
    """
    tried(model, sizes, _one_output)
    return Network(model, model, tuple(sizes[1:]), files=tuple(map(str, files)))


def _one_output(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        output = model.eval()(x)
    if not isinstance(output, Tensor):  # the one kind that all engines give
        raise RegrowValueError(f"the output must be a tensor, got {type(output).__name__}")
