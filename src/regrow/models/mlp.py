"""Fully connected networks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from regrow.arguments import require_count, require_iterable
from regrow.models.width import require_width, scaled


class MLP(nn.Module):
    """Linear layers ``layers.0 .. layers.n`` with ReLU between them."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        # ReLU modules sit in between, so that the layers of 784-300-100-10 are layers.0, layers.2, layers.4
        modules: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            modules += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.layers = nn.Sequential(*modules[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [N, classes] of `x`, [N, ...] with as many values an example as the network has inputs."""
        logits: Tensor = self.layers(x.flatten(1))
        return logits


def mlp(inputs: int = 784, hidden: Sequence[int] = (300, 100), classes: int = 10, width: float = 1.0) -> MLP:
    """Build an MLP, LeNet-300-100 by default: 784-300-100-10, 266,200 weights.

    Args:
        inputs: values of one example; images [N, C, H, W] are flattened to C * H * W.
        hidden: the width of each hidden layer.
        classes: the number of outputs.
        width: factor of the hidden layers.
    """
    width = require_width(width)
    inputs, classes = require_count("inputs", inputs), require_count("classes", classes)
    counts = [
        require_count("hidden", count) for count in require_iterable("hidden", hidden, "a list of widths")
    ]
    return MLP([inputs, *(scaled(count, width) for count in counts), classes])
