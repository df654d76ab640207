"""Optimizers around optimizers: those that keep nothing are seen through, all others are refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch.optim import Optimizer

from regrow.arguments import require_optimizer
from regrow.errors import RegrowValueError

STATELESS = {
    "accelerate": "AcceleratedOptimizer",
    "lightning": "LightningOptimizer _FabricOptimizer",
    "lightning_fabric": "_FabricOptimizer",
    "pytorch_lightning": "LightningOptimizer",
}
"""Packages, and their wrappers that hand each step on and remember nothing of a weight."""
SOUND = {
    "SAM": "whose step is the one that counts",
    "GSAM": "whose step is the one that counts",
    "WSAM": "whose step is the one that counts",
    "timm.optim.lookahead.Lookahead": "in whose state its slow weights are",
}
"""Wrappers inside which a method works, and why."""


def unwrap(optimizer: Any) -> Optimizer:
    """Return the torch optimizer itself, without the wrappers of Accelerate and Lightning.

    Raises:
        RegrowValueError: several optimizers, another wrapper, or something else.
    """
    if isinstance(optimizer, list | tuple):
        raise RegrowValueError(
            f"`optimizer` must be one optimizer, got {len(optimizer)}: a method drives the one that holds the sparse "
            "weights.\nAttach a method to each, with the part of the model that it trains."
        )
    while _is_stateless(optimizer):
        optimizer = optimizer.optimizer
    for attribute, inner in _inside(optimizer):
        _refuse(type(optimizer), attribute, type(inner).__name__)
    return require_optimizer("optimizer", optimizer)


def _is_stateless(optimizer: Any) -> bool:
    return any(
        cls.__name__ in STATELESS.get(cls.__module__.partition(".")[0], "").split()
        for cls in type(optimizer).__mro__
    )


def _inside(optimizer: Any) -> Iterator[tuple[str, Any]]:
    """Yield the optimizers that `optimizer` holds, with the attributes that hold them."""
    for name, value in getattr(optimizer, "__dict__", {}).items():
        several = isinstance(value, list | tuple | Mapping)
        held = list(value.values() if isinstance(value, Mapping) else value) if several else [value]
        yield from ((name, each) for each in held if isinstance(each, Optimizer))
    inner = getattr(optimizer, "optimizer", None)
    if inner is not None:
        yield "optimizer", inner


def _refuse(cls: type, attribute: str, inner: str) -> None:
    name = cls.__name__
    if name == "ZeroRedundancyOptimizer":
        raise RegrowValueError(
            "`optimizer` is a ZeroRedundancyOptimizer, which leaves each process the state of other weights, so that "
            f"it cannot move with connections.\nUse {inner} itself."
        )
    why = SOUND.get(name, SOUND.get(f"{cls.__module__}.{name}"))
    if why is not None:
        raise RegrowValueError(
            f"`optimizer` is a {name} around {inner}, {why}.\n"
            f"Attach the method to that: method(model, optimizer.{attribute}, ...). Go on calling {name}'s own step."
        )
    raise RegrowValueError(
        f"`optimizer` is a {name} around {inner}: what it keeps of the weights from step to step (slow weights, "
        f"averages) would not move with their connections.\nUse {inner} alone. Only if {name} keeps no tensor of a "
        f"weight's size, attach the method to `optimizer.{attribute}`."
    )
