"""Selfish-RNN: drop the smallest weights of a cell, grow at random, at the end of each epoch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.arguments import require_fraction
from regrow.methods import criteria
from regrow.methods.dynamic import Dynamic
from regrow.methods.registry import register
from regrow.methods.schedules import cosine_to
from regrow.weights import SparseWeight


@register(
    name="selfish-rnn",
    paper="arXiv 2101.09048",
    line="SET between epochs, at a falling rate, for recurrent networks",
    drop="magnitude",
    grow="random",
)
class SelfishRNN(Dynamic):
    """Selfish sparse RNN training (arXiv 2101.09048).

    Between two epochs the smallest |w| of each weight go, and as many come at random. The gates of a cell are one
    weight, so that they exchange connections (cell weight redistribution), unless ``sparsify(gates="apart")`` makes
    one of each. The drop fraction falls by a cosine from `drop_fraction` to `final_fraction` at the end of the run.
    Before it, ``sparsify(..., "uniform", include=...)`` with the names of encoder, cells and decoder; `SNTASGD` is its
    optimizer.

    Differs from the original code: counts are exact and rounded down, where it rounds up and grows each position with
    a probability; an update follows the first step of the next epoch, so that a test between two epochs sees the
    weights that were trained, as there, and there is none after the last epoch.

    Args:
        model: a model that `sparsify` has made sparse.
        optimizer: the torch optimizer that trains it.
        drop_fraction: the initial share of a weight's connections that is dropped; the paper's is 0.7 to 0.8 for the
            stacked LSTM, 0.5 for RHN and ON-LSTM.
        final_fraction: the share at the end of the run.
        update_every: optimizer steps of an epoch; the default is that of Penn Treebank in 20 streams, 35 words a step.
        stop_fraction: as for `Dynamic`: to the end of the run.
        total_steps, grow_init, grow_scale, skip_step, seed, process_group: as for `Dynamic`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        total_steps: int,
        drop_fraction: float = 0.8,
        final_fraction: float = 0.005,
        update_every: int = 1327,
        stop_fraction: float = 1.0,
        grow_init: str = "zeros",
        grow_scale: float = 1.0,
        skip_step: bool | None = None,
        seed: int = 0,
        process_group: Any = None,
    ) -> None:
        self.final_fraction = require_fraction("final_fraction", final_fraction, one=True)
        drop_fraction = require_fraction("drop_fraction", drop_fraction, one=True)
        end = min(1.0, self.final_fraction / drop_fraction) if drop_fraction else 1.0
        super().__init__(
            model,
            optimizer,
            total_steps=total_steps,
            drop_fraction=drop_fraction,
            update_every=update_every,
            stop_fraction=stop_fraction,
            schedule=cosine_to(end),
            grow_init=grow_init,
            grow_scale=grow_scale,
            skip_step=skip_step,
            seed=seed,
            process_group=process_group,
        )

    def grow(self, weight: SparseWeight, count: int, survivors: Tensor, generator: torch.Generator) -> Tensor:
        return criteria.random_positions(weight, count, survivors, generator)
