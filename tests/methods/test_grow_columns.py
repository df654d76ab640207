"""Growth candidates searched in some of the columns only."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import regrow
from regrow.errors import RegrowError
from regrow.growth.among import Among
from regrow.weights.views import sparse_weights

ROWS, COLUMNS, BATCH = 30, 40, 5


def updated(
    storage: str, sparsity: float = 0.9, **options: Any
) -> tuple[Any, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A layer before and after its first update, as masks, and the dense gradient of that step."""
    torch.manual_seed(0)
    model = regrow.sparsify(nn.Sequential(nn.Linear(COLUMNS, ROWS).double()), sparsity, storage=storage)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    method = regrow.RigL(model, optimizer, total_steps=10, update_every=1, seed=3, **options)
    for _ in range(2):
        before = regrow.masks(model)["0.weight"]
        x = torch.randn(BATCH, COLUMNS, dtype=torch.float64)
        optimizer.zero_grad()
        y = model(x)
        y.retain_grad()
        y.square().sum().backward()
        gradient = y.grad.t() @ x
        optimizer.step()
    return method, before, regrow.masks(model)["0.weight"], gradient


@pytest.mark.parametrize("columns", [7, 0.5])
def test_both_storages_choose_the_best_of_the_same_columns(columns: float) -> None:
    results = [updated(storage, grow_columns=columns) for storage in ("masked", "compressed")]
    for method, before, after, gradient in results:
        assert torch.equal(after, results[0][2])
        assert int(after.sum()) == int(before.sum())
        grown = after & ~before
        (weight,) = sparse_weights(method.model)
        rank = torch.randperm(COLUMNS, generator=method.random(1, weight))
        chosen = torch.zeros(COLUMNS, dtype=torch.bool)
        chosen[rank[: 7 if columns == 7 else 20]] = True
        assert int(grown.sum()) > 0
        assert not grown[:, ~chosen].any()
        score = gradient.abs().masked_fill(before, -1)[:, chosen]
        worst = score[grown[:, chosen]].min()  # nothing better in these columns was left out
        assert int((score > worst).sum()) < int(grown.sum())


def test_columns_without_room_are_joined_by_others() -> None:
    method, before, after, _ = updated("compressed", 0.05, grow_columns=1, drop_fraction=1.0)
    assert int(after.sum()) == int(before.sum())
    (weight,) = sparse_weights(method.model)
    free = torch.arange(ROWS * COLUMNS)
    among = method.among(
        weight, ROWS + 1, torch.empty(0, dtype=torch.int64), torch.Generator().manual_seed(0)
    )
    assert len(among.chosen) == 2
    assert method.among(weight, 1, free, torch.Generator().manual_seed(0)) is None


def test_all_columns_are_what_is_published() -> None:
    wanted = updated("compressed")[2]
    assert torch.equal(updated("compressed", grow_columns=1.0)[2], wanted)
    assert torch.equal(updated("compressed", grow_columns=COLUMNS)[2], wanted)


def test_positions_translate() -> None:
    among = Among(torch.tensor([1, 4, 5]), 7)
    positions = torch.arange(5 * 7)
    inside = positions[torch.isin(positions % 7, among.chosen)]
    assert among.narrow(positions).tolist() == list(range(15))
    assert torch.equal(among.widen(torch.arange(15)), inside)


@pytest.mark.parametrize("value", [0, -1, 0.0, 1.5, True, "half", math.nan])
def test_wrong_numbers_of_columns(value: Any) -> None:
    with pytest.raises(
        RegrowError, match="`grow_columns` must be None, a number of columns above 0 or a share"
    ):
        updated("masked", grow_columns=value)


def test_random_growth_searches_nothing() -> None:
    model = regrow.sparsify(nn.Sequential(nn.Linear(8, 8)), 0.5)
    with pytest.raises(RegrowError, match="`grow_columns` must be None, got 3: SetITOP searches nothing"):
        regrow.SetITOP(model, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=9000, grow_columns=3)
