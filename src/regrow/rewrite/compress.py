"""`compress`: from masked to compressed storage in the middle of a run."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import pad
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from regrow.arguments import require_model, require_optimizer
from regrow.errors import RegrowRuntimeError
from regrow.nn import compressed_form
from regrow.sparsity.layers import Layer, why_not_compressed
from regrow.weights import MaskedWeight, stamp, views
from regrow.weights.attach import attach, attach_loading, detach
from regrow.weights.replaced import note_replaced
from regrow.weights.views import refuse_driven, settle


def compress(model: nn.Module, optimizer: Optimizer | None = None) -> nn.Module:
    """Store compressed, in place, every masked weight that can be; what `optimizer` holds of it moves along.

    For pruning that has reached its density: detach it, compress, and train on, at the cost of the connections.

    Args:
        model: a sparse model.
        optimizer: the optimizer that trains it; without one, make a new one afterwards.

    Returns:
        `model`.

    Raises:
        RegrowRuntimeError: a method is attached, or nothing can be compressed, with each weight's reason.
    """
    require_model("model", model)
    if optimizer is not None:
        require_optimizer("optimizer", optimizer)
    found = [
        (Layer(name, module, weight.parameter_name, None), weight)
        for name, module in model.named_modules()
        for weight in views(module)
        if isinstance(weight, MaskedWeight)
    ]
    refuse_driven(model)
    settle(model)
    reasons = {layer.weight_name: why_not_compressed(layer, model) for layer, _ in found}
    if all(reasons.values()):
        raise RegrowRuntimeError(
            f"`model` has no masked weight that can be compressed: {reasons or 'none is masked'}"
        )
    held = {id(p) for group in (optimizer.param_groups if optimizer else ()) for p in group["params"]}
    if optimizer is not None and not any(id(weight.parameter) in held for _, weight in found):
        raise RegrowRuntimeError(
            f"`optimizer` holds none of {[layer.weight_name for layer, _ in found]}: it was made for another model, "
            "or before sparsify, and would not train them.\n"
            "Give the one that does, or none, and make a new one afterwards."
        )
    for layer, weight in found:
        if reasons[layer.weight_name] is None:
            _compress(model, layer, weight, optimizer)
    attach_loading(model)
    return model


def _compress(model: nn.Module, layer: Layer, weight: MaskedWeight, optimizer: Optimizer | None) -> None:
    dense, old, record = layer.module, weight.parameter, weight.record
    module = compressed_form(dense, weight.positions())
    state = optimizer.state.get(old, {}) if optimizer is not None else {}
    moved = tree_map(partial(_taken, weight), dict(state))  # through containers too
    detach(dense)
    parent, _, child = layer.name.rpartition(".")
    model.get_submodule(parent).register_module(child, module)
    note_replaced(old, module.weight_values, record.name)
    attach(module, layer.parameter_name, replace(record, storage="compressed", reason=""))
    if optimizer is None:
        return
    for group in optimizer.param_groups:
        group["params"] = [module.weight_values if p is old else p for p in group["params"]]
    if optimizer.state.pop(old, None) is not None:
        optimizer.state[module.weight_values] = moved


def _taken(weight: MaskedWeight, value: Any) -> Any:
    """Optimizer state of the parameter's shape for the connections alone, [nnz, 1]; anything else as it is."""
    if isinstance(value, Tensor) and tuple(value.shape) == weight.shape:
        return pad(weight.take(value), (0, stamp.SIZE))[:, None]
    return value
