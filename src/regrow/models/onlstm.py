"""Ordered neurons: the ON-LSTM (Shen et al. 2019, arXiv 1810.09536)."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import pairwise

import torch
from torch import Tensor, nn

from regrow.arguments import require_count, require_fraction, require_positive
from regrow.errors import RegrowValueError
from regrow.models.dropouts import DroppedEmbedding, LockedDropout, State, WeightDropLinear
from regrow.models.language import LanguageModel, initialised
from regrow.models.width import require_width, scaled


class OrderedLSTM(nn.Module):
    """An LSTM layer whose cells are ordered in chunks, which two master gates keep or write from one end on.

    All gates are one matrix, ``input`` [4 H + 2 C, I] and ``recurrent`` [4 H + 2 C, H] with C chunks: master input
    gate, master forget gate, and then the LSTM's output gate, new value, input gate and forget gate.
    """

    def __init__(self, inputs: int, hidden: int, chunk: int, weight_drop: float) -> None:
        super().__init__()
        self.hidden, self.chunks = hidden, hidden // chunk
        rows = 4 * hidden + 2 * self.chunks
        self.input = nn.Linear(inputs, rows)
        self.recurrent = (
            WeightDropLinear(hidden, rows, weight_drop) if weight_drop else nn.Linear(hidden, rows)
        )

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Return the outputs [B, T, H] of `x` [B, T, I], and the last state: h and c, each [1, B, H]."""
        zeros = x.new_zeros(1, len(x), self.hidden)
        h, c = (zeros[0], zeros[0]) if state is None else (state[0][0], state[1][0])
        outputs = []
        recurrent = self.recurrent
        with recurrent.one_draw() if isinstance(recurrent, WeightDropLinear) else nullcontext():
            for given in self.input(x).unbind(1):
                h, c = self._step(given + recurrent(h), c)
                outputs.append(h)
        return torch.stack(outputs, 1), (h.unsqueeze(0), c.unsqueeze(0))

    def _step(self, gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        masters, rest = gates.split([2 * self.chunks, 4 * self.hidden], -1)
        write, keep = masters.unflatten(-1, (2, self.chunks)).softmax(-1).cumsum(-1).unbind(-2)
        # a master gate's value is that of all cells of its chunk
        write, keep = (1 - write).unsqueeze(-1), keep.unsqueeze(-1)
        out, new, enter, forget = rest.unflatten(-1, (4, self.chunks, -1)).unbind(-3)
        both = write * keep
        forget = forget.sigmoid() * both + (keep - both)
        enter = enter.sigmoid() * both + (write - both)
        c = forget * c.unflatten(-1, (self.chunks, -1)) + enter * new.tanh()
        return (out.sigmoid() * c.tanh()).flatten(-2), c.flatten(-2)


def on_lstm(
    classes: int = 10_000,
    embedding: int = 400,
    hidden: int = 1150,
    layers: int = 3,
    chunk: int = 10,
    dropout: float = 0.45,
    hidden_dropout: float = 0.3,
    input_dropout: float = 0.5,
    embedding_dropout: float = 0.1,
    weight_drop: float = 0.45,
    activity: float = 2.0,
    slowness: float = 1.0,
    width: float = 1.0,
) -> LanguageModel:
    """Build an ON-LSTM for Penn Treebank, its read-out tied to the embedding.

    Args:
        classes: the size of the vocabulary.
        embedding: length of a token's vector and units of the last layer, a multiple of `chunk`.
        hidden: units of each layer but the last, a multiple of `chunk`.
        layers: number of layers.
        chunk: units that share the master gates.
        dropout: probability, of the last outputs.
        hidden_dropout: probability, of the outputs between layers.
        input_dropout: probability, of the embedded tokens.
        embedding_dropout: probability, of whole words.
        weight_drop: probability, of recurrent weights.
        activity: weight of activation regularisation.
        slowness: weight of temporal activation regularisation.
        width: factor of the number of chunks, and with it of all sizes but the vocabulary.
    """
    classes, width, chunk = (
        require_count("classes", classes),
        require_width(width),
        require_count("chunk", chunk),
    )
    for name, value in {"embedding": embedding, "hidden": hidden}.items():
        if require_count(name, value) % chunk:
            raise RegrowValueError(f"`{name}` must be a multiple of `chunk`, got {value} and {chunk}")
    size, units = (chunk * scaled(value // chunk, width) for value in (embedding, hidden))
    sizes = [size, *[units] * (require_count("layers", layers) - 1), size]
    drop = require_fraction("weight_drop", weight_drop)
    model = LanguageModel(
        DroppedEmbedding(classes, size, require_fraction("embedding_dropout", embedding_dropout)),
        [OrderedLSTM(i, o, chunk, drop) for i, o in pairwise(sizes)],
        nn.Linear(size, classes),
        before=LockedDropout(require_fraction("input_dropout", input_dropout)),
        between=LockedDropout(require_fraction("hidden_dropout", hidden_dropout)),
        after=LockedDropout(require_fraction("dropout", dropout)),
        activity=require_positive("activity", activity, zero=True),
        slowness=require_positive("slowness", slowness, zero=True),
    )
    return initialised(model, tied=True)
