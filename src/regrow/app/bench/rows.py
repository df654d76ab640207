"""What a measurement gives: rows, with the arithmetic of times, rates and exponents."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

import torch

from regrow.measure.timing import Load, Timing


@dataclass(frozen=True)
class Settings:
    """What holds for every measurement of one call."""

    dtype: torch.dtype = torch.float32
    threads: int = 1
    seconds: float = 1.0
    """How long each way is measured."""
    compiled: bool = True
    """Whether torch.compile is tried on the dense side."""


class Row(Protocol):
    """One line of a table."""

    @property
    def title(self) -> str:
        """Heading of the table that it is a line of."""

    def cells(self) -> dict[str, str]:
        """Return the cells' texts by column heading."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings."""


@dataclass(frozen=True)
class Case:
    """A piece of work that gives some rows."""

    name: str
    measure: Callable[[], Sequence[Row]]


LETTERS = {"eager": "e", "channels last": "l", "compiled": "c"}
"""The dense ways, in a narrow column."""


@dataclass(frozen=True)
class Comparison:
    """One sparse thing against the dense one in the same run."""

    title: ClassVar[str] = "sparse against dense"
    subject: str
    batch: int
    sparsity: float
    what: str
    """forward, forward + backward, or step."""
    flops: tuple[float, float] | None
    """Of the dense and of the sparse one, the useful ones alone; None where nobody can count them."""
    dense: Mapping[str, Timing]
    """Those of `LETTERS` that were measured."""
    sparse: Timing
    load: Load

    @property
    def best(self) -> str:
        """The dense way with the shortest median."""
        return min(self.dense, key=lambda way: self.dense[way].median)

    @property
    def faster(self) -> float:
        """How many times faster the sparse one is than the best dense one."""
        return self.dense[self.best].median / self.sparse.median

    @property
    def gflops(self) -> float | None:
        """Useful 10^9 FLOP/s of the sparse one."""
        return None if self.flops is None else self.flops[1] / self.sparse.median / 1e9

    @property
    def utilisation(self) -> float | None:
        """Useful FLOP/s of the sparse one over FLOP/s of the best dense one; 1 is where zeros cost nothing at all."""
        return None if self.flops is None else self.faster * self.flops[1] / self.flops[0]

    def cells(self) -> dict[str, str]:
        """Return the cells' texts by column heading."""
        return {
            "": self.subject,
            "batch": str(self.batch),
            "sparsity": percent(self.sparsity),
            "pass": self.what,
            "dense ms": f"{milliseconds(self.dense[self.best])} {LETTERS[self.best]}",
            "sparse ms": milliseconds(self.sparse),
            "faster": f"{self.faster:.2f}x",
            "GFLOP/s": number(self.gflops, ".0f"),
            "utilisation": number(self.utilisation, ".2f"),
            "others": f"{self.load.others:.0%}",
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings; times in seconds."""
        derived = {"best": self.best, "faster": self.faster}
        rates = {"gflops": self.gflops, "utilisation": self.utilisation}
        return {**asdict(self), **derived, **rates}


@dataclass(frozen=True)
class Step(Comparison):
    """A training step of a whole network."""

    title: ClassVar[str] = "training steps, sparse against dense"
    bound: float
    """How many times faster than eager it were if the sparse layers cost their connections' share alone, and all else
    what it costs the dense network (Amdahl)."""

    def cells(self) -> dict[str, str]:
        """Return the cells' texts by column heading."""
        cells = super().cells()
        others = cells.pop("others")
        return {**cells, "bound": f"{self.bound:.1f}x", "others": others}


def percent(share: float) -> str:
    """Return a share as a percentage without needless zeros."""
    return f"{100 * share:g}%"


def number(value: float | None, form: str) -> str:
    """Return a number in a format, or a dash."""
    return "-" if value is None else format(value, form)


def milliseconds(timing: Timing) -> str:
    """Return a median with three digits, and the distance of the quartiles as a share of it."""
    median = 1e3 * timing.median
    digits = max(0, 2 - math.floor(math.log10(median))) if median > 0 else 0
    return f"{median:.{digits}f} ±{timing.spread / 2:.0%}"


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Return b of the best ``values = a * sizes ** b``, by least squares of the logarithms; two or more different
    sizes.
    """
    x, y = ([math.log(v) for v in numbers] for numbers in (sizes, values))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum(
        (a - mean_x) ** 2 for a in x
    )
