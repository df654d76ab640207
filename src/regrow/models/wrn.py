"""Wide residual networks."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from regrow.arguments import require_count, require_fraction
from regrow.errors import RegrowValueError
from regrow.models.plain import initialise
from regrow.models.width import require_width, scaled


class PreActivationBlock(nn.Module):
    """Norm and ReLU before each of two 3x3 convolutions; a 1x1 convolution as shortcut where channels change."""

    def __init__(self, inputs: int, outputs: int, stride: int, project: bool, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.skip = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if project else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features [N, outputs, H / stride, W / stride] of `x` [N, inputs, H, W]."""
        y = F.relu(self.bn1(x))
        shortcut = x if self.skip is None else self.skip(y)
        y = self.dropout(F.relu(self.bn2(self.conv1(y))))
        result: Tensor = self.conv2(y) + shortcut
        return result


class WRN(nn.Module):
    """``conv1``, three groups of blocks (``group1`` to ``group3``), norm, average pooling, ``fc``."""

    def __init__(
        self, depth: int, widen: int, classes: int, channels: int, dropout: float, width: float
    ) -> None:
        super().__init__()
        if (depth := require_count("depth", depth, least=10)) % 6 != 4:
            raise RegrowValueError(f"`depth` must be 6 n + 4, such as 10, 16, 22 or 28, got {depth}")
        classes, channels = require_count("classes", classes), require_count("channels", channels)
        widen = require_count("widen", widen)
        width = require_width(width)
        inputs = scaled(16, width)
        self.conv1 = nn.Conv2d(channels, inputs, 3, 1, 1, bias=False)
        groups = []
        for group, base in enumerate((16, 32, 64), 1):
            outputs = scaled(base * widen, width)
            blocks = []
            for index in range((depth - 4) // 6):
                stride = 2 if group > 1 and index == 0 else 1
                project = index == 0 and (stride > 1 or inputs != outputs)
                blocks.append(
                    PreActivationBlock(inputs, outputs, stride, project, require_fraction("dropout", dropout))
                )
                inputs = outputs
            groups.append(nn.Sequential(*blocks))
        self.group1, self.group2, self.group3 = groups
        self.bn = nn.BatchNorm2d(inputs)
        self.fc = nn.Linear(inputs, classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [N, classes] of images `x` [N, channels, H, W]."""
        x = self.group3(self.group2(self.group1(self.conv1(x))))
        logits: Tensor = self.fc(F.relu(self.bn(x)).mean((2, 3)))
        return logits


def wrn(
    depth: int = 22,
    widen: int = 2,
    classes: int = 10,
    channels: int = 3,
    dropout: float = 0.0,
    width: float = 1.0,
) -> WRN:
    """Build WRN-depth-widen, pre-activation, with 1x1 convolutions as shortcuts.

    Args:
        depth: number of layers, 6 n + 4.
        widen: the factor k of the paper: groups of 16 k, 32 k and 64 k channels.
        classes: the number of outputs.
        channels: channels of the images.
        dropout: probability between the two convolutions of a block.
        width: factor of all channels but those of images and outputs, the stem's 16 included.
    """
    return WRN(depth, widen, classes, channels, dropout, width)


def wrn_22_2(classes: int = 10, channels: int = 3, dropout: float = 0.0, width: float = 1.0) -> WRN:
    """Build WRN-22-2, the RigL paper's network for CIFAR-10: 1,076,912 weights.

    Args:
        classes: the number of outputs.
        channels: channels of the images.
        dropout: probability between the two convolutions of a block.
        width: factor of all channels but those of images and outputs.
    """
    return WRN(22, 2, classes, channels, dropout, width)
