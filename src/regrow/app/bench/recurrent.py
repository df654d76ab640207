"""Recurrent networks of text: whole training steps, and beside them their recurrent layers alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

import regrow
from regrow._random import generator
from regrow.app.bench import layers, networks
from regrow.app.bench.rows import Comparison, Settings
from regrow.models import models

RECURRENT = ["layers.*"]
"""The layers of the networks that are sparse; embedding and read-out stay dense."""


class Output(nn.Module):
    """A recurrent layer without its states, as a layer that gives one tensor."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layer(x)[0]
        return output


@dataclass(frozen=True)
class Text:
    """A recurrent network of the zoo that reads sequences of so many tokens."""

    network: str
    classes: int
    """Size of its vocabulary."""
    time: int

    def __str__(self) -> str:
        return f"{self.network}, {self.classes:,} classes, {self.time} tokens"

    def build(self) -> nn.Module:
        """Return the dense network."""
        return models()[self.network].build(classes=self.classes)

    def sparsify(self, model: nn.Module, sparsity: float) -> nn.Module:
        """Make its recurrent layers sparse, in place."""
        return regrow.sparsify(
            model, sparsity, "uniform", include=RECURRENT, rescale=False, storage="compressed"
        )

    def tokens(self, batch: int) -> Tensor:
        """Draw a batch of sequences."""
        return torch.randint(self.classes, (batch, self.time), generator=generator(0))


@dataclass(frozen=True)
class Cells:
    """The recurrent layer of a network alone."""

    text: Text

    def __str__(self) -> str:
        layer = self._layer
        sizes = f"{layer.num_layers}x{layer.hidden_size}" if layer.num_layers > 1 else str(layer.hidden_size)
        return f"{type(layer).__name__} {sizes} of {layer.input_size}, {self.text.time} steps"

    @cached_property
    def _layer(self) -> nn.RNNBase:
        with torch.device("meta"):
            model = self.text.build()
        (layer,) = (module for module in model.modules() if isinstance(module, nn.RNNBase))
        return layer

    @property
    def size(self) -> int:
        """Positions of its weights."""
        return sum(weight.numel() for weight in self._layer.parameters() if weight.dim() > 1)

    def flops(self, connections: int, batch: int) -> float:
        """Count the FLOPs of a forward pass with this many connections: two per connection and token."""
        return 2.0 * connections * batch * self.text.time

    def dense(self, dtype: torch.dtype) -> nn.Module:
        """Return the dense layer."""
        layer = copy.deepcopy(self._layer).to_empty(device="cpu").to(dtype)
        layer.reset_parameters()
        return Output(layer)

    def sparse(self, dense: nn.Module, sparsity: float) -> nn.Module:
        """Return `dense` with compressed storage; `dense` stays as it is."""
        return regrow.sparsify(
            copy.deepcopy(dense), sparsity, "uniform", include=["layer"], storage="compressed"
        )

    def example(self, batch: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return an input and a gradient of the output."""
        lead = (batch, self.text.time) if self._layer.batch_first else (self.text.time, batch)
        sizes = self._layer.input_size, self._layer.hidden_size
        return torch.randn(*lead, sizes[0], dtype=dtype), torch.randn(*lead, sizes[1], dtype=dtype)

    def laid_out(self, tensor: Tensor) -> Tensor:
        """Return `tensor` as it is: what stands around recurrent layers has torch's layout."""
        return tensor


def measure(text: Text, batch: int, sparsities: Sequence[float], settings: Settings) -> list[Comparison]:
    """Measure a training step of a network at each sparsity, then its recurrent layer alone."""
    network = networks.Network(str(text), text.build, text.sparsify, text.tokens(batch))
    return [
        *networks.measure(network, sparsities, settings),
        *layers.measure(Cells(text), batch, sparsities, settings),
    ]
