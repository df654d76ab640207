"""MobileNet-v1."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from regrow.arguments import require_count
from regrow.models.plain import initialise
from regrow.models.width import require_width, scaled

BLOCKS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
    (512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1),
)  # fmt: skip
"""Output channels and stride of each block."""


def _padding(stride: int) -> nn.Module:
    """Pad before a 3x3 of stride 2: right and bottom, as TensorFlow pads, by a layer of its own as in Keras."""
    return nn.ZeroPad2d((0, 1, 0, 1)) if stride == 2 else nn.Identity()


class SeparableBlock(nn.Module):
    """A depthwise 3x3 and a pointwise 1x1 convolution, each with norm and ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.pad = _padding(stride)
        padding = 0 if stride == 2 else 1
        self.depthwise = nn.Conv2d(inputs, inputs, 3, stride, padding, groups=inputs, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features [N, outputs, H / stride, W / stride] of `x` [N, inputs, H, W]."""
        x = F.relu(self.bn1(self.depthwise(self.pad(x))))
        return F.relu(self.bn2(self.pointwise(x)))


class MobileNetV1(nn.Module):
    """``conv1``, thirteen depthwise separable ``blocks``, average pooling, ``fc``.

    The classifier is a 1x1 convolution, as in Keras: the same map as a linear layer, but ERK's sum over the shape,
    and with it the published figures, count 2 more.
    """

    def __init__(self, classes: int, channels: int, width: float) -> None:
        super().__init__()
        classes, channels = require_count("classes", classes), require_count("channels", channels)
        width = require_width(width)
        inputs = scaled(32, width)
        self.pad = _padding(2)
        self.conv1 = nn.Conv2d(channels, inputs, 3, 2, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        blocks = []
        for count, stride in BLOCKS:
            outputs = scaled(count, width)
            blocks.append(SeparableBlock(inputs, outputs, stride))
            inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Conv2d(inputs, classes, 1)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [N, classes] of images `x` [N, channels, H, W]."""
        x = self.blocks(F.relu(self.bn1(self.conv1(self.pad(x)))))
        logits: Tensor = self.fc(x.mean((2, 3), keepdim=True)).flatten(1)
        return logits


def mobilenet_v1(classes: int = 1000, channels: int = 3, width: float = 1.0) -> MobileNetV1:
    """Build MobileNet-v1: 4,209,088 weights. The RigL paper keeps ``conv1`` and the depthwise kernels dense.

    Args:
        classes: the number of outputs.
        channels: channels of the images.
        width: factor of all channels but those of images and outputs.
    """
    return MobileNetV1(classes, channels, width)
