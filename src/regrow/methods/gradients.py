"""The gradients that a step finds: left by backward passes, edited since, or put there by hand."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from regrow.errors import warn
from regrow.weights import CompressedWeight, GradientHook, SparseWeight

COUNTED = "_regrow_counted"
"""Attribute of a gradient that a step has counted: its version then."""


def note_counted(weights: Iterable[SparseWeight]) -> None:
    """Note that the present gradients belong to a step that is over, or to none."""
    for weight in weights:
        gradient = weight.parameter.grad
        if gradient is not None:
            setattr(gradient, COUNTED, gradient._version)


def is_put_by_hand(gradient: Tensor | None) -> bool:
    """Return whether a gradient that no backward pass has left is there all the same, and is not zero.

    Of zeros there is no saying (torch.distributed.checkpoint makes a step with such, to have state to load into).
    """
    return (
        gradient is not None
        and getattr(gradient, COUNTED, None) != gradient._version
        and bool(gradient.detach().any())
    )


def note_put_by_hand(weight: SparseWeight, hook: GradientHook) -> None:
    """Take the dense gradient out of one that was put there by hand, where it has one beyond the connections."""
    gradient = weight.parameter.grad
    if weight.is_dense and gradient is not None:
        noted = weight.note(gradient, [])
        if not weight.is_zero(noted - weight.restrict(noted)):
            hook.stash = noted


def warn_where_emptied(
    weights: Iterable[SparseWeight], hooks: Iterable[GradientHook | None], others: Iterable[Tensor]
) -> bool:
    """Say so where the gradient of each compressed weight was edited and is zero, and not that of all `others`.

    Returns whether that was said.
    """
    found = False
    for weight, hook in zip(weights, hooks, strict=True):
        gradient = weight.parameter.grad
        if not isinstance(weight, CompressedWeight) or hook is None or gradient is None:
            continue
        if not hook.was_edited(gradient) or gradient.detach()[: weight.nnz].any():
            return False
        found = True
    found = found and any(p.grad is not None and bool(p.grad.any()) for p in others)
    if found:
        warn(
            "the gradients of all weights in compressed storage are zero, after other code has edited them: gradient "
            "centralisation makes them so, since values are [n, 1] and each is the mean of its row.\n"
            "Leave the parameters called `weight_values` out of it, or use storage='masked'."
        )
    return found


def clean(weight: SparseWeight, hook: GradientHook | None) -> None:
    """Cut from a gradient what noise, centralisation or surgery have put where there is no connection."""
    gradient = weight.parameter.grad
    if gradient is None:
        return
    if hook is not None and hook.reach is not None:
        gradient.detach().copy_(hook.restrict(weight, gradient.detach()))
    else:
        weight.clean(gradient, edited=hook is None or hook.was_edited(gradient))
