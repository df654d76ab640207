"""How many distinct positions were ever seen, in a tensor of fixed size.

Exact up to `SIZE` positions, where each has an entry of its own; beyond, a HyperLogLog sketch (Flajolet et al.,
2007) with `SIZE` registers, whose standard error is ``1.04 / sqrt(SIZE)``, 0.8%. Entries are small whole numbers, so
that a cast to any floating-point type and back changes nothing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from regrow.ops.backends import SKETCH, use_kernel

SIZE = 1 << 14
BUCKET_BITS = 14
PIECE = 1 << 17
"""Positions that are worked on at a time, so that what is computed of them on the way takes no memory to speak of."""

HASH_BITS = 64 - BUCKET_BITS  # few enough for a float64 to hold


def mix(positions: Tensor) -> Tensor:
    """Hash each position, int64."""
    mixed = positions * 0x9E3779B97F4A7C1 + 0x632BE59BD9B4E019
    mixed = (mixed ^ _shift(mixed, 29)) * 0x3C79AC492BA7B653
    return mixed ^ _shift(mixed, 32)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right, zeros coming in (torch's own repeats the sign)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def add(positions: Tensor, population: int, before: Tensor | None) -> Tensor:
    """Return the sketch `before` with `positions` added: uint8 [min(population, SIZE)].

    Args:
        positions: numbers below `population`, int64 [n].
        population: how many different positions there are.
        before: what this returned, in any dtype, or None.
    """
    size = min(population, SIZE)
    entries = (
        torch.zeros(size, dtype=torch.uint8, device=positions.device) if before is None else before.byte()
    )
    if population <= SIZE:
        return entries.index_fill(0, positions, 1)
    if use_kernel(SKETCH, positions):
        entries = entries.clone()  # what was before belongs to somebody
        torch.ops.regrow_native.sketch.default(positions.contiguous(), entries)
        return entries
    for some in positions.split(PIECE):
        mixed = mix(some)
        rest = _shift(mixed, BUCKET_BITS)
        leading_zeros = HASH_BITS - rest.double().frexp().exponent
        entries = entries.scatter_reduce(0, mixed & (SIZE - 1), (leading_zeros + 1).byte(), "amax")
    return entries


def count(entries: Tensor, population: int) -> float:
    """Estimate how many distinct positions were added to `entries`."""
    if population <= SIZE:
        return float(entries.count_nonzero())
    registers: list[int] = torch.bincount(entries.byte()).tolist()  # by what they hold
    empty = registers[0]
    estimate = 0.7213 / (1 + 1.079 / SIZE) * SIZE**2 / sum(n / 2**held for held, n in enumerate(registers))
    if estimate <= 2.5 * SIZE and empty:
        estimate = SIZE * math.log(SIZE / empty)
    return float(min(estimate, population))
