"""LeNet-5 as Caffe ships it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from regrow.arguments import require_count
from regrow.errors import RegrowValueError
from regrow.models.width import require_width, scaled


class LeNet(nn.Module):
    """Two 5x5 convolutions with max-pooling, then two linear layers: ``conv1``, ``conv2``, ``fc1``, ``fc2``."""

    def __init__(self, channels: int, size: int, classes: int, width: float) -> None:
        super().__init__()
        channels, classes = require_count("channels", channels), require_count("classes", classes)
        size = require_count("size", size)
        side = ((size - 4) // 2 - 4) // 2
        if side < 1:
            raise RegrowValueError(
                f"`size` must be at least 16, for two 5x5 convolutions and pooling, got {size}"
            )
        width = require_width(width)
        first, second, hidden = (scaled(count, width) for count in (20, 50, 500))
        self.conv1 = nn.Conv2d(channels, first, 5)
        self.conv2 = nn.Conv2d(first, second, 5)
        self.fc1 = nn.Linear(second * side * side, hidden)
        self.fc2 = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [N, classes] of images `x` [N, channels, size, size]."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        logits: Tensor = self.fc2(F.relu(self.fc1(x.flatten(1))))
        return logits


def lenet(channels: int = 1, size: int = 28, classes: int = 10, width: float = 1.0) -> LeNet:
    """Build LeNet-5-Caffe: 20 and 50 channels, 500 hidden units, 430,500 weights at the defaults.

    Args:
        channels: channels of the images.
        size: height and width of the images, at least 16.
        classes: the number of outputs.
        width: factor of the channels and hidden units.
    """
    return LeNet(channels, size, classes, width)
