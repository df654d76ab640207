"""The index of a compressed weight: its mirror image, and how it changes with the topology.

What `crow`, `col`, `crow_t`, `row_t` and `order` hold, `regrow.ops.linear` says.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from regrow.ops import native, sketch
from regrow.ops.sketch import PIECE as PIECE


def mirror(crow: Tensor, col: Tensor, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """The index of the transposed matrix: ``crow_t, row_t, order`` (int32), padded like `col`."""
    if crow.device.type == "cpu" and native.available():
        mirrored: tuple[Tensor, Tensor, Tensor] = torch.ops.regrow_native.mirror.default(crow, col, columns)
        return mirrored
    nnz = int(crow[-1])
    rows = torch.repeat_interleave(torch.arange(len(crow) - 1, device=crow.device), crow.diff())
    used = col[:nnz].long()
    by_column = used.argsort(stable=True)
    crow_t = torch.zeros(columns + 1, dtype=torch.int32, device=crow.device)
    crow_t[1:] = used.bincount(minlength=columns).cumsum(0)
    row_t, order = torch.zeros_like(col), torch.zeros_like(col)
    row_t[:nnz], order[:nnz] = rows[by_column].int(), by_column.int()
    return crow_t, row_t, order


def positions(crow: Tensor, col: Tensor, columns: int) -> Tensor:
    """Flat positions of the connections, ascending, int64 [nnz]."""
    starts = torch.arange(len(crow) - 1, device=crow.device) * columns
    found = torch.repeat_interleave(starts, crow.diff())
    return found.add_(col[: len(found)])


def pieces(crow: Tensor, col: Tensor, columns: int) -> Iterator[Tensor]:
    """The same positions, those of some rows at a time: about `PIECE` of them, or a row's."""
    first = torch.arange(0, int(crow[-1]), PIECE, dtype=crow.dtype, device=crow.device)
    rows = torch.searchsorted(crow[1:].contiguous(), first, right=True).unique().tolist()
    for row, end in pairwise([*rows, len(crow) - 1]):
        start, stop = int(crow[row]), int(crow[end])
        yield positions(crow[row : end + 1], col[start:stop], columns).add_(row * columns)


def from_positions(positions: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """The index ``crow, col`` (int32, without padding) of flat `positions`, ascending, int64 [nnz]."""
    starts = torch.arange(rows + 1, device=positions.device) * columns
    crow = torch.searchsorted(positions, starts, out_int32=True)
    col = torch.empty(len(positions), dtype=torch.int32, device=positions.device)
    for some, into in zip(positions.split(PIECE), col.split(PIECE), strict=True):
        into.copy_(some % columns)
    return crow, col


def fingerprint(crow: Tensor, col: Tensor, columns: int) -> int:
    """A number that tells two topologies apart: the sum of the hashes of the positions, modulo 2^64."""
    if crow.device.type == "cpu" and native.available():
        return int(torch.ops.regrow_native.fingerprint.default(crow, col, columns))
    return int(sketch.mix(positions(crow, col, columns)).sum())


def rewire(
    crow: Tensor, col: Tensor, columns: int, drop: Tensor, grow: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The index after an update, and what moves where.

    Args:
        crow: row pointers [rows + 1].
        col: columns of the connections, padding after them.
        columns: of the matrix.
        drop: which connections go, int64.
        grow: flat positions that come, ascending, int64; one that is also dropped keeps its place.

    Returns:
        The new ``crow``, the new ``col`` without padding, and for each connection the place it had before, int32, -1
        where it is new.
    """
    if crow.device.type == "cpu" and native.available():
        changed: tuple[Tensor, Tensor, Tensor] = torch.ops.regrow_native.rewire.default(
            crow, col, columns, drop.contiguous(), grow.contiguous()
        )
        return changed
    before = positions(crow, col, columns)
    stays = torch.ones(len(before), dtype=torch.bool, device=before.device)
    stays[drop] = False
    after = torch.cat([before[stays], grow]).sort().values
    source = torch.searchsorted(before, after)
    known = before[source.clamp(max=max(len(before) - 1, 0))] == after if len(before) else after < 0
    return *from_positions(after, len(crow) - 1, columns), torch.where(known, source, -1).int()


def move(source: Tensor, tensor: Tensor) -> None:
    """Move the entries of `tensor` [capacity, 1] to their new places, in place; 0 where `source` is -1."""
    if tensor.device.type == "cpu" and native.available() and tensor.is_contiguous():
        torch.ops.regrow_native.move.default(source, tensor)
        return
    moved = torch.zeros_like(tensor)
    moved[: len(source)] = tensor[source.clamp(min=0).long()].where((source >= 0)[:, None], 0)
    tensor.copy_(moved)
