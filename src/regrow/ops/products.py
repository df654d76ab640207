"""`Products`: what the growth search of a linear layer computes the dense gradient from."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


def rows_of(input: Tensor, gradient: Tensor) -> Tensor:
    """Find the rows of a product that may not be zero: of an input [batch, ...] and a gradient [batch, rows, ...]."""
    reached = gradient.transpose(0, 1).flatten(1).any(1).nonzero().view(-1)
    return reached if input.any() else reached[:0]


class Products(NamedTuple):
    """Operands of a linear layer's backward pass."""

    input: Tensor
    """[batch, columns]"""
    gradient: Tensor
    """Of the output before its activation, [batch, rows]."""

    def rows(self) -> Tensor:
        """See `regrow.ops.listener.Operands`."""
        return rows_of(self.input, self.gradient)

    def put_rows(self, tile: Tensor, start: int, add: bool) -> None:
        """See `regrow.ops.listener.Operands`."""
        rows = self.gradient[:, start : start + len(tile)]
        tile.addmm_(rows.t().to(tile.dtype), self.input.to(tile.dtype), beta=float(add))

    def among(self, columns: Tensor) -> Products:
        """See `regrow.ops.listener.Operands`."""
        return self._replace(input=self.input.t()[columns].t())

    def in_rows(self, rows: Tensor) -> Products:
        """See `regrow.ops.listener.Operands`."""
        return self._replace(gradient=self.gradient.t()[rows].t())
