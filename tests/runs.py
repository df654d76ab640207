"""Small training runs that tests of methods share."""

from __future__ import annotations

import pytest
import torch

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
