"""Step time and peak memory from small layers to very large ones, with fitted exponents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from regrow.app.bench.linear import Linear
from regrow.app.bench.peak import Run, run
from regrow.app.bench.rows import Row, Settings, exponent, milliseconds, percent
from regrow.errors import RegrowRuntimeError
from regrow.measure.machine import memory

SIZES = (10**5, 3 * 10**5, 10**6, 3 * 10**6, 10**7, 3 * 10**7, 10**8, 3 * 10**8)
"""Connections."""
BATCH = 32
"""Activations belong to units: with few examples they take little memory beside the connections."""
FAN_IN = 100
"""Connections a unit where there is no sparsity: a dense layer would then grow with the square of the connections."""
NEEDED = 48
"""Bytes a connection that must be free before a run begins: its own 24, and what drawing the connections takes."""


@dataclass(frozen=True)
class Scale:
    """A square layer with so many connections."""

    title: ClassVar[str] = "scale: training steps of square layers, each in a process of its own"
    series: str
    """What the layers of a series have in common."""
    subject: str
    batch: int
    run: Run

    @property
    def peak(self) -> int:
        """Bytes, start included."""
        return max(self.run.start, self.run.steps)

    def cells(self) -> dict[str, str]:
        """Return the cells' texts by column heading."""
        connections = self.run.connections
        return {
            "": self.subject,
            "batch": str(self.batch),
            "connections": f"{connections:,}",
            "start s": f"{self.run.start_seconds:.2f}",
            "step ms": milliseconds(self.run.step),
            "ns a connection": f"{1e9 * self.run.step.median / connections:.2f}",
            "peak MB": f"{self.peak / 1e6:,.1f}",
            "others": f"{self.run.load.others:.0%}",
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings; bytes and seconds."""
        return {**asdict(self), "peak": self.peak}


@dataclass(frozen=True)
class Fit:
    """How time and memory grow with the connections: as their number to these powers."""

    title: ClassVar[str] = "fitted exponents (1 is as the connections)"
    series: str
    batch: int
    sizes: tuple[int, int]
    """The least connections and the most."""
    time: float
    memory: float

    def cells(self) -> dict[str, str]:
        """Return the cells' texts by column heading."""
        return {
            "": self.series,
            "batch": str(self.batch),
            "connections": f"{self.sizes[0]:,} to {self.sizes[1]:,}",
            "step time": f"{self.time:.3f}",
            "peak memory": f"{self.memory:.3f}",
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings."""
        return asdict(self)


def fit(rows: Sequence[Scale]) -> Fit:
    """Return the exponents of the rows of one series, at least two."""
    sizes = [row.run.connections for row in rows]
    return Fit(
        rows[0].series,
        rows[0].batch,
        (min(sizes), max(sizes)),
        exponent(sizes, [row.run.step.median for row in rows]),
        exponent(sizes, [row.peak for row in rows]),
    )


def square(connections: int, sparsity: float | None) -> Linear:
    """Return the square layer with about so many connections: at this sparsity, or `FAN_IN` a unit."""
    side = connections / FAN_IN if sparsity is None else math.sqrt(connections / (1 - sparsity))
    return Linear(math.ceil(side), math.ceil(side))


def measure(connections: int, batch: int, sparsity: float | None, settings: Settings) -> list[Row]:
    """Measure a layer of about so many connections.

    Raises:
        RegrowRuntimeError: the machine has too little free memory for it.
    """
    layer = square(connections, sparsity)
    needed, (_, free) = NEEDED * connections + 5 * 4 * batch * layer.rows, memory()
    if free is not None and needed > free:
        raise RegrowRuntimeError(
            f"{layer} with {connections:,} connections is left out: it needs some {needed / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB are free"
        )
    series = f"{FAN_IN} connections a unit" if sparsity is None else f"{percent(sparsity)} sparsity"
    return [Scale(series, str(layer), batch, run(layer, connections, batch, settings))]
