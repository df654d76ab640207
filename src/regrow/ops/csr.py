"""`Csr`: the index of a compressed weight, with its mirror image, and how it changes with the topology.

Functions of the topology alone take its row pointers, columns and their number: what is read or changed has no mirror.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from regrow.ops import sketch
from regrow.ops.backends import INDEX, MOVE, POSITIONS, use_kernel
from regrow.ops.sketch import PIECE


class Csr(NamedTuple):
    """Index of a weight [rows, columns], whose values are [capacity, 1]: a CSR matrix, and its transpose.

    The weight has ``crow[-1]`` connections, in ascending order of their positions; what follows is padding. A weight of
    more than two dimensions is the matrix of its first dimension and all the others.
    """

    crow: Tensor
    """Row pointers, int32 [rows + 1]."""
    col: Tensor
    """Column of each connection, int32 [capacity]."""
    crow_t: Tensor
    """Row pointers of the transpose, int32 [columns + 1]."""
    row_t: Tensor
    """Row of each connection, in the order of the transpose, int32 [capacity]."""
    order: Tensor
    """Place in the values of each connection, in the order of the transpose, int32 [capacity]."""

    @classmethod
    def of(cls, crow: Tensor, col: Tensor, columns: int) -> Csr:
        """Build the mirror image of the index of a matrix with so many `columns`."""
        index = cls(crow, col, crow.new_empty(columns + 1), torch.empty_like(col), torch.empty_like(col))
        index.rebuild_mirror()
        return index

    def rebuild_mirror(self) -> int:
        """Write the mirror image of `crow` and `col` over `crow_t`, `row_t` and `order`; return the `fingerprint`."""
        if use_kernel(INDEX, self.crow):
            return int(torch.ops.regrow_native.mirror.default(*self))
        crow, col, crow_t, row_t, order = self
        nnz = int(crow[-1])
        rows = torch.repeat_interleave(torch.arange(len(crow) - 1, device=crow.device), crow.diff())
        used = col[:nnz].long()
        by_column = used.argsort(stable=True)
        for tensor in (crow_t, row_t, order):
            tensor.zero_()
        crow_t[1:] = used.bincount(minlength=len(crow_t) - 1).cumsum(0)
        row_t[:nnz], order[:nnz] = rows[by_column].int(), by_column.int()
        return fingerprint(crow, col, len(crow_t) - 1)


def positions(crow: Tensor, col: Tensor, columns: int, drop: Tensor | None = None) -> Tensor:
    """Return the flat positions of the connections, ascending, int64 [nnz], without those of `drop`, indices."""
    if use_kernel(POSITIONS, col):
        none = torch.empty(0, dtype=torch.int64, device="cpu")
        found: Tensor = torch.ops.regrow_native.positions.default(
            crow, col, columns, none if drop is None else drop.contiguous()
        )
        return found
    row = torch.repeat_interleave(torch.arange(len(crow) - 1, device=crow.device), crow.diff())
    all_positions = row * columns + col[: len(row)]
    if drop is None:
        return all_positions
    stays = torch.ones(len(row), dtype=torch.bool, device=crow.device)
    stays[drop] = False
    return all_positions[stays]


def pieces(crow: Tensor, col: Tensor, columns: int) -> Iterator[Tensor]:
    """Yield the same positions, those of some rows at a time: about `PIECE` of them, or a row's."""
    first = torch.arange(0, int(crow[-1]), PIECE, dtype=crow.dtype, device=crow.device)
    rows = torch.searchsorted(crow[1:].contiguous(), first, right=True).unique().tolist()
    for row, end in pairwise([*rows, len(crow) - 1]):
        start, stop = int(crow[row]), int(crow[end])
        yield positions(crow[row : end + 1] - start, col[start:stop], columns).add_(row * columns)


