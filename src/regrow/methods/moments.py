"""State of another moment: a model that was loaded without its optimizer."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from regrow.methods.state import companions
from regrow.weights import SparseWeight, hook_of


def carry_over(optimizer: Optimizer, weights: list[SparseWeight], *, loaded: bool) -> list[str]:
    """Give the state of connections that a loaded state dict has changed to those that have stayed, zero to others.

    Args:
        optimizer: whose state it is.
        weights: the weights, each with the connections that it had before (`GradientHook.overwritten`).
        loaded: whether the optimizer's state was loaded too, so that it belongs to the new connections.

    Returns:
        The names of the weights whose state has changed.
    """
    changed = []
    for weight in weights:
        hook = hook_of(weight.parameter)
        if hook is None or hook.overwritten is None:
            continue
        (before, had_gradient), hook.overwritten = hook.overwritten, None
        now = weight.positions()
        if torch.equal(before, now):
            continue
        if had_gradient and weight.parameter.grad is not None:  # of connections that are gone
            weight.parameter.grad.detach().zero_()
        state = companions(optimizer, weight, gradient=False).values()
        for tensor in () if loaded else state:
            _carry(weight, tensor, before, now)
        if state and not loaded:
            changed.append(weight.name)
    return changed


def _carry(weight: SparseWeight, tensor: Tensor, before: Tensor, now: Tensor) -> None:
    """Move the entries of `tensor`, of the parameter's shape, from positions `before` to positions `now`."""
    entries = weight.take_former(tensor, before)
    places = torch.searchsorted(before, now).clamp_(max=max(0, len(before) - 1))
    stayed = before[places] == now if len(before) else torch.zeros_like(now, dtype=torch.bool)
    moved = torch.zeros(len(now), dtype=tensor.dtype, device=tensor.device)
    moved[stayed] = entries[places[stayed]]
    tensor.zero_()
    weight.fill(now, moved, tensor)
