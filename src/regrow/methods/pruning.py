"""Pruning: start dense, remove the smallest weights little by little."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from regrow import criteria, schedules, topology
from regrow.errors import RegrowValueError, require_count, require_fraction
from regrow.methods.optimizers import PREFIX
from regrow.methods.periodic import Move, Periodic
from regrow.methods.registry import register
from regrow.ops.select import top
from regrow.weights import SparseWeight

INITIAL = f"{PREFIX}initial_"
"""Prefix of the entries of ``param_groups[0]`` that hold the connections each weight started with."""


@register(
    name="pruning",
    paper="arXiv 1710.01878",
    line="starts dense, prunes by magnitude",
    drop="magnitude",
    grow="none",
    cost="pruning",
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
        start_fraction: t_0 / T; the default is that of RigL's ResNet-50 comparison, 10,000 of 32,000 steps.
        stop_fraction: t_1 / T, rounded down to an update step; there, 25,000 of 32,000.
        skip_step: whether the weights rest at an update step.
        seed: not needed, there is nothing random.
        process_group: processes that train one model together.
    """

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
        first = require_fraction("start_fraction", start_fraction, one=True)
        last = require_fraction("stop_fraction", stop_fraction, one=True)
        if first > last:
            raise RegrowValueError(f"`start_fraction` must be at most `stop_fraction` {last}, got {first}")
        total, every = require_count("total_steps", total_steps), require_count("update_every", update_every)
        start = max(every, math.ceil(first * total / every) * every)
        stop = math.floor(last * total / every) * every
        if stop < start:
            raise RegrowValueError(
                f"`update_every` {every} leaves no step to prune at between {first * total:g} and {last * total:g} of "
                f"`total_steps` {total}"
            )
        self.final_sparsity = final_sparsity
        super().__init__(
            model,
            optimizer,
            total_steps=total,
            update_every=every,
            start_step=start,
            stop_step=stop + 1,
            skip_step=skip_step,
            seed=seed,
            process_group=process_group,
        )
        for weight in self.weights:
            self.optimizer.param_groups[0].setdefault(INITIAL + weight.name, weight.nnz)

    def _check(self, model: nn.Module) -> None:
        super()._check(model)
        given = self.final_sparsity
        names = {weight.name for weight in self.weights}
        if isinstance(given, Mapping) and given.keys() != names:
            raise RegrowValueError(f"`final_sparsity` must name exactly {sorted(names)}, got {sorted(given)}")
        self.final = {
            weight.name: require_fraction(
                "final_sparsity", given[weight.name] if isinstance(given, Mapping) else given
            )
            for weight in self.weights
        }
        for weight in self.weights:
            if weight.nnz < topology.connections(weight.shape, self.final[weight.name]):
                raise RegrowValueError(
                    f"`final_sparsity` {self.final[weight.name]} of `{weight.name}` is below the sparsity that it has, "
                    f"{1 - weight.density:.4f}"
                )

    def sparsity(self, weight: SparseWeight, step: int) -> float:
        """s(t) of one layer."""
        connections = int(self.optimizer.param_groups[0][INITIAL + weight.name])
        initial, final = 1 - connections / weight.numel, self.final[weight.name]
        return final + (initial - final) * (1 - self.fraction(step))

    def fraction(self, step: int) -> float:
        """The share of the way from the initial to the final sparsity that this update completes."""
        span = self.stop_step - 1 - self.start_step
        return schedules.cubic((step - self.start_step) / span if span else 1.0)

    def moves(self, step: int, weights: list[SparseWeight]) -> list[Move]:
        moves = []
        for weight in weights:
            keep = topology.connections(weight.shape, self.sparsity(weight, step))
            drop = top(-criteria.magnitude(weight), max(0, weight.nnz - keep))
            moves.append((weight, drop, torch.empty(0, dtype=torch.int64, device=drop.device)))
        return moves
