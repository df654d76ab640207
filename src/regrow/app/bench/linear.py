"""Linear layers: what the measurements of layers, updates and memory need to know of them."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import regrow
from regrow._random import generator, sample
from regrow.errors import RegrowValueError
from regrow.weights import Record
from regrow.weights.attach import attach

BLOCKS = 64


@dataclass(frozen=True)
class Linear:
    """A linear layer of so many outputs (rows) and inputs (columns)."""

    rows: int
    columns: int

    def __str__(self) -> str:
        return f"linear {self.rows}x{self.columns}"

    @property
    def size(self) -> int:
        """Positions of the weight."""
        return self.rows * self.columns

    def flops(self, connections: int, batch: int) -> float:
        """Count the FLOPs of a forward pass with this many connections: two per connection and example."""
        return 2.0 * connections * batch

    def dense(self, dtype: torch.dtype) -> nn.Linear:
        """Return the dense layer."""
        return nn.Linear(self.columns, self.rows, dtype=dtype)

    def sparse(self, dense: nn.Module, sparsity: float) -> nn.Module:
        """Return `dense` with compressed storage; `dense` stays as it is."""
        model = nn.Sequential(copy.deepcopy(dense))
        regrow.sparsify(model, sparsity, "uniform", include=["*"], storage="compressed")
        return model[0]

    def example(self, batch: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return an input and a gradient of the output, in torch's own layout."""
        return torch.randn(batch, self.columns, dtype=dtype), torch.randn(batch, self.rows, dtype=dtype)

    def laid_out(self, tensor: Tensor) -> Tensor:
        """Return `tensor` as sparse layers of this kind hand it to each other: the batch innermost."""
        return tensor.t().contiguous().t()

    def random(self, connections: int, dtype: torch.dtype) -> nn.Sequential:
        """Return a network of this one layer, compressed, made from its connections alone."""
        positions = _positions(connections, self.size)
        values = torch.randn(connections, generator=generator(1), dtype=dtype)
        values.mul_((self.rows / connections) ** 0.5)
        layer = regrow.SparseLinear(self.columns, self.rows, positions=positions, values=values)
        attach(
            layer,
            "weight",
            Record("0.weight", (self.rows, self.columns), connections / self.size, "compressed"),
        )
        return nn.Sequential(layer)


def _positions(count: int, population: int) -> Tensor:
    """Return `count` random positions, ascending; drawn block by block, which needs little memory beside the result."""
    found = torch.empty(count, dtype=torch.int64)
    draw = generator(0)
    for block in range(BLOCKS):
        first, last = (population * b // BLOCKS for b in (block, block + 1))
        start, stop = (count * b // BLOCKS for b in (block, block + 1))
        found[start:stop] = first + sample(stop - start, last - first, draw)
    return found


def linears(text: str) -> list[Linear]:
    """Return the layers in ``768x3072,1024x1024``, outputs before inputs.

    Raises:
        RegrowValueError: text that is something else.
    """
    layers = []
    for word in text.split(","):
        match = re.fullmatch(r"\s*([1-9]\d*)x([1-9]\d*)\s*", word)
        if match is None:
            raise RegrowValueError(
                f"`--linear` must be OUTPUTSxINPUTS such as 768x3072, several divided by commas, got {word!r}"
            )
        layers.append(Linear(int(match[1]), int(match[2])))
    return layers
