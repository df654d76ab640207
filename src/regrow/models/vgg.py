"""VGG-16 and VGG-19 with batch norm, in the form for CIFAR."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from regrow.arguments import require_count
from regrow.models.plain import Plain, convolution
from regrow.models.width import require_width, scaled

STAGES = (64, 128, 256, 512, 512)


class VGG(Plain):
    """Stages of 3x3 convolutions with norm and ReLU, max-pooling after each; images of at least 32 x 32."""

    def __init__(self, convolutions: Sequence[int], classes: int, channels: int, width: float) -> None:
        classes = require_count("classes", classes)
        inputs = require_count("channels", channels)
        width = require_width(width)
        modules: list[nn.Module] = []
        for base, count in zip(STAGES, convolutions, strict=True):
            outputs = scaled(base, width)
            for _ in range(count):
                modules += convolution(inputs, outputs)
                inputs = outputs
            modules.append(nn.MaxPool2d(2))
        super().__init__(modules, inputs, classes)


def vgg16(classes: int = 10, channels: int = 3, width: float = 1.0) -> VGG:
    """Build VGG-16: thirteen convolutions and one linear layer.

    Args:
        classes: the number of outputs.
        channels: channels of the images.
        width: factor of all channels but those of images and outputs.
    """
    return VGG((2, 2, 3, 3, 3), classes, channels, width)


def vgg19(classes: int = 10, channels: int = 3, width: float = 1.0) -> VGG:
    """Build VGG-19: sixteen convolutions and one linear layer.

    Args:
        classes: the number of outputs.
        channels: channels of the images.
        width: factor of all channels but those of images and outputs.
    """
    return VGG((2, 2, 4, 4, 4), classes, channels, width)
