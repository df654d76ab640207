"""What the recurrent networks of text have in common: tokens and a state in, logits and the next state out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regrow._torch import tree_leaves
from regrow.errors import RegrowValueError
from regrow.models.dropouts import LockedDropout

RANGE = 0.1
"""Embeddings and read-outs start uniform between minus and plus this, as the papers' code has it."""


class LanguageModel(nn.Module):
    """``embedding``, recurrent ``layers``, ``readout`` and ``head``; one state goes from each sequence to the next.

    Args:
        embedding: of the tokens.
        layers: each takes [B, T, I] and its state or None, and returns [B, T, H] and its next state, whose tensors
            are [layers, B, H] as those of `nn.LSTM`.
        head: from the last output to logits or, as good, logarithms of probabilities.
        readout: what stands before the head.
        before: dropout of the embedded tokens.
        between: dropout of the outputs of each layer but the last.
        after: dropout of the last outputs.
        activity: weight of the mean square of the last outputs after dropout (activation regularisation).
        slowness: weight of the mean square of their change from a time step to the next, before dropout (temporal
            activation regularisation).
    """

    def __init__(
        self,
        embedding: nn.Embedding,
        layers: Sequence[nn.Module],
        head: nn.Module,
        *,
        readout: nn.Module | None = None,
        before: nn.Module | None = None,
        between: nn.Module | None = None,
        after: nn.Module | None = None,
        activity: float = 0.0,
        slowness: float = 0.0,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.before = before or nn.Identity()
        self.layers = nn.ModuleList(layers)
        self.between = between or nn.Identity()
        self.after = after or nn.Identity()
        self.readout = readout or nn.Identity()
        self.head = head
        self.activity, self.slowness = activity, slowness
        self._penalty: Tensor | None = None

    def forward(self, tokens: Tensor, state: Any = None) -> Tensor:
        """Return the logits [B, T, classes] of the token after each of `tokens` [B, T], int64."""
        return self.with_state(tokens, state)[0]

    def with_state(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Return the logits [B, T, classes] and the state after the last of `tokens` [B, T], int64.

        Args:
            tokens: sequences side by side.
            state: that after the tokens before these, as this method returned it; None at the beginning. Gradients
                flow into it unless it is detached.

        Raises:
            RegrowValueError: tokens of another shape, a state of another batch or of another network.
        """
        if tokens.dim() != 2 or not tokens.numel():
            raise RegrowValueError(
                f"`tokens` must be of shape [B, T], none of them 0, got {list(tokens.shape)}"
                "\nGive a single sequence as tokens.unsqueeze(0)."
            )
        states = (None,) * len(self.layers) if state is None else self._checked(state, tokens)
        x, following = self.before(self.embedding(tokens)), []
        for place, (layer, own) in enumerate(zip(self.layers, states, strict=True)):
            x, new = layer(self.between(x) if place else x, own)
            following.append(new)
        y = self.after(x)
        if self.training and (self.activity or self.slowness):
            self._penalty = self._measured(x, y)
        return self.head(self.readout(y)), tuple(following)

    def regularization(self) -> Tensor:
        """Return what the last forward pass adds to the loss in training, once; 0 where there is nothing to add."""
        penalty, self._penalty = self._penalty, None
        return self.embedding.weight.new_zeros(()) if penalty is None else penalty

    def _measured(self, raw: Tensor, dropped: Tensor) -> Tensor:
        penalty = self.activity * dropped.square().mean()
        if raw.shape[1] > 1:  # the mean of no changes is nan
            penalty = penalty + self.slowness * raw.diff(dim=1).square().mean()
        return penalty

    def _checked(self, state: Any, tokens: Tensor) -> Sequence[Any]:
        if not isinstance(state, tuple | list) or len(state) != len(self.layers):
            raise RegrowValueError(
                f"`state` must have one entry for each of {len(self.layers)} layers\n"
                "Give what with_state returned, or None at the beginning of a text."
            )
        for leaf in tree_leaves(state):
            if not isinstance(leaf, Tensor) or leaf.dim() != 3 or leaf.shape[1] != len(tokens):
                got = list(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__
                raise RegrowValueError(
                    f"`state` must be of {len(tokens)} sequences, as `tokens` are: tensors [layers, {len(tokens)}, "
                    f"hidden], got {got}\nStart another batch with None, or take its sequences out of the state."
                )
        return state

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what hangs on the graph of the last pass, which can be neither copied nor pickled."""
        return {**self.__dict__, "_penalty": None}


class MixtureOfSoftmaxes(nn.Module):
    """A weighted mean of several softmaxes (Yang et al. 2018, arXiv 1711.03953).

    ``latent`` makes of each output one vector an expert, ``prior`` the experts' weights, and ``decoder`` is the
    read-out of all experts.
    """

    def __init__(self, inputs: int, size: int, classes: int, experts: int, dropout: float) -> None:
        super().__init__()
        self.experts = experts
        self.prior = nn.Linear(inputs, experts, bias=False)
        self.latent = nn.Linear(inputs, experts * size)
        self.dropout = LockedDropout(dropout)
        self.decoder = nn.Linear(size, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logarithms of probabilities [B, T, classes] of `x` [B, T, inputs]."""
        vectors = self.dropout(self.latent(x).tanh()).unflatten(-1, (self.experts, -1))
        each = self.decoder(vectors).log_softmax(-1)  # [B, T, experts, classes]
        return torch.logsumexp(each + self.prior(x).log_softmax(-1).unsqueeze(-1), -2)


def initialised(model: LanguageModel, *, tied: bool) -> LanguageModel:
    """Draw embedding and last read-out as the papers do, and make one of both where they are `tied`."""
    decoder = model.head.decoder if isinstance(model.head, MixtureOfSoftmaxes) else model.head
    assert isinstance(decoder, nn.Linear)
    if tied:
        decoder.weight = model.embedding.weight
    else:
        nn.init.uniform_(decoder.weight, -RANGE, RANGE)
    nn.init.uniform_(model.embedding.weight, -RANGE, RANGE)
    nn.init.zeros_(decoder.bias)
    return model
