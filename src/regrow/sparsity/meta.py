"""Weights for a model that was built on the meta device, where a weight that is stored compressed is never dense.

``with torch.device("meta"): model = ...`` makes a network of any size in no memory. Its weights are drawn here as the
layers of torch draw them: uniform in ``+- 1 / sqrt(fan_in)``, the dense fan-in, or the units of a recurrent layer, from
torch's global generator.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from regrow._torch import ConvNd
from regrow.errors import RegrowValueError
from regrow.sparsity.layers import Layer

DRAWN = (nn.Linear.reset_parameters, ConvNd.reset_parameters, nn.RNNBase.reset_parameters)
"""Initialisers whose distribution `draw` knows."""


def is_on_meta(model: nn.Module) -> bool:
    """Return whether any parameter or buffer of `model` is on the meta device."""
    return any(tensor.is_meta for tensor in chain(model.parameters(), model.buffers()))


def draw(module: Any, shape: Sequence[int]) -> Tensor:
    """Draw values of `shape` for a weight or a bias of a layer whose initialiser is in `DRAWN`, on the CPU."""
    recurrent = isinstance(module, nn.RNNBase)
    bound = 1 / math.sqrt(module.hidden_size if recurrent else math.prod(module.weight.shape[1:]))
    dtype = next(module.parameters()).dtype
    return torch.empty(*shape, dtype=dtype, device="cpu").uniform_(-bound, bound)


def materialize(model: nn.Module, never_dense: Collection[Layer]) -> None:
    """Give `model` the parameters and buffers that it lacks, on the CPU, all but the weights of `never_dense`.

    Args:
        model: on the meta device, wholly or in part.
        never_dense: weights that stay on the meta device; all else of their modules is drawn.

    Raises:
        RegrowValueError: a module of which nobody knows how its weights are drawn, before anything is changed.
    """
    lacking = {name: m for name, m in model.named_modules() if _lacks(m)}
    kept: dict[nn.Module, list[str]] = {}
    for layer in never_dense:
        kept.setdefault(layer.module, []).append(layer.parameter_name)
    for name, module in lacking.items():
        if module in kept:
            known = type(module).reset_parameters in DRAWN
        else:  # buffers that a constructor computes are lost; those of torch's own modules are reset
            whole = type(module).__module__.startswith("torch.nn.") or not any(
                b.is_meta for b in module.buffers(recurse=False)
            )
            known = whole and callable(getattr(module, "reset_parameters", None))
        if not known:
            raise RegrowValueError(
                f"`model` is on the meta device, and how `{name or type(module).__name__}` draws its weights is not "
                "known.\nBuild that module outside of torch.device('meta'), or give it a method reset_parameters()."
            )
    owners = [id(parameter) for m in lacking.values() for parameter in m.parameters(recurse=False)]
    if len(set(owners)) < len(owners):
        raise RegrowValueError(
            "`model` is on the meta device and shares a weight between layers, which would part.\n"
            "Build it outside of torch.device('meta')."
        )
    for module in lacking.values():
        if module not in kept:
            module.to_empty(device="cpu", recurse=False)
            module.reset_parameters()
            continue
        for name, old in list(module.named_parameters(recurse=False)):
            if name not in kept[module] and old.is_meta:
                setattr(module, name, nn.Parameter(draw(module, old.shape), requires_grad=old.requires_grad))


def _lacks(module: nn.Module) -> bool:
    own = chain(module.parameters(recurse=False), module.buffers(recurse=False))
    return any(tensor.is_meta for tensor in own)
