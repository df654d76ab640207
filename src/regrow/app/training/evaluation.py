"""How good a network is, and how good the tickets are that it was made of."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

import regrow
from regrow.app.training.loss import cross_entropy
from regrow.tickets import disagreement, expected_calibration_error, kl_diversity, overlap

Data = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Evaluation:
    """Of one network on one set of examples."""

    accuracy: float
    """0 to 1."""
    nll: float
    """Negative log likelihood: mean cross entropy in nats."""
    ece: float
    """Expected calibration error, 15 bins."""

    def to_dict(self) -> dict[str, float]:
        """Plain numbers."""
        return asdict(self)


def evaluate(model: nn.Module, batches: Data, precision: str) -> Evaluation:
    """Test `model` in evaluation mode; it is in the mode it was in afterwards.

    Args:
        model: gives logits [N, C], or [N, T, C].
        batches: inputs and targets [N] or [N, T], on the model's device.
        precision: ``float32``, or ``bfloat16`` for torch.autocast.
    """
    losses, confidences, corrects = [], [], []
    for logits, targets in predictions(model, batches, precision):
        losses.append(cross_entropy(logits, targets, reduction="sum"))
        confidence, predicted = logits.softmax(-1).max(-1)
        confidences.append(confidence)
        corrects.append(predicted == targets)
    correct = torch.cat(corrects)
    # one column, of the class that was predicted: it is the target where it is correct
    ece = expected_calibration_error(torch.cat(confidences)[:, None], (~correct).long())
    return Evaluation(int(correct.sum()) / len(correct), float(torch.stack(losses).sum()) / len(correct), ece)


def predictions(model: nn.Module, batches: Data, precision: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits [N, C] in float32 or better and targets [N] of each batch, all places of a sequence in a row."""
    before = model.training
    model.eval()
    with torch.inference_mode():
        for inputs, targets in batches:
            with torch.autocast(inputs.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                logits = model(inputs)
            yield (
                logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, -2),
                targets.flatten(),
            )
    model.train(before)


def probabilities(model: nn.Module, batches: Data, precision: str) -> Tensor:
    """The predictions of `model` [N, C]."""
    return torch.cat([logits.softmax(-1) for logits, _ in predictions(model, batches, precision)])


def mean(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Of several networks."""
    rows = [(one.accuracy, one.nll, one.ece) for one in evaluations]
    return Evaluation(*(statistics.fmean(column) for column in zip(*rows, strict=True)))


def differences(tickets: Sequence[nn.Module], found: Sequence[Tensor]) -> dict[str, Any]:
    """How different several networks are: ``overlap``, ``disagreement`` and ``kl``, each None where there is none.

    Args:
        tickets: the networks.
        found: the `probabilities` of each.
    """
    several = len(tickets) > 1
    sparse = bool(tickets) and all(regrow.is_sparse(ticket) for ticket in tickets)
    return {
        "overlap": overlap(tickets).tolist() if sparse else None,
        "disagreement": disagreement(found) if several else None,
        "kl": kl_diversity(found) if several else None,
    }
