"""How int8 weights are laid out for the kernel (csrc/infer_int8.h): connections in pairs, pairs in bundles.

The kernel adds up the products of a bundle in 16 bits. The fewer bundles a row has, the faster it is, so bundles are as
large as their sums allow: those of the largest inputs with the positive values, and with the negative ones, must fit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from regrow.inference.graph import Connections
from regrow.inference.packing import offsets, parts_of
from regrow.inference.rounding import HIGHEST, Rounding
from regrow.inference.steps import Window

OFFSET = 0x8000
"""What the kernel adds to the sums of a bundle."""
ZERO = 128
"""The byte of an input of 0, if inputs are signed; otherwise it is 0."""
LARGEST = 4
"""Pairs of a bundle, at most."""
MOST = (2**31 - 1) // HIGHEST**2
"""Connections of a row whose sum 32 bits hold for certain."""


@dataclass(frozen=True)
class Bundled:
    """The connections of a convolution as the kernel reads them."""

    start: Tensor
    order: Tensor
    bundle: Tensor
    pairs: Tensor
    parts: Tensor
    correction: Tensor
    scale: Tensor
    reach: int


def bundle(weight: Connections, groups: int, window: Window, rounding: Rounding) -> Bundled:
    """Lay out the connections of a convolution or linear layer, whose values are int8.

    Args:
        weight: of shape [outputs, channels of a group, ...].
        groups: of the convolution.
        window: how it reads its images, in bytes.
        rounding: of the input, whose bytes are 1 to 255 if rounding.signed, else 0 to 127.
    """
    rows, outputs = weight.shape[0], weight.shape[0] // groups
    offset = offsets(weight, window, window.channel)
    row, value = weight.rows().numpy(), weight.values.numpy().astype(np.int64)
    ascending = np.lexsort((value, row))
    row, value, offset = row[ascending], value[ascending], offset[ascending]
    found = _Rows(row, value, rows, 32767 // (ZERO + HIGHEST if rounding.signed else HIGHEST))
    size, count = found.choose()

    pairs = size * count
    of_rows = pairs.reshape(groups, outputs)
    parts = parts_of(of_rows.sum(0).cumsum(), outputs)
    part = np.searchsorted(parts, np.arange(outputs), side="right")
    grid = (groups, outputs)
    order = np.lexsort(
        (
            np.broadcast_to(np.arange(outputs), grid),
            count.reshape(grid),
            size.reshape(grid),
            np.broadcast_to(part, grid),
        )
    )
    start = np.zeros((groups, outputs + 1), np.int64)
    np.cumsum(np.take_along_axis(of_rows, order, 1), 1, out=start[:, 1:])
    start += np.concatenate([[0], start[:-1, -1].cumsum()])[:, None]
    if start[-1, -1] >= 2**31:
        raise OverflowError("more connections than 32-bit numbers count")
    first = np.empty(grid, np.int64)  # pair of each row
    np.put_along_axis(first, order, start[:, :-1], 1)

    which, place, second = found.places(size, count, slice(None))
    at = first.reshape(-1)[row] + which * size[row] + place
    laid = np.zeros((start[-1, -1], 3), np.int32)
    laid[at, second] = offset
    bytes_of = laid.view(np.int8).reshape(-1, 12)
    bytes_of[at, 8 + second] = value
    bytes_of[at, 10 + second] = value
    sums = np.bincount(row, value, rows).astype(np.int64)
    correction = -OFFSET * count - (ZERO * sums if rounding.signed else 0)
    scale = torch.ones(rows, dtype=torch.float32, device="cpu") if weight.scale is None else weight.scale
    return Bundled(
        torch.from_numpy(start.astype(np.int32)),
        torch.from_numpy(order.astype(np.int32)),
        torch.from_numpy(np.take_along_axis(size.reshape(grid), order, 1).astype(np.int32)),
        torch.from_numpy(laid.reshape(-1)),
        torch.from_numpy(np.concatenate([[0], parts, [outputs]]).astype(np.int32)),
        torch.from_numpy(correction.astype(np.int32)),
        scale * rounding.scale,
        int(offset.max(initial=-1)) + 1,
    )


class _Rows:
    """Connections, ascending by row and value.

    Those of a row are filled up with zeros; the largest is paired with the smallest, the second largest with the second
    smallest, and so on; and the pairs are dealt out to the bundles, to and fro.
    """

    def __init__(self, row: np.ndarray, value: np.ndarray, rows: int, limit: int) -> None:
        self.row, self.value, self.limit = row, value, limit
        self.total = np.bincount(row, minlength=rows)
        self.position = np.arange(len(row)) - (self.total.cumsum() - self.total)[row]

    def places(self, size: np.ndarray, count: np.ndarray, some: slice | np.ndarray) -> tuple[np.ndarray, ...]:
        """Return of some connections the bundle, the place in it, and whether it is the second of a pair.

        Args:
            size: pairs of each bundle, of each row.
            count: bundles of each row.
            some: which connections.
        """
        row, value, position = self.row[some], self.value[some], self.position[some]
        slots = 2 * (size * count)[row]
        slot = np.where(value < 0, position, position + slots - self.total[row])
        second = slot >= slots // 2
        pair = np.where(second, slots - 1 - slot, slot)
        place, which = np.divmod(pair, count[row])
        which = np.where(place % 2 == 1, count[row] - 1 - which, which)
        return which, place, second.astype(np.int64)

    def choose(self) -> tuple[np.ndarray, np.ndarray]:
        """Return of each row the size of its bundles, and how many they are, such that it takes the least time."""
        rows = len(self.total)
        best_size, best_count = (
            np.ones(rows, np.int64),
            self.total.copy(),
        )  # a zero beside each fits for certain
        positive = np.bincount(self.row, self.value.clip(0), rows)
        negative = np.bincount(self.row, (-self.value).clip(0), rows)
        for size in range(LARGEST, 0, -1):
            least = np.maximum(self.total / (2 * size), np.maximum(positive, negative) / self.limit)
            count = np.ceil(least).astype(np.int64)
            sizes = np.full(rows, size)
            while True:
                # to widen the sums of a bundle takes as long as a pair
                better = count * (size + 1) < best_count * (best_size + 1)
                if not better.any():
                    break
                fitting = better & self._fits(sizes, count, better)
                best_size[fitting], best_count[fitting] = size, count[fitting]
                count = np.where(better & ~fitting, count + np.maximum(1, count // 32), count)
        return best_size, best_count

    def _fits(self, size: np.ndarray, count: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Return which rows of `wanted` have no sum that may be too large."""
        some = np.flatnonzero(wanted[self.row])
        which, _, _ = self.places(size, count, some)
        row, value = self.row[some], self.value[some]
        begin = np.where(wanted, count, 0).cumsum() - np.where(wanted, count, 0)
        at = begin[row] + which
        large = np.maximum(np.bincount(at, value.clip(0)), np.bincount(at, (-value).clip(0))) > self.limit
        fits = np.ones(len(count), bool)
        fits[row[large[at]]] = False
        return fits
