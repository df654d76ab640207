"""What a method asks of the optimizer that it drives: to hold the sparse weights, and one gradient a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from regrow.errors import RegrowRuntimeError
from regrow.weights import SparseWeight

TWICE = (
    "calls its closure more than once in a step, so there is no one gradient that a topology update could go by.\n"
    "Use an optimizer that needs one gradient a step."
)


def check_holds(optimizer: Optimizer, weights: list[SparseWeight]) -> None:
    """Refuse an optimizer that does not hold every trainable sparse parameter.

    Raises:
        RegrowRuntimeError: naming the weights that it would not train.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [w.name for w in weights if w.parameter.requires_grad and id(w.parameter) not in held]
    if missing:
        raise RegrowRuntimeError(
            f"`optimizer` does not hold the sparse parameters {missing}: it was made before sparsify, or for another "
            "model, and would not train them.\nMake it afterwards:\n"
            "    regrow.sparsify(model, ...)\n    optimizer = SGD(model.parameters(), ...)"
        )


def after_gradients(
    optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any], act: Callable[[], None]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Call `act` once the gradients of a step are there: at once, or behind the step's closure.

    Args:
        optimizer: whose step begins.
        args, kwargs: what it was called with, the optimizer itself first.
        act: what is to be done.

    Returns:
        Changed arguments for the step, or None where there is no closure.

    Raises:
        RegrowRuntimeError: from within the step, if it calls the closure a second time.
    """
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    if closure is None:
        act()
        return None
    calls = 0

    def wrapped() -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise RegrowRuntimeError(f"`optimizer`: {type(optimizer).__name__} {TWICE}")
        with torch.enable_grad():
            loss = closure()
        act()
        return loss

    if "closure" in kwargs:
        return args, {**kwargs, "closure": wrapped}
    return (args[0], wrapped, *args[2:]), kwargs
