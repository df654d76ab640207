"""What the convolutional networks have in common."""

from __future__ import annotations

from torch import Tensor, nn


def initialise(model: nn.Module) -> None:
    """Draw the weights of all convolutions again, as He et al. 2015 do, by their fan-out."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def convolution(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    """Build a padded 3x3 convolution, norm and ReLU."""
    return [
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]


class Plain(nn.Module):
    """A chain of modules (``features``), the mean of all pixels, one linear layer ``fc``."""

    def __init__(self, features: list[nn.Module], outputs: int, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(*features)
        self.fc = nn.Linear(outputs, classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [N, classes] of images `x` [N, channels, H, W], H and W large enough for `features`."""
        logits: Tensor = self.fc(self.features(x).mean((2, 3)))
        return logits
