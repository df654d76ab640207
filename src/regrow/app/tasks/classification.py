"""Classification: class numbers, cross entropy, accuracy; also of the next symbol at each place of a text."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regrow.app.tasks.measures import Measures, Metric
from regrow.app.tasks.task import Batches, Task
from regrow.errors import RegrowValueError
from regrow.tickets import Ensemble, disagreement, expected_calibration_error, kl_diversity
from regrow.tricks import over_all

CLASSIFICATION = Measures(
    "classification",
    (
        Metric("accuracy", True, ".2%", unit="correct (%)", values="accuracies"),
        Metric("nll", form=".4f", is_loss=True, label="loss", meaning="negative log likelihood in nats"),
        Metric("ece", form=".4f", label="calibration error", meaning="expected calibration error, 15 bins"),
    ),
    "cross entropy (nats)",
    (Metric("disagreement", form=".2%"), Metric("kl", form=".4f", label="KL")),
)


def cross_entropy(
    logits: Tensor, targets: Tensor, smoothing: float = 0.0, reduction: str = "mean", others: bool = False
) -> Tensor:
    """Return the cross entropy of `logits` [N, C] and class numbers [N], or of [N, T, C] and [N, T] over all places.

    `smoothing` is spread over all classes, or over the `others` than the true one.
    """
    if others:
        smoothing = over_all(smoothing, logits.shape[-1])
    return F.cross_entropy(
        logits.flatten(0, -2), targets.flatten(), reduction=reduction, label_smoothing=smoothing
    )


class Classification(Task):
    """The class of each example, or of each place of a sequence."""

    measures = CLASSIFICATION
    smoothing: float = 0.0
    """Of the targets in `loss`; a subclass with a loss of its own heeds it."""
    others: bool = False
    """Whether `smoothing` is spread over the other classes alone."""

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(outputs, targets, self.smoothing, others=self.others)

    def smoothed(self, smoothing: float, *, others: bool = False) -> Self:
        task = copy.copy(self)
        task.smoothing, task.others = smoothing, others
        return task

    def evaluate(self, batches: Batches) -> dict[str, float]:
        losses, confidences, corrects = [], [], []
        for outputs, wanted in batches:
            logits, targets = outputs.flatten(0, -2), wanted.flatten()
            losses.append(cross_entropy(logits, targets, reduction="sum"))
            confidence, predicted = logits.softmax(-1).max(-1)
            confidences.append(confidence)
            corrects.append(predicted == targets)
        correct = torch.cat(corrects)
        # one column, of the class that was predicted: it is the target where it is correct
        ece = expected_calibration_error(torch.cat(confidences)[:, None], (~correct).long())
        return {
            "accuracy": int(correct.sum()) / len(correct),
            "nll": float(torch.stack(losses).sum()) / len(correct),
            "ece": ece,
        }

    def targets(self, targets: Tensor) -> Tensor:
        return targets.long()

    def check(self, outputs: Tensor, targets: Tensor, model: str, data: str) -> None:
        places = list(targets.shape[1:])  # [T] where each of T places has a class, else none
        if list(outputs.shape[1:-1]) != places or outputs.dim() < 2 or outputs.shape[-1] < self.classes:
            wanted = ", ".join(map(str, ["N", *places, self.classes]))
            raise RegrowValueError(
                f"`model` {model} must return logits [{wanted}] for the {self.classes} classes of "
                f"`data` {data}, got {list(outputs.shape)}"
            )

    def ensemble(self, networks: Sequence[nn.Module]) -> nn.Module:
        return Ensemble(networks)

    def prediction(self, outputs: Tensor) -> Tensor:
        return outputs.flatten(0, -2).softmax(-1)

    def differences(self, predictions: Sequence[Tensor]) -> dict[str, float]:
        return {"disagreement": disagreement(predictions), "kl": kl_diversity(predictions)}
