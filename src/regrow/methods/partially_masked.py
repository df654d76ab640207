"""PartiallyMasked: a core and the whole network, trained in turn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow._random import generator, sample
from regrow.arguments import require_choice, require_count, require_flag
from regrow.errors import RegrowRuntimeError, RegrowValueError
from regrow.methods import criteria
from regrow.methods.base import UpdateRecord
from regrow.methods.checks import require_word_or_masks
from regrow.methods.core_pass import CorePass, Statistics, give_statistics, statistics_of
from regrow.methods.gradual import Final
from regrow.methods.periodic import Periodic
from regrow.methods.registry import register
from regrow.methods.state import PREFIX, companions
from regrow.nn import LowRankLinear
from regrow.ops.select import top
from regrow.sparsity import distributions
from regrow.weights import SparseWeight
from regrow.weights.gates import Move, parts, wholes

CORE = f"{PREFIX}core"
"""State of a weight: 1 where the core has a connection, 0 elsewhere, of its parameter's shape."""
OTHER = f"{PREFIX}other"
"""State of a parameter: what the optimizer keeps of it for the steps of the other kind."""
KIND = f"{PREFIX}kind"
"""Entry of ``param_groups[0]``: the kind of step that the optimizer's state is of, 1 for the core's."""
STATISTICS = f"{PREFIX}statistics"
"""Entry of ``param_groups[0]``: the core's statistics of batch norms."""
CHOICES = ("random", "magnitude")
RULES = ("all", "complement")
SHARING = ("shared", "apart")


