"""`Ensemble`: several networks that predict as one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regrow.arguments import require_models
from regrow.errors import RegrowValueError


class Ensemble(nn.Module):
    """The mean of the members' probabilities, as logits: cross entropy and argmax work on it unchanged.

    After FreeTickets (arXiv 2106.14568): the mean of the probabilities, not of logits or their logarithms.

    Args:
        models: the members; they are kept, not copied.

    Shape:
        Input whatever the members take; output (..., classes): the logarithm of the mean of the members' softmax over
        the last dimension, in float32 or better. The softmax of it is that mean.

    Raises:
        RegrowValueError: no member, or members whose outputs differ in shape.
    """

    def __init__(self, models: Iterable[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(require_models("models", models, runs=True))

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        return self.combined([member(*inputs, **named) for member in self.members])

    def combined(self, outputs: Sequence[Tensor]) -> Tensor:
        """Return the logarithm of the mean of the softmax of `outputs` (..., classes), one of each member."""
        shapes = [tuple(output.shape) for output in outputs]
        if len(set(shapes)) > 1:
            raise RegrowValueError(f"`models` must give outputs of one shape, got {shapes}")
        exact = torch.promote_types(outputs[0].dtype, torch.float32)
        logarithms = torch.stack([output.to(exact).log_softmax(-1) for output in outputs])
        return logarithms.logsumexp(0) - math.log(len(outputs))
