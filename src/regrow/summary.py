"""`summary(model)`: layer by layer, what was asked, what was reached, and how it is stored."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from regrow.layers import find_layers
from regrow.weights import records, sparse_weights


@dataclass(frozen=True)
class LayerSummary:
    """One weight."""

    name: str
    shape: tuple[int, ...]
    asked: float
    """Density asked for."""
    density: float
    """Density reached: connections over positions."""
    connections: int
    storage: str
    reason: str
    """Why the weight is stored as it is, or stayed dense."""


@dataclass(frozen=True)
class Summary:
    """All weights of a model with two or more dimensions; ``str()`` is a table."""

    rows: tuple[LayerSummary, ...]
    parameters: int
    """Stored parameters of the model, inactive ones not counted."""

    @property
    def connections(self) -> int:
        """Active connections of the sparse weights."""
        return sum(row.connections for row in self.rows if row.storage != "dense")

    @property
    def sparsity(self) -> float:
        """Share of the sparse weights' positions without a connection."""
        positions = sum(_size(row.shape) for row in self.rows if row.storage != "dense")
        return 1 - self.connections / positions if positions else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON."""
        return {
            "layers": [asdict(row) for row in self.rows],
            "connections": self.connections,
            "sparsity": self.sparsity,
            "parameters": self.parameters,
        }

    def __str__(self) -> str:
        head = ("layer", "shape", "asked", "density", "connections", "storage", "")
        body = [
            (
                row.name,
                " x ".join(map(str, row.shape)),
                f"{row.asked:.4f}",
                f"{row.density:.4f}",
                f"{row.connections:,}",
                row.storage,
                row.reason,
            )
            for row in self.rows
        ]
        widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
            for line in (head, *body)
        ]
        lines.append(
            f"{self.connections:,} connections, sparsity {self.sparsity:.4f} over the sparse weights; "
            f"{self.parameters:,} parameters with everything"
        )
        return "\n".join(lines)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


def summary(model: nn.Module) -> Summary:
    """What is sparse in `model`, how, and why the rest is not."""
    sparse = {weight.name: weight for weight in sparse_weights(model)}
    known = records(model)
    if not known:
        rows = [
            LayerSummary(
                y.weight_name, y.shape, 1.0, 1.0, _size(y.shape), "dense", y.dense_because or "not sparsified"
            )
            for y in find_layers(model)
        ]
        return Summary(tuple(rows), sum(p.numel() for p in model.parameters()))
    rows = []
    for name, record in known.items():
        count = sparse[name].nnz if name in sparse else _size(record.shape)
        density = count / _size(record.shape)
        rows.append(
            LayerSummary(name, record.shape, record.asked, density, count, record.storage, record.reason)
        )
    stored = sum(p.numel() for p in model.parameters())
    idle = sum(weight.parameter.numel() - weight.nnz for weight in sparse.values())
    return Summary(tuple(rows), stored - idle)
