"""`ReadWeight`: what is read of a sparse weight, by positions and values of its connections, whatever holds them."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from regrow._random import sample
from regrow.weights.grown import GrownWeight
from regrow.weights.record import Record


def as_matrix(shape: Sequence[int]) -> tuple[int, int]:
    """Return the rows and columns of a weight of any shape: the first dimension, and all the others."""
    return shape[0], math.prod(shape[1:])


class ReadWeight(GrownWeight):
    """The part of a `SparseWeight` that changes nothing: see there. Methods choose their moves by it."""

    @property
    @abstractmethod
    def record(self) -> Record:
        """What is remembered about the weight beside its topology."""

    @property
    def numel(self) -> int:
        """Positions of the dense shape."""
        return math.prod(self.shape)

    @property
    def density(self) -> float:
        """Active connections over positions."""
        return self.nnz / self.numel

    @property
    @abstractmethod
    def nnz(self) -> int:
        """Number of active connections."""

    @abstractmethod
    def positions(self) -> Tensor:
        """Return the positions of the active connections, int64 [nnz]."""

    def survivors(self, drop: Tensor) -> Tensor:
        """Return the positions of the active connections but for those that `drop` names by index, ascending, int64."""
        stays = torch.ones(self.nnz, dtype=torch.bool, device=drop.device)
        stays[drop] = False
        return self.positions()[stays]

    @abstractmethod
    def take(self, tensor: Tensor) -> Tensor:
        """Return the entries of the active connections [nnz], from a tensor of the parameter's shape (a copy)."""

    def rows_of(self, tensor: Tensor) -> Tensor:
        """Return what belongs to the weight of a tensor of the whole weight's shape."""
        return tensor

    def values(self) -> Tensor:
        """Return the values of the active connections [nnz] (a copy)."""
        return self.take(self.parameter.detach())

    def magnitudes(self) -> Tensor:
        """Return the absolute values of the active connections [nnz] (a copy)."""
        return self.values().abs_()

    def to_dense(self) -> Tensor:
        """Return the weight as a dense tensor of `shape`, zero where inactive (a copy)."""
        return self.in_dense(self.positions(), self.values())

    def mask(self) -> Tensor:
        """Return the topology as a boolean tensor of `shape` (a copy)."""
        positions = self.positions()
        return self.in_dense(positions, torch.ones_like(positions, dtype=torch.bool))

    def draw(self, count: int, survivors: Tensor, generator: torch.Generator) -> Tensor:
        """Draw `count` positions uniformly from all but `survivors`, which ascend: ascending, int64 [count].

        Drawn by rank among the free positions, so that every storage draws alike without a dense array.
        """
        ranks = sample(count, self.numel - len(survivors), generator).to(survivors.device)
        # the free position of rank r has as many survivors before it as there are with survivor - index <= r
        offsets = survivors - torch.arange(len(survivors), device=survivors.device)
        return ranks + torch.searchsorted(offsets, ranks, right=True)

    def in_dense(self, positions: Tensor, values: Tensor) -> Tensor:
        """Make a tensor of `shape` with `values` [n] at `positions` [n], zero elsewhere."""
        flat = torch.zeros(self.numel, dtype=values.dtype, device=values.device)
        flat[positions] = values
        return flat.view(self.shape)

    def fan_in(self) -> Tensor:
        """Return the active connections of each row, int64 [rows]."""
        rows, columns = as_matrix(self.shape)
        return torch.bincount(self.positions() // columns, minlength=rows)
