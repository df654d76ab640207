"""GraNet: prune little by little, and let the network regenerate after each pruning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from regrow.arguments import require_choice, require_fraction
from regrow.errors import warn
from regrow.methods.formulas import pruning_levels
from regrow.methods.gradual import Descent, Final
from regrow.methods.registry import parameters_of, register
from regrow.methods.rigl import RigL
from regrow.methods.schedules import DropSchedule
from regrow.ops.select import top
from regrow.sparsity.distributions import whole_share
from regrow.weights import SparseWeight
from regrow.weights.gates import Move, parts

SCOPES = ("global", "layer")
INTERVALS = 64
"""Of a run that is priced."""


@register(
    name="granet",
    paper="arXiv 2106.10404",
    line="prunes little by little, regrows where the gradient is largest",
    drop="magnitude",
    grow="gradient",
    redistribute="magnitude",
)
class GraNet(RigL):
    """Gradual pruning with zero-cost neuroregeneration (arXiv 2106.10404).

    At each update, once the weights have taken their step: first the smallest |w| of all layers together go, down to
    the sparsity ``s(t) = s_f + (s_i - s_f) (1 - p)^3``, where p goes from 0 to 1 between the update steps at
    `prune_start_fraction` and `prune_stop_fraction` of the run, j / n at the j-th of n updates after the start, before
    which nothing happens; then each layer drops ``floor(f(t) * connections)`` of
    what it has left by |w|, and grows as many where |dL/dw| is largest. s_i is the sparsity that `sparsify` gave: 0.5
    is the paper's sparse-to-sparse training, 0.0 its dense-to-sparse. What is pruned may grow back at once, and
    then counts as kept. Differs from the original code: counts are rounded down and exact, not by threshold, and the
    last pruning reaches s_f.

    Args:
        model: a model that `sparsify` has made sparse, at any sparsity below the final one.
        optimizer: the torch optimizer that trains it.
        total_steps: optimizer steps of the whole run, T.
        final_sparsity: s_f of all sparse weights together, in [0, 1), or ``{weight name: sparsity}``, of which
            ``scope="global"`` takes the sum.
        scope: ``"global"`` prunes all layers together, as the paper does, so that layers may end at other
            sparsities than they were given; ``"layer"`` takes each to `final_sparsity` by itself.
        drop_fraction: the initial share of a layer's connections that is regenerated.
        update_every: steps between two updates; the paper's is 1000 on CIFAR and 4000 on ImageNet.
        stop_fraction: regeneration stops before this share of the run.
        schedule: as for `Dynamic`; the default falls from `drop_fraction` 0.5 to 0.005.
        prune_start_fraction: where pruning and regeneration start, as a share of the run.
        prune_stop_fraction: where it ends, or at the last update if that comes first; the default is the code's
            for CIFAR, 110 of 160 epochs; on ImageNet 0.3.
        grow_columns: as for `RigL`.
        grow_init, grow_scale, skip_step, seed, process_group: as for `Dynamic`.

    Raises:
        RegrowValueError: a final sparsity below the initial one, or no update step to prune at.
    """

    skips_step = False
    initial_sparsity = 0.5

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        total_steps: int,
        final_sparsity: float | Mapping[str, float],
        scope: str = "global",
        drop_fraction: float = 0.5,
        update_every: int = 1000,
        stop_fraction: float = 1.0,
        schedule: str | DropSchedule = "cosine-to-0.01",
        prune_start_fraction: float = 0.0,
        prune_stop_fraction: float = 0.6875,
        grow_columns: int | float | None = None,
        grow_init: str = "zeros",
        grow_scale: float = 1.0,
        skip_step: bool | None = None,
        seed: int = 0,
        process_group: Any = None,
    ) -> None:
        self.scope, self.final_sparsity = require_choice("scope", scope, SCOPES), final_sparsity
        self._between = prune_start_fraction, prune_stop_fraction
        super().__init__(
            model,
            optimizer,
            total_steps=total_steps,
            drop_fraction=drop_fraction,
            update_every=update_every,
            stop_fraction=stop_fraction,
            schedule=schedule,
            grow_columns=grow_columns,
            grow_init=grow_init,
            grow_scale=grow_scale,
            skip_step=skip_step,
            seed=seed,
            process_group=process_group,
        )

    @classmethod
    def levels(cls, sparsity: float) -> list[float]:
        """Give the sparsity over a run by the class's own defaults, as shares of the final `sparsity`.

        64 intervals, about the paper's 160 epochs of CIFAR, both ends included as in `pruning_levels`: 65 values.
        """
        sparsity = require_fraction("sparsity", sparsity)
        given = {name: parameter.default for name, parameter in parameters_of(cls).items()}
        every = given["update_every"]
        start, stop = (round(given[f"prune_{end}_fraction"] * INTERVALS) * every for end in ("start", "stop"))
        initial = min(1.0, cls.initial_sparsity / sparsity) if sparsity else 1.0
        return pruning_levels(INTERVALS * every, start, stop, every, initial=initial)

    def _aim(self) -> None:
        self.descent = Descent.of_run(
            self.total_steps or 0, self.update_every, *self._between, end=self.stop_step, prefix="prune_"
        )
        self.start_step = self.descent.start
        self.final = Final(self.weights, self.final_sparsity)
        self.final.check(self._groups(parts(self.weights)))

    def _note_start(self) -> None:
        self.final.remember_start(self.optimizer)

    def _groups(self, weights: list[SparseWeight]) -> list[list[SparseWeight]]:
        """Group the weights that are pruned together."""
        return [weights] if self.scope == "global" else [[weight] for weight in weights]

    def moves(self, step: int, weights: list[SparseWeight]) -> list[Move]:
        pruned = {}
        for group in self._groups(weights):
            pruned.update(self._prunes(group, self.descent.share(step)))
        moves = []
        for weight in weights:
            left = weight.nnz - pruned[weight.name]
            if left < weight.numel:  # else there is nowhere to grow
                regrown = whole_share(self.fraction(step), left)
                score = self.drop_score(weight)
                drop = top(-score, pruned[weight.name] + regrown, f"a drop score of `{weight.name}`")
                moves.append(self.exchange(step, weight, drop, regrown))
        return moves

    def _prunes(self, group: list[SparseWeight], share: float) -> dict[str, int]:
        """Return how many of each layer's connections are among the smallest of `group` that must go."""
        held = [weight.nnz for weight in group]
        count = max(0, sum(held) - self.final.connections(self.optimizer, group, share))
        device = group[0].parameter.device
        scores = torch.cat([self.drop_score(weight).to(device) for weight in group])
        goes = torch.zeros(len(scores), dtype=torch.bool, device=device)
        goes[top(-scores, count, "a drop score")] = True
        counts = [int(part.count_nonzero()) for part in goes.split(held)]
        for weight, before, gone in zip(group, held, counts, strict=True):
            if before and gone == before:
                warn(
                    f"GraNet has pruned the last connection of `{weight.name}`: all its weights are smaller than those "
                    "of other layers.\nscope='layer' prunes each layer by itself."
                )
        return dict(zip([weight.name for weight in group], counts, strict=True))


def granet_levels(sparsity: float) -> list[float]:
    """Give the sparsity over a run of GraNet by its own defaults, as shares of the final `sparsity`: 65 values."""
    return GraNet.levels(sparsity)
