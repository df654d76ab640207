"""Dropout of recurrent networks: one draw for a whole sequence, of units, of words and of recurrent weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regrow.arguments import require_fraction

State = tuple[Tensor, Tensor]


class LockedDropout(nn.Module):
    """Dropout of [B, T, H] that drops the same units at all time steps (Gal and Ghahramani 2016, "variational")."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = require_fraction("p", p)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` [B, T, H] with some units of each sequence at zero; in evaluation mode as it is."""
        if not (self.training and self.p):
            return x
        return x * F.dropout(x.new_ones(len(x), 1, x.shape[-1]), self.p)

    def extra_repr(self) -> str:
        """Say with which probability."""
        return f"p={self.p}"


class DroppedEmbedding(nn.Embedding):
    """An embedding that drops whole words, all places of a word in a batch alike (Merity et al. 2017)."""

    def __init__(self, words: int, size: int, dropout: float) -> None:
        super().__init__(words, size)
        self.dropout = require_fraction("dropout", dropout)

    def forward(self, input: Tensor) -> Tensor:
        """Return the vectors [..., size] of the words `input` [...], int64."""
        found = super().forward(input)
        if not (self.training and self.dropout):
            return found
        kept = F.dropout(found.new_ones(self.num_embeddings, 1), self.dropout)
        return found * F.embedding(input, kept)


class WeightDropLSTM(nn.LSTM):
    """An LSTM that drops recurrent weights, the same at all time steps of a batch (Merity et al. 2017, "DropConnect").

    Its parameters are those of `nn.LSTM`. A weight that is dropped is so for one pass, in a copy: what a sparse weight
    has of connections is another matter, and its zeros stay zero.
    """

    def __init__(self, input_size: int, hidden_size: int, weight_drop: float) -> None:
        super().__init__(input_size, hidden_size, batch_first=True)
        self.weight_drop = require_fraction("weight_drop", weight_drop)

    def forward(self, input: Tensor, hx: State | None = None) -> tuple[Tensor, State]:  # type: ignore[override]
        """Return the outputs [B, T, H] of `input` [B, T, I], and the last state: h and c, each [1, B, H]."""
        if hx is None:
            zeros = input.new_zeros(1, len(input), self.hidden_size)
            hx = zeros, zeros
        # by name: what stands in for a parameter for one call is not in the list of flat weights
        weights = [
            F.dropout(getattr(self, name), self.weight_drop, self.training)
            if name.startswith("weight_hh")
            else getattr(self, name)
            for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        ]
        output, h, c = torch.lstm(input, hx, weights, True, 1, 0.0, self.training, False, True)
        return output, (h, c)

    def extra_repr(self) -> str:
        """Say what is dropped beside what torch says."""
        return f"{super().extra_repr()}, weight_drop={self.weight_drop}"


class WeightDropLinear(nn.Linear):
    """A linear layer that drops weights; several calls within `one_draw` drop the same ones."""

    def __init__(self, inputs: int, outputs: int, weight_drop: float) -> None:
        super().__init__(inputs, outputs)
        self.weight_drop = require_fraction("weight_drop", weight_drop)
        self._drawn: list[Tensor] | None = None

    @contextmanager
    def one_draw(self) -> Iterator[None]:
        """Drop the same weights in all calls inside."""
        self._drawn = []
        try:
            yield
        finally:
            self._drawn = None

    def forward(self, input: Tensor) -> Tensor:
        """Return [..., outputs] of `input` [..., inputs]."""
        drawn = [] if self._drawn is None else self._drawn
        if not drawn:
            drawn.append(F.dropout(self.weight, self.weight_drop, self.training))
        return F.linear(input, drawn[0], self.bias)

    def extra_repr(self) -> str:
        """Say what is dropped beside what torch says."""
        return f"{super().extra_repr()}, weight_drop={self.weight_drop}"
