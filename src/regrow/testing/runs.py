"""A small network in training, the same for every method and check."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adam, AdamW, Optimizer

from regrow.methods import Method
from regrow.methods.checks import storages_of
from regrow.methods.registry import parameters_of
from regrow.sparsity.core import sparsify
from regrow.weights import SparseWeight, sparse_weights
from regrow.weights.patterns import require_pattern

STEPS = 240
EVERY = 8

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "SGD with momentum": lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-4),
    "AdamW": lambda p: AdamW(p, lr=0.01, foreach=True),
    "AdamW, fused": lambda p: AdamW(p, lr=0.01, fused=True),
    "Adam": lambda p: Adam(p, lr=0.01, weight_decay=1e-4),
}


@dataclass(frozen=True)
class Case:
    """A method as it is to be checked."""

    cls: type[Method]
    storage: str = "masked"
    options: dict[str, Any] = field(default_factory=dict)
    pattern: str | tuple[int, int] | None = None
    """As for `regrow.sparsify`; None is the one that the method needs, if it needs one."""

    def network(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """Make the network in its storage, with its pattern."""
        return network(self.storage, dtype, self.pattern or self.cls.pattern)

    @property
    def storages(self) -> tuple[str, ...]:
        """The storages that the method runs on."""
        return storages_of(self.cls)

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments by name, each with the value that `method` gives it."""
        usual = {"total_steps": STEPS, "update_every": EVERY, "final_sparsity": 0.9}
        parameters = parameters_of(self.cls)
        return {**{name: usual.get(name, p.default) for name, p in parameters.items()}, **self.options}

    def method(self, model: nn.Module, optimizer: Optimizer, **options: Any) -> Method:
        """Make the method on a model and its optimizer, with an update every `EVERY` steps where it has updates."""
        given = ("total_steps", "update_every", "final_sparsity", *self.options)
        common = {name: value for name, value in self.arguments.items() if name in given}
        return self.cls(model, optimizer, **{**common, **options})


@dataclass
class Run:
    """A small network in training; its data are a pure function of the step."""

    case: Case
    dtype: torch.dtype = torch.float64
    optimizer_name: str = "SGD with momentum"
    attach: bool = True

    def __post_init__(self) -> None:
        self.model = self.case.network(self.dtype)
        self.optimizer = OPTIMIZERS[self.optimizer_name](self.model.parameters())
        self.method = self.case.method(self.model, self.optimizer) if self.attach else None
        self.loss = float("nan")

    def backward(
        self, step: int, part: slice = slice(None), share: float = 1.0, autocast: bool = False
    ) -> None:
        """Run a backward pass on the batch of `step`, or on a part of it."""
        x, y = batch(step, self.dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = functional.cross_entropy(self.model(x[part]), y[part]) * share
        loss.backward()
        self.loss = float(loss.detach())

    def train(self, start: int, stop: int, *, autocast: bool = False) -> Iterator[int]:
        """Make ordinary steps from `start` to `stop`; yield after each."""
        for step in range(start, stop):
            self.optimizer.zero_grad()
            self.backward(step, autocast=autocast)
            self.optimizer.step()
            yield step

    @property
    def weights(self) -> list[SparseWeight]:
        return sparse_weights(self.model)

    def topology(self) -> list[int]:
        """Compute a fingerprint of each layer's topology."""
        return [weight.fingerprint() for weight in self.weights]

    def dense(self) -> list[Tensor]:
        """Copy all weights as dense tensors."""
        return [weight.to_dense() for weight in self.weights]


def network(
    storage: str, dtype: torch.dtype = torch.float64, pattern: str | tuple[int, int] | None = None
) -> nn.Module:
    """Make a network of three layers, the first of them a convolution: sparse, but for those that cannot have the
    `pattern`.
    """
    torch.manual_seed(0)
    first = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten()]
    model = nn.Sequential(*first, nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 5)).to(dtype)
    kept_to = require_pattern("pattern", pattern)
    sparsity = 0.7 if kept_to is None or kept_to.density is None else None
    narrow = [
        str(place)
        for place, layer in enumerate(model)
        if isinstance(layer, nn.Conv2d | nn.Linear) and kept_to and kept_to.why_not(tuple(layer.weight.shape))
    ]
    return sparsify(model, sparsity, exclude=narrow or None, storage=storage, pattern=pattern)


def batch(step: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Draw images [16, 1, 6, 6] whose class [16] is where the brightest of five patches is."""
    generator = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(16, 1, 6, 6, generator=generator, dtype=torch.float64)
    y = x.flatten(1)[:, :35].unflatten(1, (5, 7)).sum(2).argmax(1)
    return x.to(dtype), y
