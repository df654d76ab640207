"""Parameters that a conversion has replaced: an optimizer made before it trains what nobody uses."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from regrow.errors import RegrowRuntimeError

_replaced: dict[int, tuple[weakref.ref[Tensor], weakref.ref[Tensor], str]] = {}
"""By the address of the parameter: the parameter, the one that took its place, and the name of the weight."""
_seen: weakref.WeakSet[Optimizer] = weakref.WeakSet()
_watching: list[Any] = []


def note_replaced(old: Tensor, new: Tensor, name: str) -> None:
    """Remember that `new` has taken the place of the parameter `old`, of a weight called `name`."""
    key, old.grad = id(old), None
    _replaced[key] = weakref.ref(old, lambda _: _replaced.pop(key, None)), weakref.ref(new), name
    _seen.clear()
    if not _watching:  # for good: torch iterates over its hooks while they could be taken off
        _watching.append(register_optimizer_step_pre_hook(_look))


def _look(optimizer: Optimizer, *_: Any) -> None:
    """Step pre-hook of all optimizers; it looks at the first step of each after a conversion.

    A former parameter that has a gradient is in use elsewhere.

    Raises:
        RegrowRuntimeError: it holds a parameter that has been replaced, and not the one that took its place.
    """
    if torch.compiler.is_compiling() or not _replaced or optimizer in _seen:
        return
    held = {id(p): p for group in optimizer.param_groups for p in group["params"]}
    former = [
        (held[key], name)
        for key, (old, new, name) in list(_replaced.items())
        if key in held and old() is held[key] and id(new()) not in held
    ]
    lost = [name for parameter, name in former if parameter.grad is None]
    if lost:
        raise RegrowRuntimeError(
            f"`optimizer` holds the former parameters of {sorted(lost)}, which the model no longer has (sparsify, "
            "densify or compress has replaced them), and does not train those that it has.\nMake it afterwards:\n"
            "    regrow.sparsify(model, ...)\n    optimizer = SGD(model.parameters(), ...)"
        )
    if not former:
        _seen.add(optimizer)
