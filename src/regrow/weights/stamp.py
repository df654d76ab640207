"""The stamp: the last entries of compressed values, which tell the topology that the values belong to.

Other people's code averages and copies parameters, however it reaches them (``.data``, `torch._foreach_lerp_`, a flat
vector, a state dict), and takes the stamp along. Values of two topologies that were mixed show in it, and so does where
values came from. Its entries are so small that no norm sees them, and are read by their ratios alone, which weight
decay and scaling leave as they are.
"""

from __future__ import annotations

from ctypes import string_at
from dataclasses import dataclass
from struct import Struct

import torch
from torch import Tensor

PARTS = 3
SIZE = PARTS + 2
"""Entries: the scale, those that code the topology, and the clock."""
FINE = 128
"""Values that a part of the code and the clock can have, in [0.5, 1): as many as bfloat16 tells apart."""

SCALE = 2.0**-60
STRANGE = 2.0**-30
"""Nothing that scales a stamp brings it here: noise, or an initialiser."""
FAINT = 2.0**-110
ROOM = 2.0**8
"""Times by which a stamp may be larger or smaller than it was written, before it is written again."""
MIXED = 4.0
"""Parts of the scale that no mixture of stamps passes: beyond it, single entries were written."""
DRIFT = 1e-3
"""What rounding adds up to in a long average of values of one topology, at most."""
PRECISION = {dtype: torch.finfo(dtype).eps for dtype in (torch.float32, torch.float64, torch.bfloat16)}
"""Types that have the range for a stamp, and their rounding."""
LAYOUTS = {torch.float32: Struct(f"{SIZE}f"), torch.float64: Struct(f"{SIZE}d")}
STEP = 49  # of the clock, modulo `FINE`: neighbours are far apart


@dataclass(frozen=True)
class Stamp:
    """What the stamp of some values says, each in [0.5, 1) where nothing was mixed."""

    code: tuple[float, ...]
    clock: float
    scale: float
    precision: float
    """The rounding of one operation on an entry."""

    @property
    def has_drifted(self) -> bool:
        """Whether it should be written again: Adam with weight decay multiplies what is so small in each step."""
        return not SCALE / ROOM < abs(self.scale) < SCALE * ROOM

    @property
    def is_coarse(self) -> bool:
        """Whether weight decay alone may bring the code out of its bounds, as in bfloat16."""
        return 8 * self.precision > DRIFT

    def is_of(self, fingerprint: int) -> bool:
        """Return whether the values belong to the topology with this fingerprint, and to it alone."""
        return self.distance(fingerprint) <= max(DRIFT, 8 * self.precision)

    def distance(self, fingerprint: int) -> float:
        """Return how far the code is from that of a fingerprint: bfloat16 allows so much that it may be of two."""
        return max(abs(a - b) for a, b in zip(self.code, code_of(fingerprint), strict=True))

    def is_at(self, clock: float) -> bool:
        """Return whether no values of another clock have come in."""
        return abs(self.clock - clock) <= 8 * self.precision

    @property
    def is_unmixed(self) -> bool:
        """Whether the values are a copy of one moment's: the clock of an average lies between those of its parts."""
        return abs(self.clock - nearest(self.clock)) <= max(1e-5, 8 * self.precision)


def code_of(fingerprint: int) -> tuple[float, ...]:
    """Return the numbers in [0.5, 1) that tell topologies apart."""
    return tuple(0.5 + (fingerprint >> 7 * part) % FINE / (2 * FINE) for part in range(PARTS))


def tick(clock: float) -> float:
    """Return the clock's next value."""
    return 0.5 + ((clock - 0.5) * 2 * FINE + STEP) % FINE / (2 * FINE)


def nearest(clock: float) -> float:
    """Return the value that a clock was written with, before rounding."""
    return round(clock * 2 * FINE) / (2 * FINE)


def fits(values: Tensor) -> bool:
    """Return whether values of this type can hold a stamp: those of float16 are too coarse."""
    return values.dtype in PRECISION and not values.is_meta


def write(values: Tensor, fingerprint: int, clock: float = 0.5) -> None:
    """Write the stamp into the last entries of `values` [n, 1]; not a change that autograd should see."""
    if fits(values):
        entries = [SCALE * part for part in (1.0, *code_of(fingerprint), clock)]
        values.data[-SIZE:, 0] = torch.tensor(entries, dtype=values.dtype, device=values.device)


def is_whole(values: Tensor, code: tuple[float, ...]) -> bool:
    """Return whether the stamp of `values` on the CPU is as it was written for a topology of this code, or nearly.

    Asked at every forward pass: a tenth of the time of `read`.
    """
    layout = LAYOUTS.get(values.dtype)
    if layout is None or not values.is_contiguous():
        return False
    size = layout.size
    entries: tuple[float, ...] = layout.unpack(
        string_at(values.data_ptr() + (len(values) - SIZE) * (size // SIZE), size)
    )
    scale, first, second, third, _ = entries
    allowed = DRIFT * scale
    return (
        SCALE / ROOM < scale < SCALE * ROOM
        and abs(first - scale * code[0]) <= allowed
        and abs(second - scale * code[1]) <= allowed
        and abs(third - scale * code[2]) <= allowed
    )


def read(values: Tensor) -> Stamp | None:
    """Return the stamp of `values` [n, 1], or None where it is gone: after noise, an initialiser, or in float16."""
    if not fits(values):
        return None
    scale, *entries = values.detach()[-SIZE:, 0].tolist()
    if not FAINT < abs(scale) < STRANGE or not all(abs(entry) < MIXED * abs(scale) for entry in entries):
        return None
    *code, clock = (entry / scale for entry in entries)
    return Stamp(tuple(code), clock, scale, PRECISION[values.dtype])


def is_written_over(values: Tensor) -> bool:
    """Return whether an initialiser or noise has written to the stamp, rather than a type without the range for it."""
    return float(values.detach()[-SIZE:].abs().max()) >= STRANGE  # in float16 it would be 0
