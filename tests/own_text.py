"""A user's own recurrent networks, as a recipe finds them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CharGRU(nn.Module):
    """An embedding, a GRU and a read-out; its state is [1, B, size]."""

    def __init__(self, classes: int = 256, size: int = 24, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, size)
        self.gru = nn.GRU(size, size, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(size, size)
        self.out = nn.Linear(size, classes)

    def with_state(self, tokens: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, last = self.gru(self.embedding(tokens), state)
        logits: Tensor = self.out(torch.tanh(self.hidden(self.dropout(y))))
        return logits, last

    def forward(self, tokens: Tensor) -> Tensor:
        return self.with_state(tokens)[0]


class Regularized(CharGRU):
    """The same with a loss on the activations of the last forward pass; a state in two parts."""

    def with_state(self, tokens, state=None):
        inner, seen = (None, 0) if state is None else (state["inner"], state["seen"])
        y, inner = self.gru(self.embedding(tokens), inner)
        self.last = y
        seen = torch.as_tensor(seen) + tokens.shape[1] * torch.ones(len(tokens))
        return self.out(torch.tanh(self.hidden(self.dropout(y)))), {"inner": inner, "seen": seen}

    def regularization(self) -> Tensor:
        return 0.5 * self.last.square().mean()


class Odd(CharGRU):
    """Its state is alright, its outputs are those of the last place only."""

    def with_state(self, tokens, state=None):
        logits, last = super().with_state(tokens, state)
        return logits[:, -1], last

    def forward(self, tokens):
        return super().with_state(tokens)[0]


class Stateless(nn.Module):
    """Sees the last three symbols at each place."""

    def __init__(self, classes: int = 256, size: int = 24) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, size)
        self.conv = nn.Conv1d(size, size, 3)
        self.out = nn.Linear(size, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        y = nn.functional.pad(self.embedding(tokens).transpose(1, 2), (2, 0))
        logits: Tensor = self.out(self.conv(y).tanh().transpose(1, 2))
        return logits
