"""Columns as bytes: what is encoded comes back, whatever the gaps."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from regrow.inference import gaps


def by_hand(rows: list[list[int]]) -> list[int]:
    """The bytes of the columns of each row, one after the other."""
    found = []
    for row in rows:
        before = 0
        for column in row:
            gap = column - before
            found += [255] * (gap // 255) + [gap % 255]
            before = column
    return found


def csr(rows: list[list[int]], columns: int) -> tuple[Tensor, Tensor]:
    crow = torch.tensor(np.cumsum([0, *map(len, rows)]), dtype=torch.int32)
    return crow, torch.tensor([c for row in rows for c in row], dtype=torch.int32).to(
        gaps.column_dtype(columns)
    )


@pytest.mark.parametrize("columns", [1, 3, 255, 256, 1000, 65_536, 65_537, 2_000_000])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_columns_come_back(columns: int, data: st.DataObject) -> None:
    row = st.lists(st.integers(0, columns - 1), max_size=6, unique=True).map(sorted)
    rows = data.draw(st.lists(row, max_size=6))
    crow, col = csr(rows, columns)
    encoded = gaps.encode(crow, col)
    assert encoded.tolist() == by_hand(rows)
    assert encoded.dtype == torch.uint8
    decoded = gaps.decode(crow, encoded, columns)
    assert decoded.dtype == col.dtype
    assert decoded.tolist() == col.tolist()


def test_sums_that_overflow_are_right() -> None:
    rows, columns = 70_000, 2**16  # the last column of each row: 70,000 * 65,535 is more than 2^32
    crow = torch.arange(rows + 1, dtype=torch.int32)
    col = torch.full((rows,), columns - 1, dtype=torch.int32).to(torch.uint16)
    assert torch.equal(gaps.decode(crow, gaps.encode(crow, col), columns).int(), col.int())


@pytest.mark.parametrize(
    ("encoded", "why"),
    [
        ([1, 2], "not as many"),
        ([1, 2, 3, 4], "not as many"),
        ([1, 2, 3, 255], "not as many"),
        ([1, 0, 3], "must ascend"),
        ([1, 2, 9], r"must ascend in each row, in \[0, 10\)"),
        ([1, 255, 2, 3], "must ascend"),
    ],
)
def test_wrong_bytes_are_refused(encoded: list[int], why: str) -> None:
    crow = torch.tensor([0, 0, 3, 3], dtype=torch.int32)
    assert gaps.decode(crow, torch.tensor([1, 2, 6], dtype=torch.uint8), 10).tolist() == [1, 3, 9]
    with pytest.raises(ValueError, match=why):
        gaps.decode(crow, torch.tensor(encoded, dtype=torch.uint8), 10)
