"""`compress`: from masked to compressed storage in the middle of a run."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import pad
from torch.optim import Optimizer

from regrow._torch import tree_map
from regrow.arguments import require_model, require_optimizer
from regrow.errors import RegrowRuntimeError
from regrow.sparsity.layers import Layer, why_not_stored
from regrow.weights import CompressedWeight, SparseWeight, stamp, views
from regrow.weights.attach import attach, attach_loading, detach, note
from regrow.weights.record import module_records
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
        if weight.is_dense
    ]
    refuse_driven(model)
    settle(model)
    kind = CompressedWeight.storage
    beside: dict[nn.Module, dict[str, str]] = {}
    for layer, _ in found:
        beside.setdefault(layer.module, {})[layer.parameter_name] = kind
    reasons = {y.weight_name: why_not_stored(kind, y, model, beside[y.module]) for y, _ in found}
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
    for module in {layer.module: None for layer, _ in found if reasons[layer.weight_name] is None}:
        _compress(model, [(y, weight) for y, weight in found if y.module is module], optimizer)
    attach_loading(model)
    return model


def _compress(model: nn.Module, found: list[tuple[Layer, SparseWeight]], optimizer: Optimizer | None) -> None:
    """Store the weights of one module compressed."""
    dense, (parent, _, child) = found[0][0].module, found[0][0].name.rpartition(".")
    form = (CompressedWeight.forms or {})[type(dense)]
    module = form.make(dense, {weight.parameter_name: weight.positions() for _, weight in found}, {})
    state = {} if optimizer is None else optimizer.state
    former = [
        (
            weight.parameter,
            weight.record,
            tree_map(partial(_taken, weight), dict(state.get(weight.parameter, {}))),
        )
        for _, weight in found
    ]  # the state through containers too
    beside = [(name, own) for name, own in module_records(dense).items() if own.view is None]
    detach(dense)
    for name, own in beside:
        note(module, name, own)
    model.get_submodule(parent).register_module(child, module)
    for old, record, moved in former:
        new = CompressedWeight(module, record.parameter_name).parameter
        note_replaced(old, new, record.name)
        attach(module, record.parameter_name, replace(record, storage=CompressedWeight.storage, reason=""))
        for group in optimizer.param_groups if optimizer is not None else ():
            group["params"] = [new if p is old else p for p in group["params"]]
        if optimizer is not None and optimizer.state.pop(old, None) is not None:
            optimizer.state[new] = moved


def _taken(weight: SparseWeight, value: Any) -> Any:
    """Return the optimizer state of the parameter's shape for the connections alone, [nnz, 1]; anything else as it
    is.
    """
    if isinstance(value, Tensor) and tuple(value.shape) == weight.shape:
        return pad(weight.take(value), (0, stamp.SIZE))[:, None]
    return value
