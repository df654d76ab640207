"""The columns of connections as the gaps between them, one byte each: the half or a quarter of their size in a file.

A byte below 255 is a connection, so many columns after the one before it in its row, or after column 0; 255 is none,
and adds 255 to the gap of the next.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

ESCAPE = 255
NARROW = 65_536
"""So many columns have numbers of 16 bits."""


def column_dtype(columns: int) -> torch.dtype:
    """Return the dtype of column numbers in a matrix of so many columns."""
    return torch.uint16 if columns <= NARROW else torch.int32


def encode(crow: Tensor, col: Tensor) -> Tensor:
    """Return the gaps, uint8 [nnz and one for each 255 columns of a gap].

    Args:
        crow: row pointers, int32 [rows + 1].
        col: columns, ascending in each row, uint16 or int32 [nnz].
    """
    columns = col.numpy().astype(np.int32)
    gaps = np.diff(columns, prepend=np.int32(0))
    first = _first(crow.numpy())
    gaps[first] = columns[first]
    more, last = np.divmod(gaps, ESCAPE)
    found = np.full(len(gaps) + int(more.sum(dtype=np.int64)), ESCAPE, dtype=np.uint8)
    found[np.cumsum(more + 1, dtype=np.int64) - 1] = last
    return torch.from_numpy(found)


def decode(crow: Tensor, gaps: Tensor, columns: int) -> Tensor:
    """Return the columns that `encode` was given, uint16 or int32 [nnz].

    Args:
        crow: row pointers, int32 [rows + 1]: from 0 on, ascending.
        gaps: what `encode` returned.
        columns: of the matrix.

    Raises:
        ValueError: gaps that are not those of `crow`, or columns out of range or not ascending.
    """
    bytes_, pointers = gaps.numpy(), crow.numpy()
    ends = bytes_ != ESCAPE
    if int(np.count_nonzero(ends)) != int(pointers[-1]) or (len(ends) and not ends[-1]):
        raise ValueError("its columns are not as many as its connections")
    # the running sum may overflow, and so does what is taken off: the differences are right
    total = np.cumsum(bytes_, dtype=np.uint32)[ends]
    first = _first(pointers)
    before = np.zeros(len(first), dtype=np.uint32)
    before[1:] = total[first[1:] - 1]
    found = total - np.repeat(before, np.diff(np.append(first, len(total))))
    ascending = found[1:] > found[:-1]
    ascending[first[1:] - 1] = True
    if not ascending.all() or (len(found) and int(found.max()) >= columns):
        raise ValueError(f"its columns must ascend in each row, in [0, {columns})")
    return torch.from_numpy(found.astype(np.uint16 if columns <= NARROW else np.int32))


def _first(
    pointers: np.ndarray[tuple[int], np.dtype[np.int32]],
) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """Return which connection is the first of each row that has any, ascending."""
    return pointers[:-1][np.diff(pointers) > 0]
