"""LeNet-5 as Caffe ships it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from regrow.errors import RegrowValueError


class LeNet(nn.Module):
    """Two 5x5 convolutions with max-pooling, then two linear layers: ``conv1``, ``conv2``, ``fc1``, ``fc2``."""

    def __init__(self, channels: int, size: int, classes: int) -> None:
        super().__init__()
        side = ((size - 4) // 2 - 4) // 2
        if side < 1:
            raise RegrowValueError(
                f"`size` must be at least 16, for two 5x5 convolutions and pooling, got {size}"
            )
        self.conv1 = nn.Conv2d(channels, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(50 * side * side, 500)
        self.fc2 = nn.Linear(500, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, classes] of images `x` [N, channels, size, size]."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        logits: Tensor = self.fc2(F.relu(self.fc1(x.flatten(1))))
        return logits


def lenet(channels: int = 1, size: int = 28, classes: int = 10) -> LeNet:
    """LeNet-5-Caffe: 20 and 50 channels, 500 hidden units, 430,500 weights at the defaults.

    Args:
        channels: channels of the images.
        size: height and width of the images, at least 16.
        classes: the number of outputs.
    """
    return LeNet(channels, size, classes)
