"""Batch-norm statistics, estimated again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from regrow._torch import BatchNorm
from regrow.arguments import require_iterable, require_model
from regrow.errors import RegrowValueError


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """Return the batch norms of `model` that keep running statistics."""
    return [
        module for module in model.modules() if isinstance(module, BatchNorm) and module.track_running_stats
    ]


class _NormsInTraining(nn.Module):
    """`model`, of which only the batch norms ever train: dropout would falsify what they measure."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.norms = batch_norms(model)  # a list: they are not children once more

    def train(self, mode: bool = True) -> _NormsInTraining:
        self.model.eval()
        for norm in self.norms:
            norm.training = mode
        return self

    def forward(self, input: Tensor) -> Any:
        return self.model(input)


def reestimate(model: nn.Module, loader: Iterable[Any]) -> nn.Module:
    """Estimate the batch-norm statistics of `model` again, by one pass over `loader` with torch's `update_bn`.

    The running mean becomes the mean of the batches' means, the running variance that of their unbiased variances.
    Dropout is off, no other state moves, and torch's random generators are left as they were.

    Args:
        model: the model; it is in evaluation mode afterwards.
        loader: batches of the training data, inputs or tuples that begin with the inputs.

    Returns:
        `model`.

    Raises:
        RegrowValueError: a loader without a batch (an iterator that has been used up?).
    """
    norms = batch_norms(require_model("model", model))
    require_iterable("loader", loader, "batches of the training data")
    if not norms:
        return model
    device = next(model.parameters()).device
    used, kind = ([], "cuda") if device.type == "cpu" else ([device], device.type)
    with torch.random.fork_rng(used, device_type=kind):
        update_bn(loader, _NormsInTraining(model).eval(), device=device)
    if not any(int(norm.num_batches_tracked) for norm in norms):  # type: ignore[arg-type]
        raise RegrowValueError(
            "`loader` must give at least one batch to each pass over it, got none\nGive a list, or a DataLoader."
        )
    return model.eval()
