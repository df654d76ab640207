"""A plain convolutional network without pooling: strides instead."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from regrow.errors import RegrowValueError, require_count
from regrow.models.width import require_width, scaled


class AllConv(nn.Module):
    """3x3 convolutions with norm and ReLU (``features``), every other one with stride 2, mean of all pixels, ``fc``."""

    def __init__(self, hidden: Sequence[int], classes: int, channels: int, width: float) -> None:
        super().__init__()
        require_count("classes", classes)
        inputs = require_count("channels", channels)
        width = require_width(width)
        if not hidden:
            raise RegrowValueError(f"`hidden` must name one convolution or more, got {hidden!r}")
        modules: list[nn.Module] = []
        for index, base in enumerate(hidden):
            outputs = scaled(require_count("hidden", base), width)
            modules += [
                nn.Conv2d(inputs, outputs, 3, 2 if index % 2 == 0 else 1, 1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
            inputs = outputs
        self.features = nn.Sequential(*modules)
        self.fc = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, classes] of images `x` [N, channels, H, W]."""
        logits: Tensor = self.fc(self.features(x).mean((2, 3)))
        return logits


def allconv(
    hidden: Sequence[int] = (64, 64, 128, 128), classes: int = 10, channels: int = 1, width: float = 1.0
) -> AllConv:
    """A small convolutional network in the manner of the all convolutional net; 259,904 weights by default.

    Args:
        hidden: channels of the convolutions.
        classes: the number of outputs.
        channels: channels of the images.
        width: factor of all channels but those of images and outputs.
    """
    return AllConv(hidden, classes, channels, width)
