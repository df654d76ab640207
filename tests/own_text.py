"""A user's own recurrent networks, as a recipe finds them, and a text and a recipe of seconds."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

TEXT = "".join(f"{n} squared is {n * n}, says the {'cat' if n % 3 else 'dog'}.\n" for n in range(400))
RECIPE = """
model: own_text:CharGRU
data: {{name: text, path: {path}, length: 16, streams: true}}
validation: own
sparsify: {{sparsity: 0.5, include: [hidden]}}
method: {{name: rigl, update_every: 5}}
optimizer: {{name: Adam, lr: 0.01}}
samples: {{length: 40}}
batch_size: 4
steps: 60
log_every: 7
checkpoint_every: 10
evaluate_every: 20
device: cpu
threads: 1
"""


def write_recipe(folder: Path) -> Path:
    """The recipe of most tests, a text in streams: 60 steps, an update every 5, a checkpoint every 10."""
    (folder / "a.txt").write_text(TEXT)
    (folder / "streams.yaml").write_text(RECIPE.format(path=folder / "a.txt"))
    return folder / "streams.yaml"


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
