"""SNIP: one batch decides, before training, which connections there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from regrow.methods.registry import register
from regrow.methods.scoring import OneBatch, Weights


@register(
    name="snip",
    paper="arXiv 1810.02340",
    line="keeps what one batch finds most sensitive",
    drop="none",
    grow="none",
    kind="topology",
)
class SNIP(OneBatch):
    """Single-shot network pruning (arXiv 1810.02340): an initial topology, ``sparsify(model, ..., init=SNIP(...))``.

    The score of a weight is ``|dL/dw * w|`` on one batch, of the dense network before any training. Static training
    follows. Scoring leaves nothing behind: modes and running statistics are put back, no gradient is kept.

    Differs from the original, as the RigL paper's comparison does: scored in training mode, layer by layer. `original`
    gives the original, but for biases, which stay dense.

    Args:
        loss_fn: ``(output, target) -> loss``.
        batch: ``(input, target)``, one batch of training data.
        mode: ``"train"`` scores the model as it trains, norms by the batch and dropout on, as RigL's comparison does;
            ``"eval"`` scores it as it is evaluated, as the original code does.
        per_layer: keep each layer's budget, as RigL's comparison does; False is the original: the best of all layers
            together, as many as the distribution gives in all. A layer may lose everything then.
            ``sparsify(distribution="global")`` does so for any scores.

    Raises:
        RegrowValueError: an unknown mode; when it scores, weights that the loss does not reach.
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

    @classmethod
    def original(cls, loss_fn: Callable[[Any, Any], Tensor], batch: Any) -> SNIP:
        """Make SNIP as published: norms in evaluation mode, the best of all layers together.

        Args:
            loss_fn, batch: as for `SNIP`.
        """
        return cls(loss_fn, batch, mode="eval", per_layer=False)

    def scores(self, weights: Weights, loss: Tensor) -> dict[str, Tensor]:
        return {name: (g * weights[name]).abs() for name, g in self.gradients(loss, weights).items()}
