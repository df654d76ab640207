"""What criteria that score a network on one batch have in common: what they score, and what they leave as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from regrow.arguments import require_choice, require_flag, require_function, require_sequence
from regrow.errors import RegrowValueError
from regrow.sparsity.layers import find_layers
from regrow.weights import paused

MODES = ("train", "eval")
Weights = Mapping[str, nn.Parameter]


class OneBatch:
    """A criterion whose scores are a function of the loss on one batch, before an optimizer has taken a step.

    Scoring leaves nothing behind: modes and running statistics are put back, no gradient is kept. A subclass has
    `scores`.

    Args:
        loss_fn: ``(output, target) -> loss``.
        batch: ``(input, target)``, one batch of training data.
        mode: ``"train"`` scores the model as it trains, norms by the batch and dropout on; ``"eval"`` as it is
            evaluated.
        per_layer: keep each layer's budget; False keeps the best of all layers together.

    Raises:
        RegrowValueError: an unknown mode; when it scores, weights that are frozen or that the loss does not reach.
    """

    def __init__(
        self, loss_fn: Callable[[Any, Any], Tensor], batch: Any, *, mode: str, per_layer: bool
    ) -> None:
        self.loss_fn = require_function("loss_fn", loss_fn, "output", "target")
        self.batch = require_sequence("batch", batch, "a pair (input, target)", count=2)
        self.mode = require_choice("mode", mode, MODES)
        self.per_layer = require_flag("per_layer", per_layer)

    def __call__(self, model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """Return the scores of the weights named in `shapes`, each of its weight's shape."""
        weights = {y.weight_name: y.parameter for y in find_layers(model) if y.weight_name in shapes}
        frozen = [name for name, weight in weights.items() if not weight.requires_grad]
        if frozen:
            raise RegrowValueError(
                f"`init`: {self.name} cannot score {frozen}, which are frozen (requires_grad is False).\n"
                "Freeze them after sparsify, or leave them dense with `exclude`."
            )
        with as_it_was(model), paused(weights.values()), torch.enable_grad():
            model.train(self.mode == "train")
            found = self.scores(weights, self.loss(model(self.batch[0])))
        return {name: score.detach() for name, score in found.items()}

    @property
    def name(self) -> str:
        """What messages call it."""
        return type(self).__name__

    def loss(self, output: Any) -> Tensor:
        """Return the loss of the network's `output` on the batch."""
        loss: Tensor = self.loss_fn(output, self.batch[1])
        return loss

    def scores(self, weights: Weights, loss: Tensor) -> dict[str, Tensor]:
        """Return the scores of `weights`, each of its weight's shape; the highest are kept."""
        raise NotImplementedError

    def gradients(self, loss: Tensor, weights: Weights, *, create_graph: bool = False) -> dict[str, Tensor]:
        """Return dL/dw of each weight.

        Raises:
            RegrowValueError: naming the weights that the loss does not reach.
        """
        found = dict(
            zip(
                weights,
                torch.autograd.grad(
                    loss, list(weights.values()), create_graph=create_graph, allow_unused=True
                ),
                strict=True,
            )
        )
        require_reached(
            self.name,
            found,
            f"which its loss does not depend on in mode {self.mode!r}.\n"
            "Leave them dense with `exclude`, or give a `loss_fn` or a `mode` that uses them.",
        )
        return found


def require_reached(name: str, gradients: Mapping[str, Tensor | None], why: str) -> None:
    """Refuse weights without a gradient, which the criterion `name` cannot score.

    Raises:
        RegrowValueError: naming them, with `why` and what to do.
    """
    unreached = [weight for weight, gradient in gradients.items() if gradient is None]
    if unreached:
        raise RegrowValueError(f"`init`: {name} cannot score {unreached}, {why}")


@contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    """Put modes and buffers (running statistics) back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for module, name, buffer, kept in buffers:
            module._buffers[name] = buffer
            if not torch.equal(buffer, kept):
                buffer.detach().copy_(kept)
