"""What must hold before a method attaches to a model and an optimizer."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from regrow import schedules
from regrow.errors import RegrowRuntimeError, RegrowValueError, warn
from regrow.weights import SparseWeight, sparse_weights
from regrow.weights.hook import driver_of

if TYPE_CHECKING:
    from regrow.methods.base import Method
    from regrow.methods.periodic import Periodic

DRIVER = "_regrow_driver"
"""Attribute of an optimizer that refers, weakly, to the method that hooks it."""


def check_weights(model: nn.Module, weights: list[SparseWeight], needs_gradient: str, name: str) -> None:
    """Refuse a model that cannot be driven by a method called `name`.

    Raises:
        RegrowRuntimeError: not sparse, frozen as a whole, overwritten, or driven already.
        RegrowValueError: two weights of one name, or a storage on which the method does not run.
    """
    if not weights:
        sparse = [weight.name for weight in sparse_weights(model)]
        if sparse:
            raise RegrowRuntimeError(
                f"`model` is sparse, but all of {sparse} are frozen.\nSet requires_grad first."
            )
        raise RegrowRuntimeError(
            "`model` has no sparse weight that is trained.\nDid you forget to call regrow.sparsify(model, ...)?"
        )
    twice = sorted(name for name, count in Counter(weight.name for weight in weights).items() if count > 1)
    if twice:
        raise RegrowValueError(
            f"`model` has several sparse weights called {twice}, since its parts were made sparse one by one.\n"
            "Call regrow.sparsify on the whole model, with `include` for its parts."
        )
    for weight in weights:
        weight.settle(thorough=True)
        driver = living_driver(weight)
        if driver is not None:
            raise RegrowRuntimeError(
                f"`{weight.name}` is driven by a method already: {driver!r}\nCall its detach() first."
            )
        if needs_gradient == "always" and weight.storage == "compressed":
            raise RegrowValueError(
                f"{name} needs the dense gradient at every step, and `{weight.name}` is stored compressed so that it "
                "never exists.\nUse regrow.sparsify(..., storage='masked')."
            )


def warn_of_no_update(method: Periodic) -> None:
    """Warn of a run that will end with the topology that it began with, unless updates stop at step 0 on purpose."""
    last = schedules.last_update(method.update_every, method.stop_step)
    if method.stop_step > 0 and last is None and not method.steered:
        warn(
            f"{type(method).__name__}: update_every={method.update_every} leaves no update within "
            f"total_steps={method.total_steps}, since updates stop before step {method.stop_step}.\n"
            "Give a smaller `update_every`, a larger `stop_fraction`, or the optimizer steps of the whole run as "
            "`total_steps`; the method Static is for a topology that rests."
        )


def living_driver(weight: SparseWeight) -> Any:
    """The method that drives a weight, or None; one that is only garbage by now is collected first."""
    if driver_of(weight.parameter) is None:
        return None
    gc.collect()  # a method and its optimizer refer to each other: deleting both leaves them until then
    return driver_of(weight.parameter)


def claim(optimizer: Optimizer, method: Method) -> None:
    """Note that `method` hooks `optimizer`.

    Raises:
        RegrowRuntimeError: another one does, so that both would count every step.
    """
    reference = getattr(optimizer, DRIVER, None)
    other = reference() if reference is not None else None
    if other is not None:
        raise RegrowRuntimeError(
            f"`optimizer` is driven by a method already: {other!r}\n"
            "Make one method for everything that it trains: RigL(nn.ModuleList([a, b]), optimizer, ...)."
        )
    setattr(optimizer, DRIVER, weakref.ref(method))
