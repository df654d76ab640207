"""What the first layer of a network on images looks at: connections per input pixel, and the mean image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regrow.data import Tensors, Text, spread
from regrow.weights import SparseWeight, sparse_weights
from regrow.weights.views import named_records

LARGEST = 256 * 256
"""Images with more pixels are not mapped: a map is a line of text at each update."""


@dataclass
class PixelMap:
    """Connections that leave each pixel of images [C, H, W] into the sparse first layer `weight`."""

    weight: SparseWeight
    channels: int
    height: int
    width: int

    @classmethod
    def of(cls, model: nn.Module, inputs: Tensor) -> PixelMap | None:
        """Return the map of `model` on `inputs`; None where its first layer is dense, or no linear layer on images.

        A convolution has none: each of its connections reads all of the image.
        """
        looked_at, sparse = list(named_records(model).values()), sparse_weights(model)
        if not sparse or sparse[0].name != looked_at[0].name or not is_image(inputs):
            return None
        if sparse[0].shape[1:] != (math.prod(inputs.shape[1:]),):
            return None
        return cls(sparse[0], *inputs.shape[1:])

    def record(self, step: int) -> dict[str, Any]:
        """Return the line of ``maps.jsonl`` for the topology as it is after `step` steps."""
        columns = self.weight.shape[1]
        counts = torch.bincount(self.weight.positions() % columns, minlength=columns)
        pixels = counts.view(self.channels, -1).sum(0)
        return {
            "step": step,
            "layer": self.weight.name,
            "size": [self.height, self.width],
            "counts": pixels.tolist(),
        }


def is_image(inputs: Tensor) -> bool:
    """Return whether `inputs` [N, C, H, W] are images small enough to be mapped."""
    return inputs.dim() == 4 and inputs.shape[2] * inputs.shape[3] <= LARGEST


def describe(data: Tensors, name: str) -> dict[str, Any]:
    """Return what ``data.json`` holds: sizes; for images, their mean in the data's own unit, over the channels; for a
    text, its unit and the shares of unknown symbols.
    """
    inputs = data.train_inputs
    described: dict[str, Any] = {
        "name": name,
        "train": len(inputs),
        "test": len(data.test_inputs),
        **({"classes": data.classes} if hasattr(data, "classes") else {}),
        "shape": list(inputs.shape[1:]),
    }
    if isinstance(data, Text):
        described |= {"unit": data.vocabulary.unit, "unknown": data.unknown()}
    if is_image(inputs):
        described["mean_image"] = [[round(value, 4) for value in row] for row in _mean_image(data).tolist()]
    return described


def _mean_image(data: Tensors) -> Tensor:
    """Return the mean image [H, W], over examples and channels, in the data's own unit."""
    some = spread(data.train_inputs)
    total = sum(part.float().sum(0).double() for part in some.split(1000))
    mean = torch.as_tensor(total, device="cpu") / len(some)  # [C, H, W]
    if some.dtype == torch.uint8:
        return mean.mean(0) / 255
    shift, scale = (
        torch.as_tensor(getattr(data, *default), device="cpu").view(-1, 1, 1)
        for default in (("mean", 0.0), ("std", 1.0))
    )
    return (mean * scale + shift).mean(0)
