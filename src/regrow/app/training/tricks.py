"""What the tricks of a recipe do in a run: before it, at each step, and what they cost."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import regrow
from regrow.app.recipes import Recipe
from regrow.app.tasks import Carried, Task
from regrow.app.training.batches import Batches
from regrow.errors import RegrowError, RegrowValueError
from regrow.tickets import Plan
from regrow.tricks import Fade, Ghosts, GradInit, LabelSmoothing, over_all, tricks

Build = Callable[..., nn.Module]
FADE = ("start_fraction", "stop_fraction", "shape")


class Tricks:
    """The tricks of one run; without any, nothing is different.

    Args:
        recipe: resolved.
        batches: of the run.
        total: its steps.
        step: those that are made already.
    """

    def __init__(self, recipe: Recipe, batches: Batches, total: int, step: int = 0) -> None:
        self.batches, self.step = batches, step
        self.ghosts: list[Ghosts] = []
        self.seconds = 0.0
        """What was spent before the first step."""
        self.flops = 0.0
        """For an example of each step, all over the run: FLOPs beside those of the network itself."""
        self._total = total
        self._smoothing: LabelSmoothing | None = None
        self._gradinit: GradInit | None = None
        self._put: list[tuple[type[Ghosts], dict[str, Any]]] = []
        for part in recipe.tricks:
            cls: Any = tricks()[part.name].cls
            if cls is LabelSmoothing:
                self._smoothing = cls(total_steps=total, **part.options)
            elif cls is GradInit:
                self._gradinit = cls(**part.options)
            else:
                self._put.append((cls, part.options))
        if self._smoothing is not None:  # a task that cannot refuses now
            over_all(self._smoothing.smoothing, getattr(batches.task, "classes", 2))
            self.objective(batches.task, 0)

    def beginning(self, build: Build) -> Build:
        """Return what builds the network as it is before it is made sparse; each call gives the same one."""
        known: dict[str, dict[str, Tensor]] = {}

        def built(**options: Any) -> nn.Module:
            model = build(**options)
            if self._gradinit is None or self._gradinit.when != "before" or self.step:
                return model
            key = repr(options)
            if key in known:
                model.load_state_dict(known[key])
            else:
                self._rescale(model)
                known[key] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            return model

        return built

    def masked(self, model: nn.Module) -> None:
        """Do what comes between the masks and the first step."""
        if self._gradinit is not None and self._gradinit.when == "after" and not self.step:
            self._rescale(model)

    def _rescale(self, model: nn.Module) -> None:
        begin = time.perf_counter()
        gradinit, device = self._gradinit, next(model.parameters()).device
        assert gradinit is not None
        batches = (self.batches.train(step) for step in itertools.count())
        found = gradinit(model.to(self.batches.device), self.batches.task.loss, batches)
        self.flops += found.passes * _forward(model, self.batches)
        model.to(device)
        self.seconds += time.perf_counter() - begin

    def put_in(self, model: nn.Module, plan: Plan | None) -> None:
        """Put ghosts into the network, where they have not ended yet.

        Raises:
            RegrowValueError: tickets are made before they end, or a network that cannot have them.
        """
        if not self._put:
            return
        if isinstance(self.batches.task.carrying(model), Carried):
            raise RegrowValueError(
                "`tricks`: ghosts stand in forwards, and a network that carries a state is called by `with_state`\n"
                "Train without them, or without `data.streams`."
            )
        alone = _forward(model, self.batches)
        for cls, options in self._put:
            stop = Fade(self._total, **{key: options[key] for key in FADE}).stop
            if plan is not None and plan.start < stop:
                raise RegrowValueError(
                    f"`tricks`: {cls.kind} end at step {stop:,}, and the tickets begin at {plan.start:,}\n"
                    "Give a smaller `stop_fraction`, or train without them."
                )
            if self.step < stop:
                self.ghosts.append(cls(model, total_steps=self._total, **options))
                with_it = _forward(model, self.batches)
                self.flops += 3 * stop * (with_it - alone)
                alone = with_it

    def drive(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the ghosts follow the optimizer's steps."""
        for ghosts in self.ghosts:
            ghosts.drive(optimizer)

    def objective(self, task: Task, step: int) -> Task:
        """Return `task` as it is trained on at `step`."""
        smoothing = 0.0 if self._smoothing is None else self._smoothing.at(step)
        return task.smoothed(smoothing, others=True) if smoothing else task

    def gone(self) -> bool:
        """Return whether the last ghosts have ended since this was asked before."""
        left = [ghosts for ghosts in self.ghosts if ghosts.are_in]
        ended = bool(self.ghosts) and not left
        self.ghosts = left
        return ended

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs to hold."""
        return {"flops": self.flops}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from it."""
        self.flops = state.get("flops", 0.0)


def _forward(model: nn.Module, batches: Batches) -> float:
    """Count a forward pass of one example; 0 where it cannot be counted."""
    example = batches.example().to(next(model.parameters()).device)
    try:
        return float(regrow.costs(model, example).flops["sparse"])
    except RegrowError:  # a run is not refused over a module that nobody can count
        return 0.0