@register(
    name="partially-masked",
    paper="arXiv 2106.08895",
    line="trains a core and the whole network in turn, and splits the core off",
    drop="complement",
    grow="none",
)
class PartiallyMasked(Periodic):
    """Simultaneous training of a network and a core of it (partially masked training, arXiv 2106.08895).

    Of every ``1 + full_steps`` steps the first is one of the core: everything outside of it is switched off in the
    forward pass and rests in the update, value and optimizer state, ``x <- x - lr m * g(m * x)``. The other steps
    are ordinary ones of the whole network. At the last step of the run the core is split off: its complement is
    dropped, and the model is a sparse network. Biases, norms and dense layers belong to both.

    The core runs alone whenever it is its turn and `model` is called in training mode; in evaluation mode the whole
    network runs, and the core ``with method.core():``. Each step is for the batches that the loop gives it: a fresh
    one, or the same one for both if the loop makes two steps of it.

    `regrow.tickets.core_of` copies the core as a network of its own at any time, `regrow.tickets.narrower` gives the
    masks of a narrower network. The rest of a `regrow.nn.LowRankLinear` is never in the core. No code of the paper is
    public: what it leaves open is an option here.

    Args:
        model: a model that `sparsify` has made sparse, at sparsity 0 or any other below the core's; stored masked.
        optimizer: the torch optimizer that trains it.
        total_steps: optimizer steps of the whole run.
        final_sparsity: of the core in every layer, in [0, 1), or ``{weight name: sparsity}``; left out where `core` is
            masks.
        core: ``"random"``, which is `sparsify`'s random topology of the same seed where the network is dense;
            ``"magnitude"``, the largest at the beginning; or ``{weight name: boolean mask}`` of the weights' shapes,
            True for the core, to which a weight without a mask belongs as a whole.
        full_steps: steps of the whole network behind each step of the core.
        full_update: what a step of the whole network changes: ``"all"`` parameters, or the ``"complement"`` alone, the
            connections outside of the core.
        statistics: whether batch norms have running statistics of their own for the core, ``"apart"``, or one for
            both, ``"shared"``.
        moments: whether the optimizer has one state for both kinds of step, ``"shared"``, or as though there were two
            optimizers, ``"apart"``.
        split: whether the core is split off at the last step; else the whole network is what the run comes to.
        seed: of a random core.
        process_group: processes that train one model together.

    Raises:
        RegrowValueError: an argument that is not allowed, masks that do not fit the weights, a core that is empty or
            as large as the network.
        RegrowRuntimeError: at a step of the core, if the model was not called in training mode before.
    """

    initial_sparsity = 0.0
    storages = ("masked",)  # the whole network is dense, and the core a mask of it
    ahead = 1

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        total_steps: int,
        final_sparsity: float | Mapping[str, float] | None = None,
        core: str | Mapping[str, Tensor] = "random",
        full_steps: int = 1,
        full_update: str = "all",
        statistics: str = "apart",
        moments: str = "shared",
        split: bool = True,
        seed: int = 0,
        process_group: Any = None,
    ) -> None:
        self.final_sparsity, self.chosen = final_sparsity, require_word_or_masks("core", core, CHOICES)
        if isinstance(self.chosen, Mapping) and final_sparsity is not None:
            raise RegrowValueError(
                "`final_sparsity` follows from `core` where that is masks.\nLeave one of the two out."
            )
        self.full_steps = require_count("full_steps", full_steps)
        self.full_update = require_choice("full_update", full_update, RULES)
        self.norms = require_choice("statistics", statistics, SHARING)
        self.moments = require_choice("moments", moments, SHARING)
        self.split = require_flag("split", split)
        self._masks: dict[
            str, tuple[Tensor | None, Tensor]
        ] = {}  # of each weight: what it was read from, the mask
        self._resting: list[tuple[SparseWeight, Tensor, dict[str, Tensor]]] = []
        self._forced = False
        total = require_count("total_steps", total_steps)
        super().__init__(
            model,
            optimizer,
            total_steps=total_steps,
            update_every=total,
            stop_step=total + 1 if self.split else 0,
            seed=seed,
            process_group=process_group,
        )

    @classmethod
    def levels(cls, sparsity: float) -> list[float]:
        """Give the sparsity of a run's steps as shares of the core's: one of the core, one of the whole network."""
        return [1.0, 0.0]

    # --- the core

    def is_core_step(self, step: int) -> bool:
        """Return whether optimizer step `step`, counted from 0, is one of the core alone."""
        return step % (1 + self.full_steps) == 0 and not self._is_split(step)

    @property
    def is_split(self) -> bool:
        """Whether the core has been split off, so that the model is the core."""
        return self._is_split(self.step)

    def _is_split(self, step: int) -> bool:
        return self.split and self.total_steps is not None and step >= self.total_steps

    def core_of(self, weight: SparseWeight) -> Tensor:
        """Return which positions of a weight belong to the core: a boolean mask of its shape."""
        kept = self.remembered(weight, CORE)
        found = self._masks.get(weight.name)
        if found is None or (kept is not None and kept is not found[0]):
            found = kept, self._choose(weight) if kept is None else kept != 0
            self._masks[weight.name] = found
        return found[1]

    @contextmanager
    def core(self) -> Iterator[None]:
        """Let the core run alone in all calls of the model inside of a ``with`` block, in evaluation mode too."""
        self._forced, before = True, self._forced
        try:
            yield
        finally:
            self._forced = before

    def runs_core(self) -> bool:
        """Return whether a call of the model that begins now is one of the core alone."""
        if self._ended is not None or self.is_split:
            return False
        return self._forced or (self.model.training and self.is_core_step(self.step))

    @property
    def statistics(self) -> Statistics:
        """The core's statistics of batch norms; none where it shares the network's."""
        found: Statistics = self._group.get(STATISTICS, {})
        return found

    @property
    def core_sizes(self) -> dict[str, int]:
        """How many connections of each weight belong to the core."""
        return {weight.name: int(self.core_of(weight).count_nonzero()) for weight in self.weights}

    def core_steps(self, steps: int) -> int:
        """Count the steps of the core among the first so many."""
        return sum(self.is_core_step(step) for step in range(steps))

    def _aim(self) -> None:
        self._keeps = self._counts()
        core = sum(self._keeps.values())
        held = sum(weight.nnz for weight in self.weights)
        split = self._is_split(self.step)
        what = "core" if isinstance(self.chosen, Mapping) else "final_sparsity"
        if not core or (core >= held and not split):
            raise RegrowValueError(
                f"`{what}` must give a core with fewer connections than the network's {held:,}, and one at least, got "
                f"{core:,}"
            )

    def _counts(self) -> dict[str, int]:
        """Count the connections that the core has in each part."""
        rests = {
            id(module.rest.weight)
            for module in self.model.modules()
            if isinstance(module, LowRankLinear) and module.rest is not None
        }
        if isinstance(self.chosen, Mapping):
            shapes = {weight.name: weight.shape for weight in self.weights}
            for name, mask in self.chosen.items():
                if mask.dtype != torch.bool or tuple(mask.shape) != shapes.get(name):
                    raise RegrowValueError(
                        f"`core[{name!r}]` must be a boolean mask of one of {shapes}, got {mask.dtype} of shape "
                        f"{tuple(mask.shape)}"
                    )
            return {
                part.name: 0 if id(part.parameter) in rests else len(self._pool(part))
                for part in parts(self.weights)
            }
        final = Final(self.weights, self.final_sparsity)  # type: ignore[arg-type]  # it refuses None
        whole = [part for part in parts(self.weights) if id(part.parameter) not in rests]
        final.check([[part] for part in whole])
        counts = {p.name: distributions.connections((p.numel,), final.sparsity([p])) for p in whole}
        return {part.name: counts.get(part.name, 0) for part in parts(self.weights)}

    def _choose(self, weight: SparseWeight) -> Tensor:
        """Choose the core of one weight."""
        moves: list[Move] = []
        for index, part in enumerate(parts([weight])):
            pool, count = self._pool(part), self._keeps[part.name]
            if count == len(pool):
                stays = pool
            elif self.chosen == "magnitude":
                stays = top(criteria.magnitude(part), count, f"a weight of `{part.name}`")
            else:  # with the random numbers of `sparsify`
                gate = [index] if weight.record.gates > 1 else []
                own = generator(self.seed, "topology", weight.name, *gate)
                stays = pool[sample(count, len(pool), own).to(pool.device)]
            moves.append((part, stays, stays[:0]))
        ((_, stays, _),) = wholes(moves)
        return weight.in_dense(weight.positions()[stays], torch.ones_like(stays, dtype=torch.bool))

    def _pool(self, part: SparseWeight) -> Tensor:
        """Return which connections of `part` may be in the core: indices into its positions, ascending, int64."""
        mask = self.chosen.get(part.record.name) if isinstance(self.chosen, Mapping) else None
        return criteria.within(part, mask)

    # --- the turns

    def _attach(self) -> None:
        super()._attach()
        self._pass = CorePass(self)
        self._handles += self._pass.attach(self.model)

    def _note_start(self) -> None:
        if self.norms == "apart":
            self._group.setdefault(STATISTICS, statistics_of(self.model))
        self._group.setdefault(KIND, 1)

    def _begin(self) -> None:
        before = self._ran
        super()._begin()
        if not self._open or self._ran is before:  # the inner one of two nested calls
            return
        self._resting = []
        core = self.is_core_step(self.step)
        if self._pass.ran != core:
            self._open = False
            raise RegrowRuntimeError(
                f"step {self.step} is one of {'the core alone' if core else 'the whole network'}, and `model` itself "
                f"has {'not ' if core else ''}been called in training mode for {'it' if core else 'the core'}.\n"
                "Call the model that the method was made for, with model.train(), in each step."
            )
        if self.moments == "apart" and self._group[KIND] != core:
            self._change_state()
        self._group[KIND] = int(core)
        if core or (self.full_update == "complement" and not self._is_split(self.step)):
            self._let_rest(core)

    def _let_rest(self, core: bool) -> None:
        """Keep what is not to change in a step of the core, or of its complement."""
        for weight in self.weights:
            mask = self.core_of(weight)
            state = companions(self.optimizer, weight, gradient=False)
            before = {"": weight.parameter.detach()} | state
            kept = {key: tensor.clone() for key, tensor in before.items()}
            self._resting.append((weight, ~mask if core else mask, kept))
        if not core:
            driven = {id(parameter) for parameter in self._parameters}
            for group in self.optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None and id(parameter) not in driven:
                        self._hidden.append((parameter, parameter.grad))
                        parameter.grad = None

    def _change_state(self) -> None:
        """Give the optimizer the state that it keeps for the steps of the other kind, at first zeros."""
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                state = self.optimizer.state.get(parameter, {})
                own = {key: value for key, value in state.items() if not str(key).startswith(PREFIX)}
                if own:
                    state.update(state.get(OTHER) or {key: _fresh(value) for key, value in own.items()})
                    state[OTHER] = own

    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._open:
            for weight, rests, kept in self._resting:
                now = {"": weight.parameter.detach()} | companions(optimizer, weight, gradient=False)
                for key, tensor in now.items():
                    before = kept.get(key)
                    tensor.copy_(
                        tensor.masked_fill(rests, 0) if before is None else before.where(rests, tensor)
                    )
            for weight in self.weights:  # now, because the optimizer's own state comes first
                if self.remembered(weight, CORE) is None:
                    self.remember(weight, CORE, self.core_of(weight).to(weight.parameter.dtype))
            self._pass.ran = False
        self._resting = []
        super()._after(optimizer, args, kwargs)

    # --- the split

    def fraction(self, step: int) -> float:
        """Return 1: there is one update, which drops all that is outside of the core."""
        return 1.0

    def moves(self, step: int, weights: list[SparseWeight]) -> list[Move]:
        found = []
        for weight in self.weights:  # all of them: the core is one network
            drop = (~weight.take(self.core_of(weight))).nonzero().view(-1)
            found.append((weight, drop, drop[:0]))
        return found

    def update(self, step: int, weights: list[SparseWeight]) -> UpdateRecord:
        record = super().update(step, weights)
        give_statistics(self.model, self.statistics)
        return record


def _fresh(value: Any) -> Any:
    """Return what fresh state is in place of `value`: zero, as of any optimizer that fits sparse weights."""
    if isinstance(value, Tensor):
        return torch.zeros_like(value)
    return type(value)(0) if isinstance(value, int | float) else value
