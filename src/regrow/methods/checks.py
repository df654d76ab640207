"""What must hold before a method attaches to a model and an optimizer."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.arguments import require_choice, require_mapping
from regrow.errors import RegrowRuntimeError, RegrowValueError, warn
from regrow.methods import schedules
from regrow.weights import SparseWeight, sparse_weights
from regrow.weights.hook import driver_of
from regrow.weights.patterns import FanIn
from regrow.weights.sharded import ONE, is_sharded, not_whole
from regrow.weights.storages import STORAGES

if TYPE_CHECKING:
    from regrow.methods.attached import Attached
    from regrow.methods.periodic import Periodic

DRIVER = "_regrow_driver"
"""Attribute of an optimizer that refers, weakly, to the method that hooks it."""


def check_whole(model: nn.Module) -> None:
    """Refuse a model whose sparse weights are not whole in this process.

    Raises:
        RegrowRuntimeError: naming the first of them.
    """
    sharded = is_sharded(model, ONE)
    for weight in sparse_weights(model):
        own = {**weight.module._parameters, **weight.module._buffers}
        values = own.get(weight.stored_name)
        whole = values is not None and (not weight.is_dense or tuple(values.shape) == weight.shape)
        if sharded or not whole or type(values) not in (nn.Parameter, Tensor):
            raise not_whole(weight.name)


def check_names(weights: list[SparseWeight]) -> None:
    """Refuse weights of one name, by which random choices go, and weights that share a parameter.

    Raises:
        RegrowValueError: naming them.
    """
    twice = sorted(name for name, count in Counter(weight.name for weight in weights).items() if count > 1)
    if twice:
        raise RegrowValueError(
            f"`model` has several sparse weights called {twice}, since its parts were made sparse one by one.\n"
            "Call regrow.sparsify on the whole model, with `include` for its parts."
        )
    shared = Counter(id(weight.parameter) for weight in weights)
    tied = sorted(weight.name for weight in weights if shared[id(weight.parameter)] > 1)
    if tied:
        raise RegrowValueError(
            f"`model` has one parameter under {tied}, with a topology of its own for each: they were tied after "
            "sparsify.\nTie them before, so that they have one topology."
        )


def check_weights(model: nn.Module, weights: list[SparseWeight], method: Attached) -> None:
    """Refuse a model whose `weights` cannot be driven by `method`.

    A method that drives no others, with an optimizer of its own, is replaced: its optimizer makes no more steps.

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
    check_names(weights)
    ids = {id(weight.parameter) for weight in weights}
    for weight in weights:
        weight.settle(thorough=True)
        driver = living_driver(weight)
        replaced = (
            driver is not None
            and driver._optimizer() is not method.optimizer
            and {id(other.parameter) for other in driver.weights} <= ids
        )
        if driver is not None and not replaced:
            raise RegrowRuntimeError(
                f"`{weight.name}` is driven by a method already: {driver!r}\nCall its detach() first."
            )
        if weight.record.gates > 1 and not method.keeps_gates:
            raise RegrowValueError(
                f"{type(method).__name__} moves whole weights, and the gates of `{weight.name}` are apart.\nUse "
                "regrow.sparsify(..., gates='together'), or derive the method from Dynamic or Periodic."
            )
        _check_pattern(weight, method)
        allowed = storages_of(type(method))
        if weight.storage not in allowed:
            because = f", since {method.storages_because}" if method.storages_because else ""
            why = (
                f"needs the dense gradient at every step, and `{weight.name}` is stored {weight.storage} so that it "
                "never exists"
                if method.needs_gradient == "always"
                else f"runs on {' and '.join(allowed)} storage{because}, and `{weight.name}` is stored {weight.storage}"
            )
            raise RegrowValueError(
                f"{type(method).__name__} {why}.\nUse regrow.sparsify(..., storage={allowed[0]!r})."
            )
    _check_units(weights, method)


def _check_pattern(weight: SparseWeight, method: Attached) -> None:
    pattern, name = weight.record.pattern, type(method).__name__
    if method.pattern is not None and str(pattern) != method.pattern:
        raise RegrowValueError(
            f"{name} needs weights with the pattern {method.pattern}, and `{weight.name}` has "
            f"{'none' if pattern is None else pattern}.\nUse regrow.sparsify(..., pattern={method.pattern!r})."
        )
    if pattern is not None and (why := method.cannot_keep(pattern)):
        raise RegrowValueError(
            f"{name} cannot keep the pattern {pattern} of `{weight.name}`: {why}.\n"
            "Use another method, or regrow.sparsify without `pattern`."
        )


def _check_units(weights: list[SparseWeight], method: Attached) -> None:
    """Refuse weights with blocks of several sizes where a method counts connections of several weights together."""
    patterns = {str(w.record.pattern): w.record.pattern for w in weights}
    sizes = {1 if pattern is None else pattern.size for pattern in patterns.values()}
    if len(sizes) > 1 and (why := method.cannot_keep(FanIn())):
        raise RegrowValueError(
            f"{type(method).__name__} counts weights together, and these come and go in blocks of several sizes, "
            f"{', '.join(sorted(patterns))}: {why}.\nUse one `pattern` for all, or another method."
        )


def storages_of(cls: Any) -> tuple[str, ...]:
    """Return the names of the storages that a method's class runs on.

    Raises:
        RegrowValueError: it names one that does not exist, or none.
    """
    named = getattr(cls, "storages", None)
    if named is None:
        always = getattr(cls, "needs_gradient", "never") == "always"
        return tuple(name for name, storage in STORAGES.items() if storage.is_dense or not always)
    if isinstance(named, str) or not named or not set(named) <= set(STORAGES):
        raise RegrowValueError(
            f"`storages` of {cls.__name__} must be a tuple of {', '.join(STORAGES)}, got {named!r}"
        )
    return tuple(named)


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
    """Return the method that drives a weight, or None; one that is only garbage by now is collected first."""
    if driver_of(weight.parameter) is None:
        return None
    gc.collect()  # a method and its optimizer refer to each other: deleting both leaves them until then
    return driver_of(weight.parameter)


def claim(optimizer: Optimizer, method: Attached) -> None:
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


def require_word_or_masks(name: str, value: object, words: Sequence[str]) -> str | Mapping[str, Tensor]:
    """Return `value`, one of `words` or ``{weight name: boolean mask}``.

    Raises:
        RegrowValueError: naming the argument, what was given and what is allowed.
    """
    if not isinstance(value, Mapping):
        return require_choice(name, value, words, others=" or {weight name: boolean mask}")
    for key, mask in require_mapping(name, value, "a dictionary {weight name: boolean mask}").items():
        if not isinstance(mask, Tensor):
            raise RegrowValueError(f"`{name}[{key!r}]` must be a boolean mask, got {type(mask).__name__}")
    return value
