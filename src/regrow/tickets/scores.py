"""What says which connections of a trained network stay when it is pruned: their magnitude, or a criterion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from regrow.arguments import require_choice, require_function
from regrow.methods.scoring import OneBatch, Weights
from regrow.sparsity.initial import Criterion


def magnitude(values: Tensor) -> Tensor:
    """Score the connections of one weight [n] by |w|."""
    return values.abs()


def normalised(values: Tensor) -> Tensor:
    """Score the connections of one weight [n] by |w| over the mean |w| of them (boosting tickets, arXiv 2003.05733).

    The published code takes the mean over all positions, so that zeros of earlier rounds raise a layer's scores.
    """
    mean = values.abs().mean()
    return values.abs() / mean if mean else values.abs()


SCORES: dict[str, Callable[[Tensor], Tensor]] = {"magnitude": magnitude, "normalised": normalised}
"""Scores of the connections of a weight, from their values alone."""
GRADIENT = "gradient"
"""What a recipe calls `Gradient`."""


class Gradient(OneBatch):
    """Scores connections by the magnitude of their gradient, ``|dL/dw|`` on one batch.

    Args:
        loss_fn: ``(output, target) -> loss``.
        batch: ``(input, target)``, one batch of training data.
        mode: ``"train"`` scores the model as it trains, norms by the batch and dropout on; ``"eval"`` as it is
            evaluated.
        per_layer: as an initial topology, keep each layer's budget.

    Raises:
        RegrowValueError: an unknown mode; when it scores, weights that are frozen or that the loss does not reach.
    """

    def __init__(
        self,
        loss_fn: Callable[[Any, Any], Tensor],
        batch: Any,
        *,
        mode: str = "train",
        per_layer: bool = True,
    ) -> None:
        super().__init__(loss_fn, batch, mode=mode, per_layer=per_layer)

    def scores(self, weights: Weights, loss: Tensor) -> dict[str, Tensor]:
        return {name: gradient.abs() for name, gradient in self.gradients(loss, weights).items()}


def require_score(score: object) -> str | Criterion:
    """Return `score`, a name in `SCORES` or a criterion.

    Raises:
        RegrowValueError: naming the argument, what was given and what is allowed.
    """
    if callable(score):
        return require_function("score", score, "model", "shapes")
    return require_choice("score", score, SCORES, others=", or a criterion such as regrow.SNIP(...)")
