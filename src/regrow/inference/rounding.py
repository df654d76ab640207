"""`Rounding`: how a layer with an int8 weight rounds its input."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regrow.inference.graph import Node

HIGHEST = 127


@dataclass(frozen=True)
class Rounding:
    """To multiples of `scale`: from -127 to 127 times it if `signed`, else from 0 on."""

    scale: float
    signed: bool

    @classmethod
    def of(cls, node: Node) -> Rounding | None:
        """Return how a convolution or linear layer rounds its input; None if it does not."""
        if "input_scale" not in node.kwargs:
            return None
        return cls(node.kwargs["input_scale"], node.kwargs["input_signed"])

    def kwargs(self) -> dict[str, float | bool]:
        """Return the keyword arguments of such a layer."""
        return {"input_scale": self.scale, "input_signed": self.signed}

    @property
    def lowest(self) -> int:
        """The lowest multiple."""
        return -HIGHEST if self.signed else 0

    @property
    def inverse(self) -> float:
        """What is multiplied with: a number of float32, as the kernel has it."""
        return float(torch.tensor(1 / self.scale, dtype=torch.float32, device="cpu"))

    def integers(self, x: Tensor) -> Tensor:
        """Return the multiple that each element becomes, in float32; nan becomes the lowest."""
        found = (x * self.inverse).round_().clamp_(self.lowest, HIGHEST)
        return found.nan_to_num_(nan=self.lowest)

    def __call__(self, x: Tensor) -> Tensor:
        """Return `x` rounded."""
        return self.integers(x) * self.scale
