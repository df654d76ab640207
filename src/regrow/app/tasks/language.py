"""Language modelling: the next symbol at each place of a text, in bits per character or perplexity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regrow.app.tasks.carried import Carried, State, carries
from regrow.app.tasks.classification import CLASSIFICATION, Classification, cross_entropy
from regrow.app.tasks.measures import Measures, Metric
from regrow.app.tasks.task import Batches, Model
from regrow.tickets import Ensemble

_NLL = Metric("nll", form=".4f", is_loss=True, label="loss", meaning="negative log likelihood in nats")
_ACCURACY = Metric("accuracy", True, ".2%", meaning="share of symbols that are the likeliest")


def _bits(unit: str) -> Measures:
    """Return what is measured by bytes or characters."""
    best = Metric(
        "bits",
        form=".4f",
        meaning=f"cross entropy in bits per {unit}",
        unit=f"bits per {unit}",
    )
    loss = "cross entropy (nats)"
    return Measures(f"language by {unit}s", (best, _NLL, _ACCURACY), loss, CLASSIFICATION.differences)


MEASURES = {
    "bytes": _bits("byte"),
    "characters": _bits("character"),
    "words": Measures(
        "language by words",
        (Metric("perplexity", form=".2f", meaning="e to the cross entropy of a word"), _NLL, _ACCURACY),
        "cross entropy (nats)",  # and no differences: the probabilities of all words at all places are too many
    ),
}
"""By the unit of a vocabulary."""


class Language(Classification):
    """The next symbol at each place of a text.

    Args:
        classes: size of the vocabulary.
        unit: of it: ``bytes``, ``characters`` or ``words``.
        streams: whether a network that has a state carries it from batch to batch.
    """

    def __init__(self, classes: int, unit: str = "bytes", streams: bool = False) -> None:
        super().__init__(classes)
        self.measures, self.streams = MEASURES[unit], streams

    def step(self, model: Model, inputs: Tensor, targets: Tensor) -> Tensor:
        loss = self.loss(model(inputs), targets)
        network: Any = getattr(model, "network", model)
        further: Any = getattr(network, "regularization", None)
        total: Tensor = loss if further is None else loss + further()
        return total

    def carrying(self, network: nn.Module, *, compiled: bool = False) -> Model:
        if not self.streams or not carries(network):
            return super().carrying(network, compiled=compiled)
        function: Any = network.with_state
        return Carried(network, torch.compile(function) if compiled else function)

    def evaluate(self, batches: Batches) -> dict[str, float]:
        losses, corrects, count = [], [], 0
        for outputs, targets in batches:
            logits = outputs[
                : len(targets)
            ]  # more streams than have a window left are there to keep the state's size
            losses.append(cross_entropy(logits, targets, reduction="sum").double())
            corrects.append((logits.argmax(-1) == targets).sum())
            count += targets.numel()
        nll = float(torch.stack(losses).sum()) / count
        best = self.measures.best.name
        return {
            best: nll / math.log(2)
            if best == "bits"
            else float(torch.tensor(nll, dtype=torch.float64, device="cpu").exp()),
            "nll": nll,
            "accuracy": int(torch.stack(corrects).sum()) / count,
        }

    def ensemble(self, networks: Sequence[nn.Module]) -> nn.Module:
        return (_Recurrent if all(map(carries, networks)) else Ensemble)(networks)


class _Recurrent(Ensemble):
    """An ensemble of networks that each have a state."""

    def with_state(self, tokens: Tensor, state: State = None) -> tuple[Tensor, State]:
        """Return outputs of all together, and the states of the members."""
        members: Any = self.members
        states = [None] * len(members) if state is None else state
        found = [member.with_state(tokens, one) for member, one in zip(members, states, strict=True)]
        return self.combined([outputs for outputs, _ in found]), [one for _, one in found]
