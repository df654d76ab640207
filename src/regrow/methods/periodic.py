"""`Periodic`: a method that updates the topology at regular steps."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.arguments import require_count
from regrow.methods import checks, schedules
from regrow.methods.base import Method, UpdateRecord
from regrow.methods.state import PREFIX
from regrow.weights import SparseWeight
from regrow.weights.gates import Move, parts, wholes

EXPLORED = f"{PREFIX}explored"


class Periodic(Method):
    """Base of the methods with an update at each step t, ``t mod update_every == 0``, ``start <= t < stop``.

    A subclass says in `moves` what happens at an update. With an attribute `ahead` of 1, updates are one step before
    those: at the last step of an interval, not at the first of the next one.

    Args:
        model: a model that `sparsify` has made sparse.
        optimizer: the torch optimizer that trains it.
        total_steps: optimizer steps of the whole run, T.
        update_every: Delta T, in optimizer steps.
        start_step: the first step at which an update may be; never step 0.
        stop_step: updates stop before this step.
        skip_step: whether the weights rest at an update step, if anything is to be moved at it; None is the method's
            own default.
        seed: of random choices.
        process_group: processes that train one model together.
    """

    ahead = 0
    """How many steps before the multiples of `update_every` the updates are: 0 or 1."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        total_steps: int,
        update_every: int,
        stop_step: int,
        start_step: int = 0,
        skip_step: bool | None = None,
        seed: int = 0,
        process_group: Any = None,
    ) -> None:
        self.update_every = require_count("update_every", update_every)
        self.start_step = require_count("start_step", start_step, least=0)
        self.stop_step = require_count("stop_step", stop_step, least=0)
        self._tracks = False
        self._moves = False  # whether the last update had anything to move
        self._covered: dict[str, tuple[int, Tensor, int]] = {}
        """Of each weight: the topology that what was explored is known to hold, that tensor, and its version."""
        super().__init__(
            model,
            optimizer,
            total_steps=total_steps,
            skip_step=skip_step,
            seed=seed,
            process_group=process_group,
        )
        checks.warn_of_no_update(self)

    def moves(self, step: int, weights: list[SparseWeight]) -> list[Move]:
        """Return what goes and what comes in each layer; nothing is changed yet.

        Args:
            step: the optimizer step, counted from 0.
            weights: what has connections of its own: the layers, the gates of those whose gates are apart, and
                views of those with a pattern.
        """
        raise NotImplementedError(f"{type(self).__name__} must define moves")

    def fraction(self, step: int) -> float:
        """Return the share of a layer's connections that is dropped at this step."""
        raise NotImplementedError(f"{type(self).__name__} must define fraction")

    def _plan(self) -> dict[str, float]:
        return {**super()._plan(), "fraction": self.fraction(self.step)}

    @property
    def begin_step(self) -> int:
        """Updates start at this step, as things stand now."""
        return self.start_step

    @property
    def end_step(self) -> int:
        """Updates stop before this step, as things stand now."""
        return self.stop_step

    @property
    def explored(self) -> float:
        """R_s of In-Time Over-Parameterization (arXiv 2102.02887): the share of all positions that were ever active."""
        known = [(weight, self.remembered(weight, EXPLORED)) for weight in self.weights]
        ever = sum(w.nnz if seen is None else w.numel * w.explored_share(seen) for w, seen in known)
        return ever / sum(weight.numel for weight in self.weights)

    @property
    def keeps_gates(self) -> bool:
        return True  # `moves` is told of each gate

    def is_update(self, step: int) -> bool:
        time = step + self.ahead
        return time >= self.begin_step and schedules.is_update_step(time, self.update_every, self.end_step)

    @property
    def next_update(self) -> int | None:
        time = max(self.step + self.ahead, self.begin_step)
        following = schedules.next_update(time, self.update_every, self.end_step)
        return None if following is None else following - self.ahead

    @property
    def last_update(self) -> int | None:
        last = schedules.last_update(self.update_every, self.end_step)
        return last - self.ahead if last is not None and last >= self.begin_step else None

    def update(self, step: int, weights: list[SparseWeight]) -> UpdateRecord:
        """Choose in every layer first, then move: where a gradient is not finite, nothing has happened yet."""
        layers, moves = {}, wholes(self.moves(step, parts(weights)))
        self._moves = any(len(drop) or len(grow) for _, drop, grow in moves)
        for weight, drop, grow in moves:
            before = weight.nnz
            explored = self._explore(weight)
            new = self.move(weight, drop, grow)
            explored = self._note(weight, weight.explored(explored, grow))
            layers[weight.name] = {
                "dropped": before + new - weight.nnz,
                "grown": new,
                "explored": weight.explored_share(explored),
            }
        return {"step": step, "fraction": self.fraction(step), "explored": self.explored, "layers": layers}

    def _update(self) -> bool:
        """Update as `Method` does, but let weights take their step where no connection was to go or come."""
        return super()._update() and self._moves

    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super()._after(optimizer, args, kwargs)
        if not self._tracks:  # from the first step on, so that a checkpoint of any step has the same keys
            self._tracks = True
            for weight in self.weights:
                self._explore(weight)

    def _explore(self, weight: SparseWeight) -> Tensor:
        """Add the present connections to those that were ever active (In-Time Over-Parameterization's R_s)."""
        known = self.remembered(weight, EXPLORED)
        fingerprint, kept, version = self._covered.get(weight.name, (0, None, 0))
        if (
            kept is not None
            and kept is known
            and (kept._version, weight.record.fingerprint) == (version, fingerprint)
        ):
            return kept
        return self._note(weight, weight.explored(known))

    def _note(self, weight: SparseWeight, explored: Tensor) -> Tensor:
        self.remember(weight, EXPLORED, explored)
        self._covered[weight.name] = (weight.record.fingerprint, explored, explored._version)
        return explored
