"""Recurrent highway networks (Zilly et al. 2017, arXiv 1607.03474) with coupled gates, as Selfish-RNN trains them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regrow.arguments import require_count, require_fraction
from regrow.models.dropouts import DroppedEmbedding, LockedDropout
from regrow.models.language import LanguageModel, initialised
from regrow.models.width import require_width, scaled


class RecurrentHighway(nn.Module):
    """A recurrent layer that passes through several highway steps in each time step.

    The two gates of a step, new value and transfer, are one matrix [2 H, H] of ``recurrent``, new value first; the
    input joins at the first step, through ``input`` [2 H, I]. What is not transferred is kept.
    """

    def __init__(self, inputs: int, hidden: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.hidden, self.dropout = hidden, dropout
        self.input = nn.Linear(inputs, 2 * hidden)
        self.recurrent = nn.ModuleList(nn.Linear(hidden, 2 * hidden) for _ in range(depth))

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the outputs [B, T, H] of `x` [B, T, I], and the last state [1, B, H]."""
        h = x.new_zeros(len(x), self.hidden) if state is None else state[0]
        kept = F.dropout(torch.ones_like(h), self.dropout, self.training)  # the same in all steps
        outputs = []
        for given in self.input(x).unbind(1):
            for step, linear in enumerate(self.recurrent):
                gates = linear(h * kept)
                new, transfer = (gates if step else gates + given).chunk(2, -1)
                h = h + transfer.sigmoid() * (new.tanh() - h)
            outputs.append(h)
        return torch.stack(outputs, 1), h.unsqueeze(0)


def rhn(
    classes: int = 10_000,
    hidden: int = 830,
    depth: int = 10,
    dropout: float = 0.65,
    hidden_dropout: float = 0.25,
    input_dropout: float = 0.65,
    embedding_dropout: float = 0.2,
    width: float = 1.0,
) -> LanguageModel:
    """Build a recurrent highway network of one layer, coupled gates, its read-out tied to the embedding.

    Args:
        classes: the size of the vocabulary.
        hidden: units, and length of a token's vector.
        depth: highway steps in a time step.
        dropout: probability, of the outputs.
        hidden_dropout: probability, of the state, the same in all steps.
        input_dropout: probability, of the embedded tokens.
        embedding_dropout: probability, of whole words.
        width: factor of `hidden`.
    """
    classes, width = require_count("classes", classes), require_width(width)
    size, depth = scaled(require_count("hidden", hidden), width), require_count("depth", depth)
    model = LanguageModel(
        DroppedEmbedding(classes, size, require_fraction("embedding_dropout", embedding_dropout)),
        [RecurrentHighway(size, size, depth, require_fraction("hidden_dropout", hidden_dropout))],
        nn.Linear(size, classes),
        before=LockedDropout(require_fraction("input_dropout", input_dropout)),
        after=LockedDropout(require_fraction("dropout", dropout)),
    )
    return initialised(model, tied=True)
