"""`plain_copy`: a copy of a trained network of torch's own layers alone, in float32, that shares what memory it can."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from regrow.inference.graph import Connections, Weight
from regrow.nn import SparseLinear
from regrow.nn.fused import unfuse
from regrow.ops.reference import ACTIVATIONS
from regrow.weights.attach import detach
from regrow.weights.base import SparseWeight
from regrow.weights.reading import as_matrix
from regrow.weights.storages import form_of
from regrow.weights.views import settle, unwrapped, views

HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


def plain_copy(model: nn.Module) -> tuple[nn.Module, dict[str, Weight]]:
    """Return a copy of `model` for tracing, in evaluation mode, and the weights that it only pretends to hold.

    Parameters and buffers are the model's own memory where they are float32 on the CPU; nothing writes to them. A
    weight that is stored compressed is a placeholder without memory in the copy, of the dense shape.

    Returns:
        The copy, and what belongs in its placeholders, by parameter name.
    """
    model = unwrapped(model)
    settle(model)
    holder = nn.Module()  # so that the model itself has a parent
    holder.model = unfuse(copy.deepcopy(model, dict(_shared(model))))
    held: dict[str, Weight] = {}
    replaced: dict[nn.Module, nn.Module] = {}
    for name, module in list(holder.named_modules(remove_duplicate=False)):
        weights, form = list(views(module)), form_of(module)
        if weights and form is not None:
            if module not in replaced:
                shapes = {weight.parameter_name: weight.shape for weight in weights}
                nothing = {
                    parameter: torch.zeros((), dtype=torch.float32, device="cpu").expand(shape)
                    for parameter, shape in shapes.items()
                }
                replaced[module] = form.restore(module, nothing)
            for weight in weights:
                held[f"{name}.{weight.parameter_name}".removeprefix("model.")] = _content(weight)
            holder.set_submodule(name, replaced[module])
    for sparse, dense in replaced.items():
        detach(sparse)
        _hand_over_hooks(sparse, dense)
    for module in holder.modules():
        detach(module)
    return holder.model.eval(), held


def _shared(model: nn.Module) -> Iterator[tuple[int, Any]]:
    """Yield what stands for each tensor of `model` in a copy, by the address of the tensor."""
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values(), *vars(module).values()):
            if type(tensor) in (Tensor, nn.Parameter):
                own = as_float32(tensor.detach())
                yield (
                    id(tensor),
                    nn.Parameter(own, requires_grad=False) if type(tensor) is nn.Parameter else own,
                )


def as_float32(tensor: Tensor) -> Tensor:
    """Return `tensor` on the CPU, in float32 if it is of another floating-point type."""
    return tensor.to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype)


def _content(weight: SparseWeight) -> Weight:
    """Return the connections of a weight, or the dense tensor where they are more than half (`graph.weight_of`)."""
    positions, values = weight.positions(), weight.values()
    if 2 * len(positions) > weight.numel:
        return weight.in_dense(positions, values)
    columns = as_matrix(weight.shape)[1]
    return Connections.of(weight.shape, positions // columns, positions % columns, values)


def _hand_over_hooks(sparse: nn.Module, dense: nn.Module) -> None:
    """Let `dense`, which stands for `sparse`, apply its activation and call the hooks that others have put on it."""
    if isinstance(sparse, SparseLinear) and sparse.activation is not None:
        dense.register_forward_hook(partial(_activate, ACTIVATIONS[sparse.activation]))
    for hooks in HOOKS:
        vars(dense)[hooks].update(vars(sparse)[hooks])


def _activate(function: Callable[[Tensor], Tensor], module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return function(output)