def from_positions(positions: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Return the index ``crow, col`` (int32, without padding) of flat `positions`, ascending, int64 [nnz]."""
    starts = torch.arange(rows + 1, device=positions.device) * columns
    crow = torch.searchsorted(positions, starts, out_int32=True)
    col = torch.empty(len(positions), dtype=torch.int32, device=positions.device)
    for some, into in zip(positions.split(PIECE), col.split(PIECE), strict=True):
        into.copy_(some % columns)
    return crow, col


def are_positions(positions: Tensor, size: int) -> bool:
    """Check whether these are positions below `size`, int64 [n], ascending without repetition."""
    if (
        positions.dtype != torch.int64
        or positions.dim() != 1
        or bool((positions[1:] <= positions[:-1]).any())
    ):
        return False
    return len(positions) == 0 or (int(positions[0]) >= 0 and int(positions[-1]) < size)


def have_common(some: Tensor, others: Tensor) -> bool:
    """Check whether a position of `some` [n] is one of `others` [m], which ascend; in little memory beside them."""
    if len(others) == 0:
        return False
    last = len(others) - 1
    return any(
        bool((others[torch.searchsorted(others, piece).clamp_(max=last)] == piece).any())
        for piece in some.split(PIECE)
    )


def fingerprint(crow: Tensor, col: Tensor, columns: int) -> int:
    """Return a number that tells two topologies apart: the sum of the hashes of the positions, modulo 2^64."""
    if use_kernel(INDEX, crow):
        return int(torch.ops.regrow_native.fingerprint.default(crow, col, columns))
    return int(sketch.mix(positions(crow, col, columns)).sum())


def explored(crow: Tensor, col: Tensor, columns: int, before: Tensor | None) -> Tensor:
    """Return the sketch `before` with the positions of the connections added (`regrow.ops.sketch.add`)."""
    population = (len(crow) - 1) * columns
    entries = sketch.add(torch.empty(0, dtype=torch.int64, device=crow.device), population, before)
    for some in pieces(crow, col, columns):
        entries = sketch.add(some, population, entries)
    return entries


def rewire(
    crow: Tensor, col: Tensor, columns: int, drop: Tensor, grow: Tensor
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Return the index after an update, and what moves where.

    Args:
        crow: row pointers [rows + 1].
        col: columns of the connections, padding after them.
        columns: of the matrix.
        drop: which connections go, int64.
        grow: flat positions that come, ascending, int64, none of them one that stays; one that is also dropped keeps
            its place.

    Returns:
        The new ``crow``, the new ``col`` without padding, for each connection the place it had before, int32, -1
        where it is new, and how many are new.
    """
    if use_kernel(INDEX, crow):
        changed: tuple[Tensor, Tensor, Tensor, int] = torch.ops.regrow_native.rewire.default(
            crow, col, columns, drop.contiguous(), grow.contiguous()
        )
        return changed
    before = positions(crow, col, columns)
    after = torch.cat([positions(crow, col, columns, drop), grow]).sort().values
    source = torch.searchsorted(before, after)
    known = before[source.clamp(max=max(len(before) - 1, 0))] == after if len(before) else after < 0
    new_crow, new_col = from_positions(after, len(crow) - 1, columns)
    return new_crow, new_col, torch.where(known, source, -1).int(), int((~known).sum())


def move(source: Tensor, *tensors: Tensor) -> None:
    """Move the entries of `tensors` [capacity, 1] to their new places, in place; 0 where `source` is -1."""
    room = max((len(tensor) + 1) * tensor.element_size() for tensor in tensors)
    # for all of them, one by one
    scratch = torch.empty(room if use_kernel(INDEX, source) else 0, dtype=torch.uint8, device="cpu")
    for tensor in tensors:
        if use_kernel(MOVE, tensor):
            torch.ops.regrow_native.move.default(source, tensor, scratch)
            continue
        moved = torch.zeros_like(tensor)
        moved[: len(source)] = tensor[source.clamp(min=0).long()].where((source >= 0)[:, None], 0)
        tensor.copy_(moved)
