"""Groups of a weight's positions: where connections are chosen group by group, so many in each."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from regrow.growth.gradient import TILE, DenseGradient


class Groups:
    """The positions of a matrix in groups of `size` that follow each other along the inputs of a row.

    The columns of a convolution are inputs times places of the kernel; a group is of inputs at one place, as a
    channels-last layout has them.

    Args:
        columns: of the matrix.
        size: positions of a group.
        kernel: places of the kernel.
    """

    def __init__(self, columns: int, size: int, kernel: int = 1) -> None:
        self.columns, self.size, self.kernel = columns, size, kernel

    def split(self, tile: Tensor) -> Tensor:
        """Return a tile of whole rows [r, columns] as the groups in it [r * columns / size, size]."""
        return tile.reshape(len(tile), -1, self.kernel).transpose(1, 2).contiguous().view(-1, self.size)

    def join(self, chosen: Tensor) -> Tensor:
        """Return the positions in a tile, ascending, of flat indices into its groups."""
        if self.kernel == 1:
            return chosen
        inputs = self.columns // self.kernel
        row, place = chosen // self.columns, chosen % self.columns
        return (row * self.columns + place % inputs * self.kernel + place // inputs).sort().values

    def of(self, positions: Tensor) -> Tensor:
        """Return the number of the group of each position, int64 [n]."""
        if self.kernel > 1:
            row, column = positions // self.columns, positions % self.columns
            inputs = self.columns // self.kernel
            positions = row * self.columns + column % self.kernel * inputs + column // self.kernel
        return positions // self.size

    def counts(self, positions: Tensor, rows: int) -> Tensor:
        """Return how many of `positions` are in each group of a matrix with so many `rows`, int64 [groups]."""
        return torch.bincount(self.of(positions), minlength=rows * self.columns // self.size)


class Noise(DenseGradient):
    """Random numbers in the place of a dense gradient: the best of them are drawn uniformly.

    Args:
        rows, columns: of the matrix.
        generator: on the CPU, so that every storage and device draws alike.
        device: where the numbers are wanted.
    """

    def __init__(self, rows: int, columns: int, generator: torch.Generator, device: torch.device) -> None:
        super().__init__(rows, torch.arange(columns, device=device))
        self._generator = generator

    def _draw(self, rows: int) -> Tensor:
        shape = rows, len(self.columns)
        drawn = torch.rand(shape, generator=self._generator, dtype=torch.float64, device="cpu")
        return drawn.to(self.columns.device)

    def tiles(self) -> Iterator[tuple[int, Tensor]]:
        height = max(1, TILE // len(self.columns))
        for start in range(0, self.rows, height):
            yield start, self._draw(min(height, self.rows - start))

    def at(self, rows: Tensor) -> Tensor:
        return self._draw(len(rows))

    def among(self, columns: Tensor) -> Noise:
        return Noise(self.rows, len(columns), self._generator, columns.device)

    def between(self, first: int, end: int) -> Noise:
        return Noise(end - first, len(self.columns), self._generator, self.columns.device)
