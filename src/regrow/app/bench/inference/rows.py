"""Lines of the tables of inference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from regrow.app.bench.inference.engines import LIMITS, engine
from regrow.app.bench.rows import number, percent
from regrow.measure.timing import Load


@dataclass(frozen=True)
class Latency:
    """Seconds of a run: median and 99th percentile of so many."""

    p50: float
    p99: float
    runs: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        """Return the latency of these runs, at least one; below 100 the slowest is the 99th percentile."""
        ordered = sorted(seconds)
        p50, p99 = (ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.99))
        return cls(p50, p99, len(ordered))


@dataclass(frozen=True)
class Setting:
    """What the rows of one table have in common."""

    network: str
    sparsity: float
    batch: int
    threads: int
    load: Load

    def __str__(self) -> str:
        return (
            f"inference of {self.network}, {percent(self.sparsity)} zeros, batch {self.batch}, {self.threads} "
            f"thread{'s' if self.threads > 1 else ''}, others {self.load.others:.0%}"
        )


@dataclass(frozen=True)
class Inference:
    """One engine."""

    setting: Setting
    engine: str
    version: str
    precision: str
    latency: Latency
    file_bytes: int
    peak_bytes: int
    """Of its process, above what it held before the network was loaded; 0 where that is unknown."""
    difference: float
    """Largest one from torch's outputs, as a share of the largest output."""
    rival: float | None = None
    """Median of the best dense engine of the same class, int8 or float; None where there is none."""

    @property
    def title(self) -> str:
        """Heading of the table."""
        return str(self.setting)

    @property
    def is_right(self) -> bool:
        """Whether the outputs are those of the network."""
        return self.difference <= LIMITS[self.precision]

    @property
    def faster(self) -> float | None:
        """How many times faster it is than the best dense engine of its class; None for wrong outputs."""
        return self.rival / self.latency.p50 if self.rival is not None and self.is_right else None

    @property
    def images(self) -> float:
        """Examples a second."""
        return self.setting.batch / self.latency.p50

    def cells(self) -> dict[str, str]:
        """Return the cells' texts by column heading."""
        return {
            "": f"{self.engine} ({self.version})",
            "p50 ms": _digits(1e3 * self.latency.p50),
            "p99 ms": _digits(1e3 * self.latency.p99),
            "faster": "-" if self.faster is None else f"{self.faster:.2f}x",
            "img/s": _digits(self.images),
            "file MB": _digits(self.file_bytes / 1e6),
            "peak MB": number(self.peak_bytes / 1e6 if self.peak_bytes else None, ",.0f"),
            "difference": f"{self.difference:.1g}" + ("" if self.is_right else " WRONG"),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings; seconds and bytes."""
        found = asdict(self)
        derived = {"right": self.is_right, "faster": self.faster, "images_per_second": self.images}
        return {**found.pop("setting"), **found, **derived}


@dataclass(frozen=True)
class LeftOut:
    """An engine that could not be measured."""

    network: str
    engine: str
    reason: str

    @property
    def title(self) -> str:
        """Heading of the table."""
        return "left out"

    def cells(self) -> dict[str, str]:
        """Return the cells' texts by column heading."""
        return {"": f"{self.engine}, {self.network}: {self.reason}"}

    def to_dict(self) -> dict[str, Any]:
        """Return plain strings."""
        return asdict(self)


def is_int8(precision: str) -> bool:
    """Return the class of a precision: those of one class are compared."""
    return precision == "int8"


def best_dense(rows: Sequence[Inference], precision: str) -> float | None:
    """Return the median of the best dense engine with right outputs that is of the class of `precision`."""
    medians = [
        row.latency.p50
        for row in rows
        if engine(row.engine).is_dense and row.is_right and is_int8(row.precision) == is_int8(precision)
    ]
    return min(medians, default=None)


def _digits(value: float) -> str:
    """Return a number with three digits, or all of them before the point."""
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:,.{digits}f}"
