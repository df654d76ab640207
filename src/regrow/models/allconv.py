"""A plain convolutional network without pooling: strides instead."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from regrow.arguments import require_count
from regrow.errors import RegrowValueError
from regrow.models.plain import Plain, convolution
from regrow.models.width import require_width, scaled


class AllConv(Plain):
    """3x3 convolutions with norm and ReLU, every other one with stride 2."""

    def __init__(self, hidden: Sequence[int], classes: int, channels: int, width: float) -> None:
        classes = require_count("classes", classes)
        inputs = require_count("channels", channels)
        width = require_width(width)
        if not hidden:
            raise RegrowValueError(f"`hidden` must name one convolution or more, got {hidden!r}")
        modules: list[nn.Module] = []
        for index, base in enumerate(hidden):
            outputs = scaled(require_count("hidden", base), width)
            modules += convolution(inputs, outputs, stride=2 if index % 2 == 0 else 1)
            inputs = outputs
        super().__init__(modules, inputs, classes)


def allconv(
    hidden: Sequence[int] = (64, 64, 128, 128), classes: int = 10, channels: int = 1, width: float = 1.0
) -> AllConv:
    """Build a small network in the manner of the all convolutional net; 259,904 weights by default.

    Args:
        hidden: channels of the convolutions.
        classes: the number of outputs.
        channels: channels of the images.
        width: factor of all channels but those of images and outputs.
    """
    return AllConv(hidden, classes, channels, width)
