"""Convolutions: what the measurement of layers needs to know of them."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import regrow
from regrow.errors import RegrowValueError
from regrow.tiles.tensor import to_tiles


@dataclass(frozen=True)
class Convolution:
    """A convolution of images side x side, padded so that stride 1 keeps their size."""

    outputs: int
    inputs: int
    side: int
    kernel: int = 3
    stride: int = 1

    def __str__(self) -> str:
        stride = f", stride {self.stride}" if self.stride > 1 else ""
        sizes = f"{self.outputs}x{self.inputs} at {self.side}x{self.side}"
        return f"conv {self.kernel}x{self.kernel} {sizes}{stride}"

    @property
    def size(self) -> int:
        """Positions of the weight."""
        return self.outputs * self.inputs * self.kernel**2

    @property
    def out_side(self) -> int:
        """The side of the output's images."""
        return (self.side + 2 * (self.kernel // 2) - self.kernel) // self.stride + 1

    def flops(self, connections: int, batch: int) -> float:
        """Count the FLOPs of a forward pass with this many connections: two per connection and output pixel."""
        return 2.0 * connections * batch * self.out_side**2

    def dense(self, dtype: torch.dtype) -> nn.Conv2d:
        """Return the dense layer."""
        padding = self.kernel // 2
        return nn.Conv2d(
            self.inputs, self.outputs, self.kernel, self.stride, padding, bias=False, dtype=dtype
        )

    def sparse(self, dense: nn.Module, sparsity: float) -> nn.Module:
        """Return `dense` with compressed storage; `dense` stays as it is."""
        model = nn.Sequential(copy.deepcopy(dense))
        regrow.sparsify(model, sparsity, "uniform", include=["*"], storage="compressed")
        return model[0]

    def example(self, batch: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return an input and a gradient of the output, in torch's own layout."""
        x = torch.randn(batch, self.inputs, self.side, self.side, dtype=dtype)
        return x, torch.randn(batch, self.outputs, self.out_side, self.out_side, dtype=dtype)

    def laid_out(self, tensor: Tensor) -> Tensor:
        """Return `tensor` as sparse layers of this kind hand it to each other: in batch tiles."""
        return to_tiles(tensor)


def convolutions(text: str) -> list[Convolution]:
    """Return the layers in ``64x64x16,64x256x56x1``: outputs, inputs, side, kernel (3) and stride (1).

    Raises:
        RegrowValueError: text that is something else.
    """
    layers = []
    for word in text.split(","):
        if re.fullmatch(r"\s*[1-9]\d*(x[1-9]\d*){2,4}\s*", word) is None:
            raise RegrowValueError(
                "`--conv` must be OUTPUTSxINPUTSxSIDE with xKERNEL (3) and xSTRIDE (1) behind it where they differ, "
                f"such as 64x64x16 or 64x256x56x1, several divided by commas, got {word!r}"
            )
        layers.append(Convolution(*map(int, word.split("x"))))
    return layers
