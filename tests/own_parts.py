"""A user's file: a network, data, and RigL whose process gets a signal in the middle of an update, once.

SIGNAL_AT is the step, SIGNAL the signal's name, SIGNALS how often, SIGNALLED a file that is there once it happened.
"""

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import torch

import regrow
from regrow.methods import register


@register(name="signalled", paper="none", line="RigL with a signal in the middle of an update")
class Signalled(regrow.RigL):
    """The first layer has its new topology when the signal comes, the others have not."""

    def move(self, weight, drop, grow):
        moved = super().move(weight, drop, grow)
        happened = Path(os.environ.get("SIGNALLED", "/"))
        if str(self.step) == os.environ.get("SIGNAL_AT") and not happened.exists():
            happened.touch()
            for _ in range(int(os.environ.get("SIGNALS", "1"))):
                os.kill(os.getpid(), getattr(signal, os.environ["SIGNAL"]))
        return moved


def network(dropout: float = 0.2) -> torch.nn.Module:
    """A network with all that has a state of its own, or draws from the generator."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 6, 3),
        torch.nn.BatchNorm2d(6),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Dropout(dropout),
        torch.nn.Linear(6 * 36, 16),
        torch.nn.ReLU(),
        torch.nn.Linear(16, 4),
    )


def steep() -> torch.nn.Module:
    """A network with very large gradients."""
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4)
    )
    model.register_forward_hook(lambda module, inputs, output: 1e4 * output)
    return model


def points(count: int = 120) -> SimpleNamespace:
    """Data by a user's own function: points in a plane, the class being the quadrant."""
    inputs = torch.randn(count, 2, generator=torch.Generator().manual_seed(0))
    targets = (inputs > 0).long() @ torch.tensor([1, 2])
    return SimpleNamespace(
        train_inputs=inputs,
        train_targets=targets,
        test_inputs=inputs[:40],
        test_targets=targets[:40],
        classes=4,
    )
