"""SNIP: one batch decides, before training, which connections there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from regrow.arguments import require_choice, require_flag, require_function, require_sequence
from regrow.errors import RegrowValueError
from regrow.methods.registry import register
from regrow.sparsity.layers import find_layers
from regrow.weights import paused

MODES = ("train", "eval")


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
        self.loss_fn = require_function("loss_fn", loss_fn, "output", "target")
        self.batch = require_sequence("batch", batch, "a pair (input, target)", count=2)
        self.mode = require_choice("mode", mode, MODES)
        self.per_layer = require_flag("per_layer", per_layer)

    @classmethod
    def original(cls, loss_fn: Callable[[Any, Any], Tensor], batch: Any) -> SNIP:
        """Make SNIP as published: norms in evaluation mode, the best of all layers together.

        Args:
            loss_fn, batch: as for `SNIP`.
        """
        return cls(loss_fn, batch, mode="eval", per_layer=False)

    def __call__(self, model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """Return the scores of the weights named in `shapes`, each of its weight's shape."""
        weights = {y.weight_name: y.parameter for y in find_layers(model) if y.weight_name in shapes}
        frozen = [name for name, weight in weights.items() if not weight.requires_grad]
        if frozen:
            raise RegrowValueError(
                f"`init`: SNIP cannot score {frozen}, which are frozen (requires_grad is False).\n"
                "Freeze them after sparsify, or leave them dense with `exclude`."
            )
        with _as_it_was(model), paused(weights.values()), torch.enable_grad():
            model.train(self.mode == "train")
            loss = self.loss_fn(model(self.batch[0]), self.batch[1])
            gradients: tuple[Tensor | None, ...] = torch.autograd.grad(
                loss, list(weights.values()), allow_unused=True
            )
        found = dict(zip(weights, gradients, strict=True))
        unreached = [name for name, gradient in found.items() if gradient is None]
        if unreached:
            raise RegrowValueError(
                f"`init`: SNIP cannot score {unreached}, which its loss does not depend on in mode {self.mode!r}.\n"
                "Leave them dense with `exclude`, or give a `loss_fn` or a `mode` that uses them."
            )
        return {name: (g * weights[name]).detach().abs() for name, g in found.items() if g is not None}


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
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
