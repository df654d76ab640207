"""Pruning: start dense, remove the smallest weights little by little."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from regrow.methods import criteria
from regrow.methods.gradual import Descent, Final
from regrow.methods.periodic import Periodic
from regrow.methods.registry import register
from regrow.ops.select import top
from regrow.weights import SparseWeight
from regrow.weights.gates import Move, parts


@register(
    name="pruning",
    paper="arXiv 1710.01878",
    line="starts dense, prunes by magnitude",
    drop="magnitude",
    grow="none",
)
class Pruning(Periodic):
    """Gradual magnitude pruning (Zhu and Gupta, arXiv 1710.01878), with exact counts in each layer.

    ``s(t) = s_f + (s_i - s_f) (1 - (t - t_0) / (t_1 - t_0))^3`` at each update step t from t_0 to t_1, layer by layer:
    s_i is the sparsity that `sparsify` gave (0 for the method as published: ``sparsify(model, sparsity=0.0)``), s_f is
    `final_sparsity`. The weights take their step first. Differs from the original: counts, not histogram
    thresholds, and what is pruned does not come back.

    Args:
        model: a model that `sparsify` has made sparse, at sparsity 0 or any other below the final one.
        optimizer: the torch optimizer that trains it.
        total_steps: optimizer steps of the whole run, T.
        final_sparsity: of every layer, in [0, 1), or ``{weight name: sparsity}``.
        update_every: steps between two prunings.
        start_fraction: t_0 / T, rounded up to a multiple of `update_every`; the default is that of RigL's ResNet-50
            comparison, 10,000 of 32,000 steps. The first pruning is `update_every` steps later.
        stop_fraction: t_1 / T, rounded down to an update step; there, 25,000 of 32,000.
        skip_step: whether the weights rest at an update step.
        seed: not needed, there is nothing random.
        process_group: processes that train one model together.
    """

    initial_sparsity = 0.0

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        total_steps: int,
        final_sparsity: float | Mapping[str, float],
        update_every: int = 100,
        start_fraction: float = 0.3125,
        stop_fraction: float = 0.78125,
        skip_step: bool | None = None,
        seed: int = 0,
        process_group: Any = None,
    ) -> None:
        self.final_sparsity = final_sparsity
        self.descent = Descent.of_run(total_steps, update_every, start_fraction, stop_fraction)
        super().__init__(
            model,
            optimizer,
            total_steps=total_steps,
            update_every=update_every,
            start_step=self.descent.start,
            stop_step=self.descent.stop + 1,
            skip_step=skip_step,
            seed=seed,
            process_group=process_group,
        )

    def _aim(self) -> None:
        self.final = Final(self.weights, self.final_sparsity)
        self.final.check([[weight] for weight in parts(self.weights)])

    def _note_start(self) -> None:
        self.final.remember_start(self.optimizer)

    def fraction(self, step: int) -> float:
        """Return the share of the way from the initial to the final sparsity that this update completes."""
        return self.descent.share(step)

    def moves(self, step: int, weights: list[SparseWeight]) -> list[Move]:
        moves = []
        for weight in weights:
            keep = self.final.connections(self.optimizer, [weight], self.fraction(step))
            drop = top(-criteria.magnitude(weight), max(0, weight.nnz - keep))
            moves.append((weight, drop, torch.empty(0, dtype=torch.int64, device=drop.device)))
        return moves
