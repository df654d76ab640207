"""Fully connected networks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from regrow.arguments import require_count, require_flag, require_iterable
from regrow.models.width import require_width, scaled
from regrow.nn import LowRankLinear


class MLP(nn.Module):
    """Linear layers ``layers.0 .. layers.n`` with ReLU between them.

    Args:
        sizes: inputs, the width of each hidden layer, and outputs.
        rank: all layers but the last are `LowRankLinear` of this rank; None for linear layers.
        rest: whether these have a rest of full rank.
    """

    def __init__(self, sizes: Sequence[int], rank: int | None = None, rest: bool = True) -> None:
        super().__init__()
        # ReLU modules sit in between, so that the layers of 784-300-100-10 are layers.0, layers.2, layers.4
        modules: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes[:-1]):
            wide = (inputs, outputs)
            hidden = nn.Linear(*wide) if rank is None else LowRankLinear(*wide, rank, rest=rest)
            modules += [hidden, nn.ReLU()]
        self.layers = nn.Sequential(*modules, nn.Linear(sizes[-2], sizes[-1]))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [N, classes] of `x`, [N, ...] with as many values an example as the network has inputs."""
        logits: Tensor = self.layers(x.flatten(1))
        return logits


def mlp(
    inputs: int = 784,
    hidden: Sequence[int] = (300, 100),
    classes: int = 10,
    width: float = 1.0,
    rank: int | None = None,
    rest: bool = True,
) -> MLP:
    """Build an MLP, LeNet-300-100 by default: 784-300-100-10, 266,200 weights.

    Args:
        inputs: values of one example; images [N, C, H, W] are flattened to C * H * W.
        hidden: the width of each hidden layer.
        classes: the number of outputs.
        width: factor of the hidden layers.
        rank: that of the hidden layers' core, each a `regrow.nn.LowRankLinear`; None for linear layers.
        rest: whether these have a rest of full rank beside the core.
    """
    width = require_width(width)
    inputs, classes = require_count("inputs", inputs), require_count("classes", classes)
    counts = [
        require_count("hidden", count) for count in require_iterable("hidden", hidden, "a list of widths")
    ]
    rank = None if rank is None else require_count("rank", rank)
    sizes = [inputs, *(scaled(count, width) for count in counts), classes]
    return MLP(sizes, rank, require_flag("rest", rest))
