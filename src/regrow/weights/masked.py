"""Masked storage: the dense parameter, zero where inactive, and a boolean buffer ``<name>_mask`` beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from regrow.ops.select import top
from regrow.weights.among import Among
from regrow.weights.base import Reduce, Score, SparseWeight, as_matrix, require_finite


class MaskedWeight(SparseWeight):
    """A sparse weight of any module on any device; compute and memory are those of the dense one."""

    storage: ClassVar[str] = "masked"

    @property
    def parameter(self) -> nn.Parameter:
        parameter: nn.Parameter = self.module._parameters[self.parameter_name]  # type: ignore[assignment]
        return parameter

    @property
    def _mask(self) -> Tensor:
        mask: Tensor = self.module._buffers[f"{self.parameter_name}_mask"]  # type: ignore[assignment]
        return mask

    @property
    def topology_buffers(self) -> dict[str, Tensor]:
        return {f"{self.parameter_name}_mask": self._mask}

    @property
    def nnz(self) -> int:
        return int(self._mask.count_nonzero())

    def positions(self) -> Tensor:
        return self._mask.reshape(-1).nonzero().view(-1)

    def take(self, tensor: Tensor) -> Tensor:
        return tensor[self._mask]

    def restrict(self, gradient: Tensor) -> Tensor:
        # where, not times: inf * 0 is nan
        return torch.where(
            self._mask, gradient, torch.zeros((), dtype=gradient.dtype, device=gradient.device)
        )

    def clean(self, gradient: Tensor, *, edited: bool = True) -> None:
        every = gradient.numel() // 512 | 1  # writing through ``.data`` leaves no trace but the values
        some, active = (t.detach().reshape(-1)[::every] for t in (gradient, self._mask))
        if edited or some[~active].any():
            gradient.detach().masked_fill_(~self._mask, 0)

    def is_zero(self, noted: Tensor) -> bool:
        return not noted.any()

    def note(self, gradient: Tensor) -> Tensor:
        exact = gradient.detach().to(torch.promote_types(gradient.dtype, torch.float32))
        return exact.clone() if exact.data_ptr() == gradient.data_ptr() else exact

    def add(self, before: Tensor, noted: Tensor) -> Tensor:
        return before.add_(noted)

    def nothing(self) -> Tensor:
        return self.note(torch.zeros_like(self.parameter))

    def best(
        self,
        count: int,
        survivors: Tensor,
        score: Score,
        reduce: Reduce | None = None,
        gradient: Tensor | None = None,
        among: Among | None = None,
    ) -> Tensor:
        rows, columns = as_matrix(self.shape)
        if gradient is None:
            gradient = self.stashed
        assert gradient is not None
        gradient = (reduce(gradient) if reduce else gradient).reshape(rows, columns)
        row, column = (torch.arange(n, device=gradient.device) for n in (rows, columns))
        if among is not None:
            gradient, column, survivors = gradient[:, among.chosen], among.chosen, among.narrow(survivors)
        require_finite(gradient)
        free = torch.ones(gradient.numel(), dtype=torch.bool, device=gradient.device)
        free[survivors] = False
        candidates = free.nonzero().view(-1)
        scores = score(gradient, row[:, None], column[None, :]).reshape(-1)[candidates]
        best = candidates[top(scores, count)]
        return best if among is None else among.widen(best)

    def update(self, drop: Tensor, grow: Tensor, companions: Sequence[Tensor] = ()) -> int:
        before = self._mask.clone()
        self._mask[self._places(self.positions()[drop])] = False
        self._mask[self._places(grow)] = True
        kept = before & self._mask
        for tensor in (self.parameter.detach(), *companions):
            tensor.masked_fill_(~kept, 0)
        self.remember()
        return int(self._mask.count_nonzero() - kept.count_nonzero())

    def _places(self, positions: Tensor) -> tuple[Tensor, ...]:
        """Positions as an index of the dense tensor, whatever its memory format."""
        return torch.unravel_index(positions, self.shape)

    def cut(self) -> bool:
        """Set whatever is not an active connection to zero. Returns whether anything was not."""
        inactive = self.parameter.detach().masked_select(~self._mask)
        if not inactive.any():
            return False
        self.parameter.detach().masked_fill_(~self._mask, 0)
        return True

    def fill(self, positions: Tensor, values: Tensor, tensor: Tensor | None = None) -> None:
        (self.parameter.detach() if tensor is None else tensor)[self._places(positions)] = values

    def assign(self, positions: Tensor, values: Tensor) -> None:
        self._mask.zero_()[self._places(positions)] = True
        dense = torch.zeros(self.numel, dtype=self.parameter.dtype, device=self.parameter.device)
        dense[positions] = values.to(dense)
        self.parameter.detach().copy_(dense.view(self.shape))
        self.remember()
