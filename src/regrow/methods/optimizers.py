"""What a method must know about the optimizer it drives: which one it is, whether it fits, what state moves."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.errors import RegrowError, RegrowRuntimeError, RegrowValueError
from regrow.weights import SparseWeight

PREFIX = "regrow_"
"""Keys of `param_groups[0]` and of `state[p]` that are a method's own."""

_TWICE = (
    "calls its closure more than once in a step, so there is no one gradient that a topology update could go by.\n"
    "Use an optimizer that needs one gradient a step."
)


def unwrap(optimizer: Any) -> Optimizer:
    """The torch optimizer inside the wrappers of Accelerate and Lightning.

    Raises:
        RegrowValueError: several optimizers, or something else.
    """
    if isinstance(optimizer, list | tuple):
        raise RegrowValueError(
            f"`optimizer` must be one optimizer, got {len(optimizer)}: a method drives the one that holds the sparse "
            "weights.\nAttach a method to each, with the part of the model that it trains."
        )
    while not isinstance(inner := getattr(optimizer, "optimizer", None), type(None)):
        optimizer = inner
    if not isinstance(optimizer, Optimizer):
        raise RegrowValueError(f"`optimizer` must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    return optimizer


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


def probe(optimizer: Optimizer, weights: list[SparseWeight]) -> bool:
    """Try the optimizer, with each group's settings, on a small weight with inactive entries.

    An optimizer fits if a zero weight with a zero gradient stays exactly zero beside others that move, in value
    and in state, and if its state has the parameter's shape or is scalar.

    Returns:
        Whether it holds state for each parameter.

    Raises:
        RegrowValueError: naming what does not fit.
    """
    stateful = False
    ids = {id(w.parameter) for w in weights}
    for group in optimizer.param_groups:
        if any(id(p) in ids for p in group["params"]):
            stateful |= _probe_group(optimizer, group)
    return stateful


def _probe_group(optimizer: Optimizer, group: dict[str, Any]) -> bool:
    like = group["params"][0]
    active = torch.ones(4, 6, dtype=torch.bool, device=like.device).tril()
    weight = nn.Parameter(active.to(like.dtype))
    trial = _trial(optimizer, group, weight)
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        weight.grad = active * (1 + weight.detach().cos())
        return weight.detach().sum()

    name = type(optimizer).__name__
    try:
        for _ in range(2):
            trial.step(closure)  # type: ignore[arg-type]
    except RegrowError:
        raise
    except Exception as error:
        raise RegrowValueError(
            f"`optimizer`: {name} could not be tried on a small sparse weight ({error})"
        ) from error
    if calls > 2:
        raise RegrowValueError(f"`optimizer`: {name} {_TWICE}")
    reason = _misfit(weight, active, dict(trial.state[weight]))
    if reason:
        raise RegrowValueError(
            f"`optimizer`: {name} cannot train sparse weights: {reason}.\nAllowed is any element-wise optimizer whose "
            "fresh state is zero: SGD, Adam, AdamW, Adagrad (from 0), RMSprop, NAdam, RAdam, ASGD, Adadelta, ..."
        )
    return bool(trial.state[weight])


def _trial(optimizer: Optimizer, group: dict[str, Any], weight: nn.Parameter) -> Optimizer:
    """An optimizer of the same kind and settings for `weight` alone."""
    cls = type(optimizer)
    names = inspect.signature(cls).parameters.keys() - {"params"}
    settings = {name: group[name] for name in names if name in group}
    if "lr" in settings:  # a schedule may begin at 0, where nothing shows
        settings["lr"] = torch.full_like(group["lr"], 0.1) if isinstance(group["lr"], Tensor) else 0.1
    try:
        return cls([weight], **settings)
    except TypeError:  # the constructor wants what the group does not tell: as pickle does it, then
        trial: Optimizer = object.__new__(cls)
        groups = [{**group, **settings, "params": [weight]}]
        trial.__setstate__(
            {"defaults": optimizer.defaults, "state": defaultdict(dict), "param_groups": groups}
        )
        return trial


def _misfit(weight: nn.Parameter, active: Tensor, state: dict[str, Any]) -> str | None:
    if weight.detach()[~active].any():
        return "it moves weights whose gradient is zero"
    for key, value in state.items():
        if isinstance(value, Tensor) and value.numel() > 1:
            if value.shape != weight.shape:
                return f"its state `{key}` has shape {tuple(value.shape)} for a parameter of {tuple(weight.shape)}"
            if value[~active].any():
                return f"its state `{key}` is not zero for a fresh weight"
    return None


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
            raise RegrowRuntimeError(f"`optimizer`: {type(optimizer).__name__} {_TWICE}")
        with torch.enable_grad():
            loss = closure()
        act()
        return loss

    if "closure" in kwargs:
        return args, {**kwargs, "closure": wrapped}
    return (args[0], wrapped, *args[2:]), kwargs


def companions(optimizer: Optimizer, weight: SparseWeight) -> list[Tensor]:
    """What moves with a weight's connections: its gradient, and optimizer state of the parameter's shape.

    Raises:
        RegrowRuntimeError: state of another shape, naming key and shape.
    """
    parameter = weight.parameter
    found = [] if parameter.grad is None else [parameter.grad]
    state = optimizer.state.get(parameter, {})
    for key, value in state.items():
        if key.startswith(PREFIX) or not isinstance(value, Tensor):
            continue
        if value.shape == parameter.shape:
            found.append(value)
        elif value.numel() > 1:
            raise RegrowRuntimeError(
                f"optimizer state `{key}` of `{weight.name}` has shape {tuple(value.shape)}, but the parameter has "
                f"{tuple(parameter.shape)}: it belongs to another number of connections or to another storage.\n"
                "Load the model first, then the optimizer's state that was saved with it."
            )
    return found
