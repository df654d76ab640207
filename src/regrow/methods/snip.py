"""SNIP: one batch decides, before training, which connections there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regrow.layers import find_layers
from regrow.methods.registry import register
from regrow.weights import paused


@register(
    name="snip",
    paper="arXiv 1810.02340",
    line="keeps what one batch finds most sensitive",
    drop="none",
    grow="none",
    kind="topology",
)
class SNIP:
    """Single-shot network pruning (arXiv 1810.02340): an initial topology, ``sparsify(model, ..., init=SNIP(...))``.

    The score of a weight is ``|dL/dw * w|`` on one batch, of the dense network before any training, with its norms in
    evaluation mode as in the original code. Static training follows.

    Args:
        loss_fn: ``(output, target) -> loss``.
        batch: ``(input, target)``, one batch of training data.
        per_layer: keep each layer's budget, as the RigL paper's comparison does; False is the original: the best
            of all layers together, as many as the distribution gives in all. A layer may lose everything then.
    """

    def __init__(self, loss_fn: Callable[[Any, Any], Tensor], batch: Any, *, per_layer: bool = True) -> None:
        self.loss_fn = loss_fn
        self.batch = batch
        self.per_layer = per_layer

    def __call__(self, model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """Scores of the weights named in `shapes`, each of its weight's shape."""
        weights = {y.weight_name: y.parameter for y in find_layers(model) if y.weight_name in shapes}
        modes = {module: module.training for module in model.modules()}
        try:
            model.eval()
            with paused(), torch.enable_grad():
                loss = self.loss_fn(model(self.batch[0]), self.batch[1])
                gradients = torch.autograd.grad(loss, list(weights.values()))
        finally:
            for module, training in modes.items():
                module.training = training
        return {
            name: (gradient * weight).detach().abs()
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
        }
