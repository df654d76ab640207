"""VGG-16 and VGG-19 with batch norm, in the form for CIFAR."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from regrow.errors import require_count
from regrow.models.width import require_width, scaled

STAGES = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """Stages of 3x3 convolutions with norm and ReLU (``features``), max-pooling after each, one linear layer ``fc``."""

    def __init__(self, convolutions: Sequence[int], classes: int, channels: int, width: float) -> None:
        super().__init__()
        require_count("classes", classes)
        inputs = require_count("channels", channels)
        width = require_width(width)
        modules: list[nn.Module] = []
        for base, count in zip(STAGES, convolutions, strict=True):
            outputs = scaled(base, width)
            for _ in range(count):
                modules += [
                    nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                    nn.BatchNorm2d(outputs),
                    nn.ReLU(),
                ]
                inputs = outputs
            modules.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*modules)
        self.fc = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, classes] of images `x` [N, channels, H, W], H and W at least 32."""
        logits: Tensor = self.fc(self.features(x).mean((2, 3)))
        return logits


def vgg16(classes: int = 10, channels: int = 3, width: float = 1.0) -> VGG:
    """VGG-16: thirteen convolutions and one linear layer.

    Args:
        classes: the number of outputs.
        channels: channels of the images.
        width: factor of all channels but those of images and outputs.
    """
    return VGG((2, 2, 3, 3, 3), classes, channels, width)


def vgg19(classes: int = 10, channels: int = 3, width: float = 1.0) -> VGG:
    """VGG-19: sixteen convolutions and one linear layer.

    Args:
        classes: the number of outputs.
        channels: channels of the images.
        width: factor of all channels but those of images and outputs.
    """
    return VGG((2, 2, 4, 4, 4), classes, channels, width)
