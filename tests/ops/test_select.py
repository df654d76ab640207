"""Exact selection against a stable sort."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regrow._random import generator, sample
from regrow.errors import RegrowRuntimeError
from regrow.ops import csr, native
from regrow.ops.select import Best, floor_of, top


@given(st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5, float("inf"), -float("inf")]), max_size=40), st.data())
def test_as_a_stable_descending_sort(values: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(values)))
    scores = torch.tensor(values, dtype=torch.float64)
    expected = torch.sort(scores, descending=True, stable=True).indices[:count].sort().values
    assert torch.equal(top(scores, count), expected)
    lowest = torch.sort(scores, stable=True).indices[:count].sort().values
    assert torch.equal(top(scores, count, lowest=True), lowest)


@pytest.mark.skipif(not native.available(), reason="the kernels are not built")
@pytest.mark.parametrize("share", [0.001, 0.05, 0.3])
def test_the_floor_of_a_sample_lets_somewhat_more_than_the_share_pass(share: float) -> None:
    """Where what is not free has the highest scores of all, too."""
    gradient = torch.randn(200, 1000, generator=generator(0))
    excluded = sample(60_000, 200_000, generator(1))
    gradient.view(-1)[excluded] *= 100
    rows = torch.arange(3, 200, 7)
    floor = floor_of(gradient[rows], rows, excluded, share)
    free = torch.ones(200_000, dtype=torch.bool).index_fill(0, excluded, False).view(200, 1000)[rows]
    passing = int((gradient[rows].abs() >= floor)[free].sum())
    assert 1.5 * share < passing / int(free.sum()) < 2 * share + 0.01
    assert floor_of(gradient[rows], rows, excluded, 0.9) == -float("inf")  # nearly all


def test_nan_is_refused() -> None:
    with pytest.raises(RegrowRuntimeError, match="a score is nan"):
        top(torch.tensor([1.0, float("nan"), 2.0]), 2)


@pytest.mark.parametrize("change", ["dtype", "kernels"])
def test_tiles_that_go_on_by_the_reference(change: str) -> None:
    """What a kernel has found so far stays, when a tile is of another dtype or the kernels are turned off."""
    scores = torch.randn(40, generator=generator(0), dtype=torch.float64).float()
    best = Best(5, torch.device("cpu"))
    none = torch.empty(0, dtype=torch.int64)
    best.add(scores[:20], none, 0)
    if change == "dtype":
        best.add(scores[20:].double(), none, 20)
    else:
        with native.reference_only():
            best.add(scores[20:], none, 20)
    assert torch.equal(best.positions(), top(scores, 5))


@pytest.mark.parametrize("piece", [3, 1 << 19])
def test_have_common_is_whether_isin_finds_any(monkeypatch, piece):
    monkeypatch.setattr(csr, "PIECE", piece)
    draw = generator(0, "common")
    for _ in range(200):
        some, others = (
            torch.randint(60, (int(torch.randint(9, (), generator=draw)),), generator=draw).unique()
            for _ in range(2)
        )
        assert csr.have_common(some, others) == bool(torch.isin(some, others).any())
