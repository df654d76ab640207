"""Small training runs that tests of methods share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from regrow.testing import Case, Run

storages = pytest.mark.parametrize("storage", ["masked", "compressed"])


def plain(case: Case, steps: int = 60) -> Run:
    """A run of `steps` ordinary steps."""
    run = Run(case)
    for _ in run.train(0, steps):
        pass
    return run


def assert_same_run(one: Run, two: Run) -> None:
    """The same topology and weights, bit for bit."""
    assert one.topology() == two.topology()
    for a, b in zip(one.dense(), two.dense(), strict=True):
        assert torch.equal(a, b)


def mlp(seed: int = 0) -> nn.Sequential:
    """A small network with a norm, 12 inputs and 4 classes, in float64."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 4)).double()


def data() -> tuple[Tensor, Tensor]:
    """Twenty examples for it, inputs and classes."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(20, 12, generator=generator, dtype=torch.float64), torch.arange(20) % 4
