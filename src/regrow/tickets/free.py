"""`FreeTickets`: several tickets from one run, for an ensemble that costs less than one dense network.

The EDST ensemble of FreeTickets (arXiv 2106.14568): after a phase of exploration, windows of refinement, each with
its own learning-rate steps, and between two windows an escape: one large exploration step. A window's ticket is the
checkpoint that scored best in it on held-out data. (The paper's DST ensemble is an `Ensemble` of independent runs.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from regrow._formats import TICKETS, require_format
from regrow.arguments import number, require_count, require_instance, require_mapping, require_numbers, said
from regrow.errors import RegrowRuntimeError, RegrowValueError, warn
from regrow.methods import Method
from regrow.tickets.copying import copied, is_finite
from regrow.tickets.ensemble import Ensemble
from regrow.tickets.phases import Phases
from regrow.tickets.rates import steps


class FreeTickets:
    """The windows at the end of a run, and the best checkpoint of each.

        free = FreeTickets(method, start=150 * len(loader), tickets=3, ticket_steps=100 * len(loader))
        ...                                  # in the loop, after each epoch
        free.consider(validation_accuracy)
        ...
        ensemble = free.ensemble

    In a window the learning rate takes each value of `lr` for an equal part, in every parameter group and whatever a
    scheduler did; the first step of every window but the first explores. Updates of the topology go on as the method's
    schedule says: the paper's is ``total_steps`` of the whole run, ``stop_fraction=1``, ``drop_fraction=0.5`` and
    ``schedule="constant"``.

    Args:
        method: what drives the model: any method that drops and grows, or another with ``explore=None``.
        start: the optimizer step, counted from 0, at which the first window begins: the length of the exploration.
        tickets: M, how many windows.
        ticket_steps: optimizer steps of a window.
        lr: learning rates within a window, one after the other.
        explore: the share of each layer's connections that an escape drops and grows, with its step's own gradient.

    Raises:
        RegrowValueError: an argument that is not allowed.
        RegrowRuntimeError: the method makes tickets already. At an optimizer step: a window has ended without a call
            of `consider` in it.
    """

    def __init__(
        self,
        method: Method,
        *,
        start: int,
        tickets: int = 3,
        ticket_steps: int,
        lr: Sequence[float] = (0.01, 0.001),
        explore: float | None = 0.8,
    ) -> None:
        self.method = require_instance("method", method, Method)
        self.lr = require_numbers("lr", lr)
        self._best: dict[int, tuple[float, nn.Module]] = {}
        self._considered: set[int] = set()
        self.phases = Phases(
            method,
            start=start,
            count=require_count("tickets", tickets),
            length=require_count("ticket_steps", ticket_steps),
            rate=partial(steps, rates=self.lr),
            explore=explore,
            explore_first=False,
            check=self._check_considered,
        )

    # --- where it stands

    @property
    def step(self) -> int:
        """Optimizer steps counted so far."""
        return self.method.step

    @property
    def window(self) -> int | None:
        """The window, counted from 0, of the last step taken: what `consider` judges; None outside all windows."""
        return self.phases.window(self.step - 1)

    @property
    def done(self) -> bool:
        """Whether the last window has ended."""
        return self.step >= self.phases.end

    @property
    def scores(self) -> dict[int, float]:
        """The best score of each window so far, by its number."""
        return {window: score for window, (score, _) in sorted(self._best.items())}

    @property
    def tickets(self) -> list[nn.Module]:
        """The best network of each window so far, in evaluation mode; they share no memory with the working model."""
        return [model for _, (_, model) in sorted(self._best.items())]

    @property
    def left_out(self) -> list[int]:
        """The windows in which nothing finite was considered."""
        return sorted(self._considered - self._best.keys())

    @property
    def ensemble(self) -> Ensemble:
        """The tickets so far as one network.

        Raises:
            RegrowRuntimeError: there is none, or a window has ended without one being considered.
        """
        self._check_considered()
        if not self._best:
            raise RegrowRuntimeError(
                f"there is no ticket yet at step {self.step}: call consider(score) in the windows from step "
                f"{self.phases.start} on"
            )
        return Ensemble(self.tickets)

    def __repr__(self) -> str:
        where = "exploring" if self.window is None and not self.done else f"window {self.window}"
        return (
            f"FreeTickets(step {self.step} of {self.phases.end}, {self.phases.count} windows of "
            f"{self.phases.length} steps from step {self.phases.start}, {'done' if self.done else where}, "
            f"{len(self._best)} tickets)"
        )

    # --- keeping the best

    def consider(self, score: float) -> bool:
        """Keep a copy of the working model as its window's ticket, if `score` is the best of the window so far.

        Args:
            score: of the working model as it is now, on data that are held out of the training set; higher is better.

        Returns:
            Whether it was kept. Never outside the windows, nor (with a warning) where score or model is not finite.
        """
        window = self.window
        if number(score, nan=True) is None:
            raise RegrowValueError(f"`score` must be a number, got {said(score)}")
        if window is None:
            return False
        self._considered.add(window)
        if not (math.isfinite(score) and is_finite(self.method.model)):
            warn(f"step {self.step}: score or model holds inf or nan, which makes no ticket")
            return False
        if window in self._best and score <= self._best[window][0]:
            return False
        self._best[window] = float(score), copied(self.method.model, self.method)
        return True

    def _check_considered(self) -> None:
        """Check before each step that no window has ended without a ticket."""
        ended = min((self.step - self.phases.start) // self.phases.length, self.phases.count)
        missing = [window for window in range(ended) if window not in self._considered]
        if missing:
            raise RegrowRuntimeError(
                f"the windows {missing} have ended by step {self.step} without a ticket.\nAfter optimizer.step(), at "
                "least once in each window, call consider(score); after resuming, call load_state_dict first."
            )

    def detach(self) -> None:
        """End it: the learning rate is the loop's again."""
        self.phases.detach()

    # --- checkpoints

    def _settings(self) -> dict[str, int]:
        return {"start": self.phases.start, "ticket_steps": self.phases.length}

    def state_dict(self) -> dict[str, Any]:
        """Return the tickets so far, in plain numbers and tensors, for `torch.load(weights_only=True)`.

        With model and optimizer, which hold the rest, a run resumes at any step exactly.
        """
        return {
            "format": TICKETS,
            "settings": self._settings(),
            "considered": sorted(self._considered),
            "scores": self.scores,
            "models": {window: model.state_dict() for window, (_, model) in self._best.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave; the tickets are there again.

        Raises:
            RegrowValueError: a state of other settings.
        """
        parts = self.state_dict().keys() - {"format"}
        require_mapping("state", state, "what state_dict() of FreeTickets gave", keys=parts)
        require_format("`state`", state, "format", TICKETS)
        if state["settings"] != self._settings():
            raise RegrowValueError(
                f"`state` was made with {state['settings']}, and this is {self._settings()}"
            )
        best = {}
        for window, tensors in state["models"].items():
            model = copied(self.method.model, self.method)
            model.load_state_dict(tensors)
            best[window] = state["scores"][window], model
        self._best, self._considered = best, set(state["considered"])
