"""GraSP: one batch decides, before training, without which connections the gradient flows best."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from regrow.arguments import require_positive
from regrow.errors import RegrowValueError
from regrow.methods.registry import register
from regrow.methods.scoring import OneBatch, Weights


@register(
    name="grasp",
    paper="arXiv 2002.07376",
    line="keeps what the flow of the gradient rests on",
    drop="none",
    grow="none",
    kind="topology",
)
class GraSP(OneBatch):
    """Gradient signal preservation (arXiv 2002.07376): an initial topology, ``sparsify(model, ..., init=GraSP(...))``.

    Removing a weight changes the squared norm of the gradient by about ``-2 w (H g)``, with g = dL/dw and H the
    Hessian. The weights go whose ``-w (H g)`` is largest: the score of a weight is ``w (H g)``, which may be negative,
    and the highest are kept, of all layers together. Static training follows.

    Differs from the published code: the batch is scored in one piece, where the code adds up two halves (the same but
    for norms by the batch), and linear layers are scored with the weights that they have, where the code draws others.
    The code's batch has 10 or 25 examples of each class: give one like it.

    Args:
        loss_fn: ``(output, target) -> loss``.
        batch: ``(input, target)``, one batch of training data.
        temperature: by which the network's output is divided before the loss, as in the code; it brings the
            probabilities of the classes together.
        mode: ``"train"`` scores the model as it trains, as the code does; ``"eval"`` as it is evaluated.
        per_layer: keep each layer's budget. False is the original: a layer may lose everything then.

    Raises:
        RegrowValueError: a temperature of 0 or less, an unknown mode; when it scores, weights that the loss does not
            reach, or a loss without second derivatives.
    """

    def __init__(
        self,
        loss_fn: Callable[[Any, Any], Tensor],
        batch: Any,
        *,
        temperature: float = 200.0,
        mode: str = "train",
        per_layer: bool = False,
    ) -> None:
        super().__init__(loss_fn, batch, mode=mode, per_layer=per_layer)
        self.temperature = require_positive("temperature", temperature)

    def loss(self, output: Any) -> Tensor:
        return super().loss(output / self.temperature)

    def scores(self, weights: Weights, loss: Tensor) -> dict[str, Tensor]:
        gradients = self.gradients(loss, weights, create_graph=True)
        flow = torch.stack([(g.detach() * g).sum() for g in gradients.values()]).sum()
        if not flow.requires_grad:
            raise RegrowValueError(
                "`init`: GraSP needs second derivatives, and the gradient of its loss does not depend on the weights.\n"
                "Give the loss that the network is trained with."
            )
        products = torch.autograd.grad(flow, list(weights.values()), materialize_grads=True)  # H g
        return {name: weights[name] * product for name, product in zip(weights, products, strict=True)}
