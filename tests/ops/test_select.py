"""Exact selection against a stable sort."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regrow.errors import RegrowRuntimeError
from regrow.ops.select import top


@given(st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5, float("inf"), -float("inf")]), max_size=40), st.data())
def test_as_a_stable_descending_sort(values: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(values)))
    scores = torch.tensor(values, dtype=torch.float64)
    expected = torch.sort(scores, descending=True, stable=True).indices[:count].sort().values
    assert torch.equal(top(scores, count), expected)


def test_nan_is_refused() -> None:
    with pytest.raises(RegrowRuntimeError, match="a score is nan"):
        top(torch.tensor([1.0, float("nan"), 2.0]), 2)
