"""`Phases`: explore, refine, explore, refine: the calendar that superposed and free tickets share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from regrow._torch import register_first_step_hook
from regrow.arguments import require_count, require_flag, require_fraction, require_function, require_instance
from regrow.errors import RegrowRuntimeError, RegrowValueError
from regrow.methods import Dynamic, Method
from regrow.tickets.rates import Rate

PHASES = "_regrow_phases"
"""Attribute of an optimizer that holds the `Phases` which hook it."""


class Phases:
    """Windows of equal length in the steps of a method, each with its own learning rates and an exploration step.

    Everything is a function of ``method.step``, which is saved with the optimizer: there is nothing else to save.
    Window m covers the optimizer steps from ``start + m length`` on, `length` of them.

    Args:
        method: what drives the model.
        start: the optimizer step at which the first window begins, counted from 0.
        count: how many windows.
        length: optimizer steps of a window.
        rate: the learning rate of all parameter groups as a function of the progress within the window, in [0, 1). It
            is set before each step, whatever a scheduler did.
        explore: the share of each layer's connections that is dropped and grown at the first step of a window, with
            that step's own gradient; None for none.
        explore_first: whether the first window begins so, too.
        evolve: the constant fraction of the method's updates inside the windows, 0 for none; None leaves the method
            to its schedule.
        check: called before each optimizer step, before anything moves; raises where training may not go on.

    Raises:
        RegrowValueError: an argument that is not allowed, or a method that cannot explore.
        RegrowRuntimeError: the optimizer has phases already.
    """

    def __init__(
        self,
        method: Method,
        *,
        start: int,
        count: int,
        length: int,
        rate: Rate,
        explore: float | None = None,
        explore_first: bool = True,
        evolve: float | None = None,
        check: Callable[[], None] | None = None,
    ) -> None:
        self.method = require_instance("method", method, Method)
        self.start = require_count("start", start, least=0)
        if method.total_steps is not None and self.start > method.total_steps:
            raise RegrowValueError(
                f"`start` must be at most {method.total_steps}, the `total_steps` of the method, got {start}: the "
                "topology would rest before the first window begins"
            )
        self.count = require_count("count", count, least=0)
        self.length = require_count("length", length)
        self.rate: Rate = require_function("rate", rate, "progress")
        self.explore = None if explore is None else require_fraction("explore", explore, one=True)
        self.explore_first = require_flag("explore_first", explore_first)
        self.evolve = None if evolve is None else require_fraction("evolve", evolve, one=True)
        self.check = None if check is None else require_function("check", check)
        if not isinstance(method, Dynamic) and (self.explore or self.evolve):
            raise RegrowValueError(
                f"`explore` and `evolve` need a method that drops and grows, such as RigL or SET, got "
                f"{type(method).__name__}\nGive explore=None."
            )
        self._attach()
        self._request()

    @property
    def end(self) -> int:
        """The optimizer step after the last window."""
        return self.start + self.count * self.length

    def window(self, step: int) -> int | None:
        """Return the number of the window that optimizer step `step` belongs to, counted from 0, or None."""
        return (step - self.start) // self.length if self.start <= step < self.end else None

    def learning_rate(self, step: int) -> float | None:
        """Return the learning rate of optimizer step `step`; None outside the windows, where it is the loop's own."""
        if self.window(step) is None:
            return None
        return self.rate((step - self.start) % self.length / self.length)

    def detach(self) -> None:
        """Remove the hooks; the method goes on by its own schedule."""
        for handle in self._handles:
            handle.remove()
        optimizer = self.method.optimizer
        if optimizer.__dict__.get(PHASES) is self:
            del optimizer.__dict__[PHASES]
            if isinstance(self.method, Dynamic) and self.evolve is not None:
                self.method.evolve(None)

    def _attach(self) -> None:
        optimizer = self.method.optimizer
        if PHASES in optimizer.__dict__:
            raise RegrowRuntimeError(
                "`method` makes tickets already.\nCall detach() of what makes them first."
            )
        before, after = torch.compiler.disable(self._before), torch.compiler.disable(self._after)
        # ahead of the method's own hook, which may update the topology: a refused step must change nothing
        first = register_first_step_hook(optimizer, before)
        self._handles = [first, optimizer.register_step_post_hook(after)]
        optimizer.__dict__[PHASES] = self

    def _before(self, *_: Any) -> None:
        """Step pre-hook."""
        if self.check is not None:
            self.check()
        lr = self.learning_rate(self.method.step)
        if lr is None:
            return
        for group in self.method.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr

    def _after(self, *_: Any) -> None:
        """Step post-hook, behind the method's own."""
        self._request()

    def _request(self) -> None:
        """Ask the method for what the coming step is to do, where a window begins with it."""
        step, method = self.method.step, self.method
        window = self.window(step)
        if not isinstance(method, Dynamic) or window is None or step != self.start + window * self.length:
            return
        if self.evolve is not None and window == 0:
            method.evolve(self.evolve)
        if self.explore and (window or self.explore_first):
            method.explore(self.explore)
