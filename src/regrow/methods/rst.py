"""RST: a growing penalty drives chosen connections to zero before they are removed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow._random import sample
from regrow.arguments import (
    require_count,
    require_fraction,
    require_positive,
)
from regrow.errors import RegrowValueError
from regrow.methods import criteria
from regrow.methods.base import UpdateRecord
from regrow.methods.checks import require_word_or_masks
from regrow.methods.gradual import INITIAL, Final
from regrow.methods.periodic import Periodic
from regrow.methods.registry import register
from regrow.methods.state import PREFIX
from regrow.ops.select import top
from regrow.sparsity import distributions
from regrow.sparsity.distributions import whole_share
from regrow.weights import SparseWeight
from regrow.weights.gates import Move, parts, wholes

VICTIMS = f"{PREFIX}victims"
"""State of a weight, of its parameter's shape: 1 where a connection goes at the end of the cycle, 0 elsewhere."""
CHOICES = ("random", "magnitude")


@register(
    name="rst",
    paper="arXiv 2203.04248",
    line="starts dense, penalises random connections until they can go",
    drop="random",
    grow="none",
)
class RST(Periodic):
    """Random sparse network transformation (Dual Lottery Ticket Hypothesis, arXiv 2203.04248).

    Victims are chosen before training, at random. In each step of the penalty phase the gradient of a victim w is
    ``dL/dw + lambda w``; lambda grows in equal increments, every `penalty_every` steps, from the first step on, up to
    `penalty`, and stays there for the last `stabilise_fraction` of the phase. All weights are trained meanwhile, so
    that what the victims know moves into the others. At the end of the phase the victims are removed (*extrusion*),
    and the rest of the run fine-tunes the others; ``detach`` and `regrow.compress` do that in compressed storage.

    With several `cycles` (iterative RST) the phase repeats: each cycle chooses its victims among the survivors, begins
    at lambda 0 again, and leaves ``d_0 (d_N / d_0)^(k / N)`` of all positions after cycle k of N, so that the share
    removed of a dense network is ``P_k = 1 - (1 - P)^(k / N)``.

    The published code starts at the initialisation, trains at the constant rate 0.001 in the phase and restarts
    at 0.1 behind it: a matter of the loop's schedule. An update's record has the ``residue`` of each layer, the
    victims' share of its norm before they went: it says how much extrusion has changed.

    Differs from the original code: victims are random by default, as in the paper, where the code's default takes the
    smallest; they are kept as a mask, not found again by magnitude; counts are rounded down; lambda ends at `penalty`,
    not one increment above.

    Args:
        model: a model that `sparsify` has made sparse, at sparsity 0 or any other below the final one; stored masked.
        optimizer: the torch optimizer that trains it.
        total_steps: optimizer steps of the whole run, fine-tuning included.
        final_sparsity: of every layer, in [0, 1), or ``{weight name: sparsity}``; left out where `victims` are masks.
        victims: ``"random"``; ``"magnitude"``, the smallest at the beginning of each cycle; or ``{weight name: boolean
            mask}`` of the weights' shapes, True for what goes. With `cycles`, a random part of a mask goes in each.
        cycles: N; 1 is one-shot, the paper's iterative form has 5.
        update_every: steps of a cycle. The default is the published 50,000 until the bound and 40,000 at it; of the
            iterative form 20,000, with ``penalty_every=1`` and ``stabilise_fraction=0.5``.
        stabilise_fraction: share of a cycle at the end of which lambda rests, in [0, 1).
        penalty: the bound of lambda.
        penalty_every: steps between two increments; one increment at least is made, at the first step.
        penalty_power: p; lambda is ``penalty share^p`` where an even growth has gone this share. The code has 1, 2, 3.
        seed: of random victims.
        process_group: processes that train one model together.

    Raises:
        RegrowValueError: an argument that is not allowed, a penalty phase that is longer than the run, masks that do
            not fit the weights.
    """

    initial_sparsity = 0.0
    storages = ("masked",)  # the phase trains dense weights, and a victim is a position
    ahead = 1

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        total_steps: int,
        final_sparsity: float | Mapping[str, float] | None = None,
        victims: str | Mapping[str, Tensor] = "random",
        cycles: int = 1,
        update_every: int = 90_000,
        stabilise_fraction: float = 4 / 9,
        penalty: float = 1.0,
        penalty_every: int = 5,
        penalty_power: float = 1.0,
        seed: int = 0,
        process_group: Any = None,
    ) -> None:
        self.cycles = require_count("cycles", cycles)
        self.stabilise_fraction = require_fraction("stabilise_fraction", stabilise_fraction)
        self.penalty = require_positive("penalty", penalty)
        self.penalty_every = require_count("penalty_every", penalty_every)
        self.penalty_power = require_positive("penalty_power", penalty_power)
        self.victims, self.final_sparsity = require_word_or_masks("victims", victims, CHOICES), final_sparsity
        if isinstance(self.victims, Mapping) and final_sparsity is not None:
            raise RegrowValueError(
                "`final_sparsity` follows from `victims` where these are masks.\nLeave one of the two out."
            )
        every, total = require_count("update_every", update_every), require_count("total_steps", total_steps)
        self.end = self.cycles * every
        """The step at which fine-tuning begins."""
        if self.end > total:
            raise RegrowValueError(
                f"`total_steps` {total:,} must hold the penalty phase, `cycles` {self.cycles} of `update_every` "
                f"{every:,} steps\nGive a smaller `update_every`."
            )
        self._fresh: dict[str, tuple[int, Tensor]] = {}  # victims that were chosen at this step, by weight
        self._increments = max(1, (every - whole_share(self.stabilise_fraction, every)) // self.penalty_every)
        super().__init__(
            model,
            optimizer,
            total_steps=total_steps,
            update_every=update_every,
            stop_step=self.end + 1,
            seed=seed,
            process_group=process_group,
        )

    @classmethod
    def levels(cls, sparsity: float) -> list[float]:
        """Give the sparsity over a published run as shares of the final `sparsity`: 197 values.

        Its phase sees 90,000 batches of 64, which are 115.2 epochs of CIFAR's 50,000 images, and 200 epochs follow:
        72 of 197 parts of the run are dense.
        """
        require_fraction("sparsity", sparsity)
        return [0.0] * 72 + [1.0] * 125

    def _aim(self) -> None:
        self._ends: dict[str, int] = {}  # connections of each part at the end
        if isinstance(self.victims, Mapping):
            self._aim_at_masks(self.victims)
            return
        final = Final(self.weights, self.final_sparsity)  # type: ignore[arg-type]  # it refuses None
        final.check([[part] for part in parts(self.weights)])
        for part in parts(self.weights):
            self._ends[part.name] = distributions.connections((part.numel,), final.sparsity([part]))

    def _aim_at_masks(self, masks: Mapping[str, Tensor]) -> None:
        shapes = {weight.name: weight.shape for weight in self.weights}
        for name, mask in masks.items():
            if mask.dtype != torch.bool or tuple(mask.shape) != shapes.get(name):
                raise RegrowValueError(
                    f"`victims[{name!r}]` must be a boolean mask of one of {shapes}, got {mask.dtype} of shape "
                    f"{tuple(mask.shape)}"
                )
        for part in parts(self.weights):
            self._ends[part.name] = part.nnz - len(self._pool(part))
            if part.nnz and not self._ends[part.name]:
                raise RegrowValueError(f"`victims` must leave a connection in `{part.name}`, got all of them")

    def _note_start(self) -> None:
        for part in parts(self.weights):
            self._group.setdefault(INITIAL + part.name, part.nnz)

    # --- the penalty

    def strength(self, step: int) -> float:
        """Return lambda at this step; 0 once the phase is over."""
        if step >= self.end:
            return 0.0
        grown = step % self.update_every // self.penalty_every + 1
        return float(self.penalty * min(1.0, grown / self._increments) ** self.penalty_power)

    def _begin(self) -> None:
        before = self._ran
        super()._begin()
        if self._open and self._ran is not before:  # not the inner one of two nested calls
            self._penalise(self.strength(self.step))

    def _penalise(self, strength: float) -> None:
        """Add ``strength * w`` to the gradient of each victim w."""
        if not strength:
            return
        scale = getattr(
            self.optimizer, "grad_scale", None
        )  # of gradients that a fused optimizer will unscale
        for weight in self.weights:
            gradient = weight.parameter.grad
            if gradient is not None:
                pull = weight.parameter.detach() * self._chosen(weight)
                gradient.detach().add_(pull if scale is None else pull * scale, alpha=strength)

    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._open and self.step < self.end and self.step % self.update_every == 0:
            for weight in self.weights:  # now, because the optimizer's own state comes first
                self.remember(weight, VICTIMS, self._chosen(weight))
        super()._after(optimizer, args, kwargs)

    # --- the victims

    def _chosen(self, weight: SparseWeight) -> Tensor:
        """Return the victims of the present cycle: 1 for each and 0 elsewhere, of the parameter's shape and type."""
        start, kept = self.step - self.step % self.update_every, self.remembered(weight, VICTIMS)
        if kept is not None and self.step > start:
            return kept
        found = self._fresh.get(weight.name)
        if found is None or found[0] != self.step:
            found = self._fresh[weight.name] = self.step, self._choose(weight, start)
        return found[1]

    def _choose(self, weight: SparseWeight, start: int) -> Tensor:
        """Choose the victims of the cycle that begins at step `start`."""
        moves: list[Move] = []
        for part in parts([weight]):
            count = max(0, part.nnz - self._left(part, start // self.update_every + 1))
            if self.victims == "magnitude":
                drop = top(criteria.magnitude(part), count, f"a weight of `{part.name}`", lowest=True)
            else:
                pool = self._pool(part)
                drop = pool[sample(count, len(pool), self.random(start, part, "victims")).to(pool.device)]
            moves.append((part, drop, drop[:0]))
        chosen = torch.zeros_like(weight.parameter, requires_grad=False)
        ((_, drop, _),) = wholes(moves)
        weight.fill(weight.positions()[drop], torch.ones_like(drop, dtype=chosen.dtype), chosen)
        return chosen

    def _pool(self, part: SparseWeight) -> Tensor:
        """Return which connections of `part` may be victims: indices into its positions, ascending, int64."""
        if isinstance(self.victims, Mapping):
            mask = self.victims.get(part.record.name)
            if mask is None:
                return torch.empty(0, dtype=torch.int64, device=part.parameter.device)
            return criteria.within(part, mask)
        return criteria.within(part, None)

    def _left(self, part: SparseWeight, cycle: int) -> int:
        """Return how many connections `part` has after so many cycles."""
        started = int(self._group[INITIAL + part.name])
        if not started:
            return 0
        density = started / part.numel * (self._ends[part.name] / started) ** (cycle / self.cycles)
        return part.numel - whole_share(1 - density, part.numel)

    # --- extrusion

    def fraction(self, step: int) -> float:
        """Return the share of the cycles that this update completes."""
        return min(1.0, (step // self.update_every + 1) / self.cycles)

    def moves(self, step: int, weights: list[SparseWeight]) -> list[Move]:
        found = []
        for weight in self.weights:  # all of them: a victim that stays would be trained for good
            drop = weight.take(self._chosen(weight)).nonzero().view(-1)
            found.append((weight, drop, drop[:0]))
        return found

    def update(self, step: int, weights: list[SparseWeight]) -> UpdateRecord:
        residues = {}
        for weight in self.weights:
            held = weight.parameter.detach().double()
            removed = float((held * self._chosen(weight)).norm())
            residues[weight.name] = removed / (float(held.norm()) or 1.0)
        record = super().update(step, weights)
        for name, residue in residues.items():
            record["layers"][name]["residue"] = residue
        return record
