"""Some of a weight's columns, seen as a matrix of their own: where growth candidates are searched among them only."""

from __future__ import annotations

import torch
from torch import Tensor

from regrow.ops.sketch import PIECE


class Among:
    """The columns `chosen` of a matrix with so many `columns`, and how positions translate; order is kept.

    Args:
        chosen: ascending, int64 [n].
        columns: of the whole matrix.
    """

    def __init__(self, chosen: Tensor, columns: int) -> None:
        self.chosen, self.columns = chosen, columns
        self._place = torch.full((columns,), -1, dtype=torch.int32, device=chosen.device)
        self._place[chosen] = torch.arange(len(chosen), dtype=torch.int32, device=chosen.device)

    def narrow(self, positions: Tensor) -> Tensor:
        """Return those of the ascending `positions` that are in chosen columns, as positions in the matrix of
        these alone.
        """
        found = []
        for some in positions.split(PIECE):
            place = self._place[some % self.columns]
            inside = place >= 0
            found.append((some[inside] // self.columns).mul_(len(self.chosen)).add_(place[inside]))
        return torch.cat(found) if found else positions

    def widen(self, positions: Tensor) -> Tensor:
        """Return the positions in the whole matrix of `positions` in the matrix of the chosen columns."""
        return positions // len(self.chosen) * self.columns + self.chosen[positions % len(self.chosen)]
