"""`summary(model)`: layer by layer, what was asked, what was reached, and how it is stored."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from regrow._text import table, wrapped
from regrow.arguments import require_model
from regrow.ops.backends import why_reference
from regrow.sparsity.layers import find_layers
from regrow.weights.views import named_records, named_weights, settle


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
    pattern: str = ""
    """What its topology keeps to, as `sparsify` takes it; empty for nothing."""


@dataclass(frozen=True)
class Summary:
    """All weights of a model with two or more dimensions; ``str()`` is a table."""

    rows: tuple[LayerSummary, ...]
    parameters: int
    """Stored parameters of the model, inactive ones not counted."""
    reference: str | None = None
    """Why its sparse layers run on the reference instead of the kernels, and what mends it; None where they do not."""

    @property
    def connections(self) -> int:
        """Active connections of the sparse weights."""
        return sum(row.connections for row in self.rows if row.storage != "dense")

    @property
    def sparsity(self) -> float:
        """Share of the sparse weights' positions without a connection."""
        positions = sum(math.prod(row.shape) for row in self.rows if row.storage != "dense")
        return 1 - self.connections / positions if positions else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings, for JSON."""
        return {
            "layers": [asdict(row) for row in self.rows],
            "connections": self.connections,
            "sparsity": self.sparsity,
            "parameters": self.parameters,
            "reference": self.reference,
        }

    def __str__(self) -> str:
        return self.text()

    def text(self, width: int | None = None) -> str:
        """Lay out the table for a terminal of `width` characters, or as wide as it takes."""
        head = ("layer", "shape", "asked", "density", "connections", "storage", "")
        body = [
            (
                row.name,
                " x ".join(map(str, row.shape)),
                f"{row.asked:.4f}",
                f"{row.density:.4f}",
                f"{row.connections:,}",
                row.storage,
                "; ".join(filter(None, [row.pattern, row.reason])),
            )
            for row in self.rows
        ]
        lines = table([head, *body], width, prose=True)
        lines.append(
            f"{self.connections:,} connections, sparsity {self.sparsity:.4f} over the sparse weights; "
            f"{self.parameters:,} parameters with everything"
        )
        return wrapped("\n".join([*lines, self.reference] if self.reference else lines), width)


def summary(model: nn.Module) -> Summary:
    """Summarize what is sparse in `model`, how, and why the rest is not."""
    settle(require_model("model", model))
    sparse = dict(named_weights(model))
    known = named_records(model)
    stored = sum(p.numel() for p in model.parameters())
    if not known:
        rows = [
            LayerSummary(
                y.weight_name,
                y.shape,
                1.0,
                1.0,
                math.prod(y.shape),
                "dense",
                y.dense_because or "not sparsified",
            )
            for y in find_layers(model)
        ]
        return Summary(tuple(rows), stored)
    rows = []
    for name, record in known.items():
        size = math.prod(record.shape)
        count = sparse[name].nnz if name in sparse else size
        rows.append(
            LayerSummary(
                name,
                record.shape,
                record.asked,
                count / size,
                count,
                record.storage,
                record.reason,
                str(record.pattern or ""),
            )
        )
    idle = sum(weight.parameter.numel() - weight.nnz for weight in sparse.values())
    # masks that were asked for are what they would be with kernels
    faster = [w for name, w in sparse.items() if not w.is_dense or known[name].reason]
    reference = why_reference(weight.parameter for weight in faster)
    return Summary(tuple(rows), stored - idle, reference)
