"""`Steps`: how the rows of a recurrent layer's input, one for each sequence and time step, lie in time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from regrow.errors import RegrowRuntimeError


@dataclass(frozen=True)
class Steps:
    """Rows in the order of time, those of one time step together."""

    count: int
    batch: int
    lengths: Tensor | None = None
    """Of the sequences, int64 [batch], where they differ."""
    places: tuple[Tensor, Tensor] | None = None
    """Place of each row in ``count * batch``, forwards in time and backwards, where lengths differ."""

    @classmethod
    def of(cls, packed: PackedSequence) -> Self:
        """Return the steps of a packed sequence.

        Raises:
            RegrowRuntimeError: sequences that are not sorted by length, or data that do not belong to them.
        """
        sizes, device = packed.batch_sizes, packed.data.device
        if len(sizes) == 0 or int(sizes.min()) < 1 or bool((sizes[1:] > sizes[:-1]).any()):
            raise RegrowRuntimeError(
                "`input` must be packed with its sequences sorted by length, the longest first: its batch_sizes ascend "
                f"or are empty: {sizes.tolist()[:8]}\nUse torch.nn.utils.rnn.pack_padded_sequence(..., "
                "enforce_sorted=False), which sorts them."
            )
        if int(sizes.sum()) != len(packed.data):
            raise RegrowRuntimeError(
                f"`input` must have as many rows as its batch_sizes add up to, {int(sizes.sum())}, got "
                f"{len(packed.data)}\nUse torch.nn.utils.rnn.pack_padded_sequence, and leave its parts as they are."
            )
        count, batch = len(sizes), int(sizes[0])
        if int(sizes[-1]) == batch:
            return cls(count, batch)
        time = torch.repeat_interleave(torch.arange(count), sizes)
        example = torch.arange(len(time)) - torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
        lengths = torch.bincount(example, minlength=batch)
        places = (time * batch + example, (lengths[example] - 1 - time) * batch + example)
        return cls(count, batch, lengths.to(device), (places[0].to(device), places[1].to(device)))

    def spread(self, rows: Tensor, reverse: bool) -> Tensor:
        """Return `rows` [n, features] as [count, batch, features] in the order in which they are read."""
        if self.places is not None:
            whole = rows.new_zeros(self.count * self.batch, rows.shape[-1])
            rows = whole.index_copy(0, self.places[reverse], rows)
        steps = rows.reshape(self.count, self.batch, rows.shape[-1])
        return steps.flip(0) if reverse and self.places is None else steps

    def collect(self, steps: Tensor, reverse: bool) -> Tensor:
        """Return what `spread` would make `steps` [count, batch, features] of."""
        steps = steps.flip(0) if reverse and self.places is None else steps
        rows = steps.reshape(self.count * self.batch, steps.shape[-1])
        return rows if self.places is None else rows.index_select(0, self.places[reverse])
