"""ResNet-18 and ResNet-50, in the form for ImageNet and in the form for CIFAR.

Modules are named as torchvision names them, so that its checkpoints load.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from regrow.arguments import require_count
from regrow.models.plain import initialise
from regrow.models.width import require_width, scaled

STAGES = (64, 128, 256, 512)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """Return a projection where the shape changes."""
    if inputs == outputs and stride == 1:
        return None
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, the stride on the first."""

    expansion = 1

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, inner, 3, stride), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = _conv(inner, outputs, 3), nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features [N, outputs, H / stride, W / stride] of `x` [N, inputs, H, W]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, the stride on the 3x3."""

    expansion = 4

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, inner, 1), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = _conv(inner, inner, 3, stride), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = _conv(inner, outputs, 1), nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features [N, outputs, H / stride, W / stride] of `x` [N, inputs, H, W]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        y = self.bn3(self.conv3(y))
        return F.relu(y + shortcut)


class ResNet(nn.Module):
    """A stem (``conv1``), four stages of blocks (``layer1`` to ``layer4``) and a linear layer (``fc``).

    The stem for ImageNet is a padding layer, a 7x7 convolution of stride 2 and max-pooling; the one for CIFAR is a
    3x3 convolution.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: Sequence[int],
        stem: str,
        classes: int,
        channels: int,
        width: float,
    ) -> None:
        super().__init__()
        classes, channels = require_count("classes", classes), require_count("channels", channels)
        width = require_width(width)
        inputs = scaled(64, width)
        # the padding is a layer of its own, as in Keras: the published FLOPs see an input of 230 x 230
        self.pad = nn.ZeroPad2d(3) if stem == "imagenet" else nn.Identity()
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(channels, inputs, 7, 2, bias=False)
        else:
            self.conv1 = _conv(channels, inputs, 3)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else nn.Identity()
        stages = []
        for stage, (inner, count) in enumerate(zip(STAGES, blocks, strict=True), 1):
            outputs = scaled(inner * block.expansion, width)
            modules = []
            for index in range(count):
                stride = 2 if stage > 1 and index == 0 else 1
                modules.append(block(inputs, scaled(inner, width), outputs, stride))
                inputs = outputs
            stages.append(nn.Sequential(*modules))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.Linear(inputs, classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [N, classes] of images `x` [N, channels, H, W]."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(self.pad(x)))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def resnet18(classes: int = 1000, channels: int = 3, width: float = 1.0) -> ResNet:
    """Build ResNet-18 in the form for ImageNet.

    Args:
        classes: the number of outputs.
        channels: channels of the images.
        width: factor of all channels but those of images and outputs.
    """
    return ResNet(BasicBlock, (2, 2, 2, 2), "imagenet", classes, channels, width)


def resnet50(classes: int = 1000, channels: int = 3, width: float = 1.0) -> ResNet:
    """Build ResNet-50 in the form for ImageNet, the stride on the 3x3: 25,502,912 weights.

    Args:
        classes: the number of outputs.
        channels: channels of the images.
        width: factor of all channels but those of images and outputs.
    """
    return ResNet(Bottleneck, (3, 4, 6, 3), "imagenet", classes, channels, width)


def resnet18_cifar(classes: int = 10, channels: int = 3, width: float = 1.0) -> ResNet:
    """Build ResNet-18 with a 3x3 stem, without max-pooling.

    Args:
        classes: the number of outputs.
        channels: channels of the images.
        width: factor of all channels but those of images and outputs.
    """
    return ResNet(BasicBlock, (2, 2, 2, 2), "cifar", classes, channels, width)


def resnet50_cifar(classes: int = 10, channels: int = 3, width: float = 1.0) -> ResNet:
    """Build ResNet-50 with a 3x3 stem, without max-pooling.

    Args:
        classes: the number of outputs.
        channels: channels of the images.
        width: factor of all channels but those of images and outputs.
    """
    return ResNet(Bottleneck, (3, 4, 6, 3), "cifar", classes, channels, width)
