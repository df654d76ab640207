"""The index of a compressed weight: its mirror image, and how it changes with the topology.

What `crow`, `col`, `crow_t`, `row_t` and `order` hold, `regrow.ops.linear` says.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from regrow.ops import sketch
from regrow.ops.backends import INDEX, MOVE, POSITIONS, use_kernel
from regrow.ops.sketch import PIECE as PIECE


def mirror(crow: Tensor, col: Tensor, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """The index of the transposed matrix: ``crow_t, row_t, order`` (int32), padded like `col`."""
    crow_t, row_t, order = crow.new_empty(columns + 1), torch.empty_like(col), torch.empty_like(col)
    mirror_into(crow, col, crow_t, row_t, order)
    return crow_t, row_t, order


def mirror_into(crow: Tensor, col: Tensor, crow_t: Tensor, row_t: Tensor, order: Tensor) -> int:
    """Write the index of the transposed matrix over `crow_t`, `row_t` and `order`; returns the `fingerprint`."""
    if use_kernel(INDEX, crow):
        return int(torch.ops.regrow_native.mirror.default(crow, col, crow_t, row_t, order))
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
    """Flat positions of the connections, ascending, int64 [nnz]; without those of the indices `drop`, if given."""
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
    """The same positions, those of some rows at a time: about `PIECE` of them, or a row's."""
    first = torch.arange(0, int(crow[-1]), PIECE, dtype=crow.dtype, device=crow.device)
    rows = torch.searchsorted(crow[1:].contiguous(), first, right=True).unique().tolist()
    for row, end in pairwise([*rows, len(crow) - 1]):
        start, stop = int(crow[row]), int(crow[end])
        yield positions(crow[row : end + 1] - start, col[start:stop], columns).add_(row * columns)


def from_positions(positions: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """The index ``crow, col`` (int32, without padding) of flat `positions`, ascending, int64 [nnz]."""
    starts = torch.arange(rows + 1, device=positions.device) * columns
    crow = torch.searchsorted(positions, starts, out_int32=True)
    col = torch.empty(len(positions), dtype=torch.int32, device=positions.device)
    for some, into in zip(positions.split(PIECE), col.split(PIECE), strict=True):
        into.copy_(some % columns)
    return crow, col


def are_positions(positions: Tensor, size: int) -> bool:
    """Whether these are positions below `size`, int64 [n], ascending without repetition."""
    if (
        positions.dtype != torch.int64
        or positions.dim() != 1
        or bool((positions[1:] <= positions[:-1]).any())
    ):
        return False
    return len(positions) == 0 or (int(positions[0]) >= 0 and int(positions[-1]) < size)


def fingerprint(crow: Tensor, col: Tensor, columns: int) -> int:
    """A number that tells two topologies apart: the sum of the hashes of the positions, modulo 2^64."""
    if use_kernel(INDEX, crow):
        return int(torch.ops.regrow_native.fingerprint.default(crow, col, columns))
    return int(sketch.mix(positions(crow, col, columns)).sum())


def explored(crow: Tensor, col: Tensor, columns: int, before: Tensor | None) -> Tensor:
    """The sketch `before` with the positions of the connections added (`regrow.ops.sketch.add`)."""
    population = (len(crow) - 1) * columns
    entries = sketch.add(torch.empty(0, dtype=torch.int64, device=crow.device), population, before)
    for some in pieces(crow, col, columns):
        entries = sketch.add(some, population, entries)
    return entries


def rewire(
    crow: Tensor, col: Tensor, columns: int, drop: Tensor, grow: Tensor
) -> tuple[Tensor, Tensor, Tensor, int]:
    """The index after an update, and what moves where.

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
