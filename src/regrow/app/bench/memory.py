"""Peak memory a connection: the peak of a run less that of the same run with a tenth of the connections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from regrow.app.bench.linear import Linear
from regrow.app.bench.peak import Run, run
from regrow.app.bench.rows import Settings, percent
from regrow.errors import RegrowRuntimeError
from regrow.sparsity.distributions import connections

PARTS = ("start", "steps", "update")


@dataclass(frozen=True)
class Memory:
    """Two runs that differ in their connections only."""

    title: ClassVar[str] = "peak memory, SGD with momentum: bytes a connection"
    subject: str
    batch: int
    sparsity: float
    run: Run
    tenth: Run
    """The same with a tenth of the connections."""

    def bytes_of(self, part: str) -> float:
        """Return a connection's bytes at the peak of ``start``, ``steps`` or ``update``."""
        more, fewer = (getattr(run, part) for run in (self.run, self.tenth))
        return float(more - fewer) / (self.run.connections - self.tenth.connections)

    @property
    def update_adds(self) -> int:
        """Bytes by which the peak of an update step is above that of the steps between."""
        assert self.run.update is not None
        return self.run.update - self.run.steps

    def cells(self) -> dict[str, str]:
        """Return the cells' texts by column heading."""
        return {
            "": self.subject,
            "batch": str(self.batch),
            "sparsity": percent(self.sparsity),
            "connections": f"{self.run.connections:,}",
            "between updates": f"{self.bytes_of('steps'):.1f}",
            "at an update": f"{self.bytes_of('update'):.1f}",
            "at the start": f"{self.bytes_of('start'):.1f}",
            "peak MB": f"{self.run.steps / 1e6:,.0f}",
            "an update adds MB": f"{self.update_adds / 1e6:,.0f}",
            "others": f"{self.run.load.others:.0%}",
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings; bytes and seconds."""
        derived = {part: self.bytes_of(part) for part in PARTS}
        return {**asdict(self), "bytes_per_connection": derived, "update_adds": self.update_adds}


def measure(layer: Linear, batch: int, sparsities: Sequence[float], settings: Settings) -> list[Memory]:
    """Measure `layer` at one batch size and each sparsity, each run in a fresh process."""
    rows = []
    for sparsity in sparsities:
        count = connections((layer.size,), sparsity)
        if count < 10:
            raise RegrowRuntimeError(
                f"{layer} has {count} connections at {percent(sparsity)}, too few to compare"
            )
        full, tenth = (run(layer, n, batch, settings, update=True) for n in (count, count // 10))
        rows.append(Memory(str(layer), batch, sparsity, full, tenth))
    return rows
