"""What the methods share whose connections become fewer: the cubic curve to a final sparsity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch.optim import Optimizer

from regrow.arguments import require_count, require_fraction
from regrow.errors import RegrowValueError
from regrow.methods import schedules
from regrow.methods.state import PREFIX
from regrow.sparsity import distributions
from regrow.weights import SparseWeight
from regrow.weights.gates import parts

INITIAL = f"{PREFIX}initial_"
"""Prefix of the entries of ``param_groups[0]`` that hold the connections each weight started with."""


@dataclass(frozen=True)
class Descent:
    """When the curve is gone down: from `start` to `stop`, in steps of `every`; there is no update at step 0."""

    start: int
    stop: int
    every: int

    @classmethod
    def of_run(
        cls,
        total_steps: int,
        update_every: int,
        start_fraction: float,
        stop_fraction: float,
        *,
        end: int | None = None,
        prefix: str = "",
    ) -> Descent:
        """Span from the first multiple of `update_every` at or after ``start_fraction * total_steps`` to the last
        update.

        That is the last one by ``stop_fraction * total_steps``. The update at `start` prunes nothing yet, so a curve
        from step 0 has gone the share j / n of its way at the j-th of its n updates.

        Args:
            total_steps, update_every: of the run, in optimizer steps.
            start_fraction, stop_fraction: where the curve starts and ends.
            end: there are no updates from this step on.
            prefix: of the names of the fractions, for messages.

        Raises:
            RegrowValueError: fractions outside [0, 1] or in the wrong order, or no update step between them.
        """
        first = require_fraction(f"{prefix}start_fraction", start_fraction, one=True)
        last = require_fraction(f"{prefix}stop_fraction", stop_fraction, one=True)
        if first > last:
            raise RegrowValueError(
                f"`{prefix}start_fraction` must be at most `{prefix}stop_fraction` {last}, got {first}"
            )
        total, every = require_count("total_steps", total_steps), require_count("update_every", update_every)
        start, stop = schedules.first_step(first, total, every), schedules.last_step(last, total, every)
        if end is not None:
            stop = min(stop, schedules.last_update(every, end) or 0)
        if stop < max(start, every):
            raise RegrowValueError(
                f"`update_every` {every} leaves no step to prune at between {first * total:g} and {last * total:g} of "
                f"`total_steps` {total}"
            )
        return cls(start, stop, every)

    def share(self, step: int) -> float:
        """Return the share of the way from the initial to the final sparsity that is gone by the last update up to
        `step`.
        """
        gone, span = step // self.every * self.every - self.start, self.stop - self.start
        progress = gone / span if span else float(gone >= 0)
        return schedules.cubic(min(max(progress, 0.0), 1.0))


class Final:
    """Where the curve ends, and the connections that groups of weights have on the way there.

    Args:
        weights: the sparse weights.
        sparsity: of every group, in [0, 1), or ``{weight name: sparsity}``.

    Raises:
        RegrowValueError: a sparsity outside [0, 1), or weights that are not named.
    """

    def __init__(self, weights: list[SparseWeight], sparsity: float | Mapping[str, float]) -> None:
        names = {weight.name for weight in weights}
        if isinstance(sparsity, Mapping) and sparsity.keys() != names:
            raise RegrowValueError(
                f"`final_sparsity` must name exactly {sorted(names)}, got {sorted(map(str, sparsity))}"
            )
        self._weights = weights
        self._given = (
            {name: require_fraction("final_sparsity", value) for name, value in sparsity.items()}
            if isinstance(sparsity, Mapping)
            else require_fraction("final_sparsity", sparsity)
        )

    def remember_start(self, optimizer: Optimizer) -> None:
        """Keep what each weight starts with, where the optimizer does not know it from a run before."""
        for weight in parts(self._weights):
            optimizer.param_groups[0].setdefault(INITIAL + weight.name, weight.nnz)

    def sparsity(self, group: Sequence[SparseWeight]) -> float:
        """Return the final sparsity of all positions of `group` together."""
        if not isinstance(self._given, dict):
            return self._given
        if len(group) == 1:
            return self._given[group[0].record.name]
        kept = sum(
            distributions.connections(weight.shape, self._given[weight.record.name]) for weight in group
        )
        return 1 - kept / sum(weight.numel for weight in group)

    def connections(self, optimizer: Optimizer, group: Sequence[SparseWeight], share: float) -> int:
        """Return how many connections `group` has in all, once `share` of the way from its start to its end is gone."""
        size = sum(weight.numel for weight in group)
        started = sum(int(optimizer.param_groups[0][INITIAL + weight.name]) for weight in group)
        initial, final = 1 - started / size, self.sparsity(group)
        return distributions.connections((size,), max(0.0, final + (initial - final) * (1 - share)))

    def check(self, groups: Sequence[Sequence[SparseWeight]]) -> None:
        """Refuse groups that have fewer connections than they are to end with.

        Raises:
            RegrowValueError: naming the weights.
        """
        for group in groups:
            size, held = sum(weight.numel for weight in group), sum(weight.nnz for weight in group)
            if held < distributions.connections((size,), self.sparsity(group)):
                names = ", ".join(f"`{weight.name}`" for weight in group)
                raise RegrowValueError(
                    f"`final_sparsity` {self.sparsity(group):.4g} of {names} is below the sparsity that it has, "
                    f"{1 - held / size:.4f}"
                )
