"""A copy of a model in training that shares nothing with it and drags along nothing that watches it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from regrow.arguments import require_instance, require_model
from regrow.methods import Method
from regrow.weights.views import unwrapped

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def copied(model: nn.Module, method: Method | None = None) -> nn.Module:
    """Return a deep copy of `model`, in evaluation mode, for use by itself.

    Parameters, buffers, topology and storage are its own. Gradients, the hooks by which a method sees them, and hooks
    of the modules that are methods of objects outside the model (loggers, trainers) stay behind; hooks that are plain
    functions or belong to the model's modules go along, since they may be part of what the model computes.

    Args:
        model: the model, or a wrapper of torch's around it.
        method: the method that drives it: where the model refers to it, or to its optimizer, so does the copy.
    """
    model = unwrapped(require_model("model", model))
    if method is not None:
        require_instance("method", method, Method)
    stay: list[Any] = [owner for _, _, owner in _watched(model)]
    if method is not None:
        stay += [method, method.optimizer]
    result = copy.deepcopy(model, {id(thing): thing for thing in stay})
    for hooks, key, _ in list(_watched(result)):
        del hooks[key]
    return result.eval()


def _watched(model: nn.Module) -> Iterator[tuple[dict[int, Any], int, Any]]:
    """Yield dictionary, key and owner of each hook that is a method of something other than a module."""
    for module in model.modules():
        for name in HOOKS:
            hooks = getattr(module, name)
            for key, hook in hooks.items():
                owner = getattr(hook, "__self__", None)
                if owner is not None and not isinstance(owner, nn.Module):
                    yield hooks, key, owner


def is_finite(model: nn.Module) -> bool:
    """Return whether no parameter holds inf or nan and no buffer nan (inf is usual in attention masks)."""
    return all(bool(parameter.isfinite().all()) for parameter in model.parameters()) and not any(
        bool(torch.isnan(buffer).any()) for buffer in model.buffers() if buffer.is_floating_point()
    )
