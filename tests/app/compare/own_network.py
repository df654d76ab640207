"""A user's own network, data and method, named by import path or given to ``--import``."""

from types import SimpleNamespace

import torch

import regrow
from regrow.methods import register


def network(hidden: int = 24) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(2, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, 4))


def quadrants(count: int = 200) -> SimpleNamespace:
    """Points in a plane; the class is the quadrant."""
    inputs = torch.randn(count, 2, generator=torch.Generator().manual_seed(0))
    targets = (inputs > 0).long() @ torch.tensor([1, 2])
    return SimpleNamespace(
        train_inputs=inputs, train_targets=targets, test_inputs=inputs, test_targets=targets, classes=4
    )


@register(name="largest", line="drops the largest weights")
class Largest(regrow.RigL):
    """RigL the wrong way round."""

    def drop_score(self, weight):
        return -super().drop_score(weight)
