"""`compact(model)`: the same function without the units that nothing reaches or that reach nothing."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from regrow.arguments import require_flag, require_model
from regrow.errors import RegrowValueError
from regrow.rewrite.chains import LAYERS, Step, chain
from regrow.sparsity.core import densify, sparsify
from regrow.weights import views


class Pick(nn.Module):
    """Hands on the features `indices` of its input [..., F] and drops the others."""

    indices: Tensor

    def __init__(self, indices: Tensor) -> None:
        super().__init__()
        self.register_buffer("indices", indices)

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(-1, self.indices)


@dataclass
class _Layer:
    """One linear layer or convolution of the chain, dense, with what remains of it."""

    name: str
    module: nn.Linear | nn.Conv2d | nn.Conv1d
    mask: Tensor
    """[out, in, ...] of booleans."""
    storage: str
    """``masked``, ``compressed`` or ``dense``."""
    between: list[tuple[Step, nn.Module | None]]
    """What stands between this layer and the one before, norms with their module."""
    bias: Tensor
    keep: Tensor
    """Which outputs stay, boolean [out]."""
    block: int = 1
    """Inputs that belong to one unit of the layer before: the pixels of a channel that was flattened."""

    def reads(self) -> Tensor:
        """Return which output is connected to which unit of the layer before, boolean [out, units]."""
        out = self.mask.shape[0]
        return self.mask.reshape(out, -1, self.block * self.mask[0, 0].numel()).any(2)

    def sums(self) -> Tensor:
        """Return the weight from each unit of the layer before, over its pixels and the kernel [out, units]."""
        weight = self.module.weight.detach() * self.mask
        return weight.reshape(len(weight), -1, self.block * weight[0, 0].numel()).sum(2)


def compact(model: nn.Module, *, inputs: bool = False) -> nn.Module:
    """Return a smaller model with the same outputs in evaluation mode: units that nothing reaches, or that reach
    nothing, go.

    A unit that nothing reaches is a constant, its bias through the activation that follows; the constant moves into the
    biases of the units that read it. The other connections, their values and their storage stay what they are; a
    `pattern` of theirs is not kept.

    Works on a chain of linear layers and convolutions, with element-wise activations, batch norm, pooling, dropout
    and flattening between them, in `nn.Sequential` or in a `forward` that torch.fx can follow.

    Args:
        model: sparse, in either storage; it is left as it is.
        inputs: also cut input features that reach nothing, for a model whose first layer is linear; that layer
            becomes a `Sequential` of a `Pick` and the layer. By default the model's inputs are never touched.

    Returns:
        A new model; hidden layers keep one unit at least.

    Raises:
        RegrowValueError: a structure that is no such chain, with the name of the module.

    Example:
        >>> import regrow
        >>> net = torch.nn.Sequential(torch.nn.Linear(64, 300), torch.nn.ReLU(), torch.nn.Linear(300, 10))
        >>> smaller = compact(regrow.sparsify(net, sparsity=0.98))
        >>> smaller[0].out_features < 300
        True
    """
    inputs = require_flag("inputs", inputs)
    plain = densify(copy.deepcopy(require_model("model", model))).eval()
    layers = _layers(model, plain)
    for before, layer in pairwise(layers):
        _fold(before, layer)
    for after, layer in pairwise(layers[::-1]):
        used = after.reads()[after.keep].any(0) & layer.keep
        if not used.any():
            used[int(layer.keep.nonzero()[0])] = True  # a layer keeps one unit
        layer.keep = used
    masks: dict[str, dict[str, Tensor]] = {}
    units = layers[0].reads()[layers[0].keep].any(0) if inputs else None
    if units is not None and not isinstance(layers[0].module, nn.Linear):
        raise RegrowValueError(
            f"`inputs` is True, but the first layer `{layers[0].name}` is not a linear layer"
        )
    for layer in layers:
        name = _shrink(plain, layer, units, pick=inputs and layer is layers[0])
        if layer.storage != "dense" and layer.mask.any():
            masks.setdefault(layer.storage, {})[f"{name}.weight"] = layer.mask
        units = layer.keep
    for storage, some in masks.items():
        sparsify(plain, include=list(some), init=some, storage=storage)
    return plain.train(model.training)


def _layers(model: nn.Module, plain: nn.Module) -> list[_Layer]:
    weights = {
        f"{name}.{weight.parameter_name}": weight
        for name, module in model.named_modules()
        for weight in views(module)
    }
    found: list[_Layer] = []
    between: list[tuple[Step, nn.Module | None]] = []
    for step in chain(plain):
        module = plain.get_submodule(step.name) if step.kind in ("layer", "norm") else None
        if not isinstance(module, LAYERS):
            between.append((step, module))
            continue
        weight = weights.get(f"{step.name}.weight")
        mask = weight.mask() if weight is not None else torch.ones_like(module.weight, dtype=torch.bool)
        out = len(mask)
        bias = module.weight.new_zeros(out) if module.bias is None else module.bias.detach().clone()
        keep = torch.ones(out, dtype=torch.bool, device=mask.device)
        block = _block(step.name, mask, found, between)
        storage = weight.storage if weight is not None else "dense"
        found.append(_Layer(step.name, module, mask, storage, between, bias, keep, block))
        between = []
    return found


def _block(name: str, mask: Tensor, found: list[_Layer], between: list[tuple[Step, nn.Module | None]]) -> int:
    if not found:
        return 1
    block, rest = divmod(mask.shape[1], len(found[-1].mask))
    flat = any(step.kind == "flatten" for step, _ in between)
    if rest or not block or (block > 1 and not flat):
        raise RegrowValueError(
            f"`model`: `{name}` reads {mask.shape[1]} features, which do not belong evenly to the "
            f"{len(found[-1].mask)} outputs of `{found[-1].name}`"
        )
    return block


def _fold(before: _Layer, layer: _Layer) -> None:
    """Cut the units of `before` that nothing reaches; what they contribute moves into the biases of `layer`."""
    constant = ~before.reads().any(1)
    values = before.bias
    for step, module in layer.between:
        values = step.on_constants(values, module)
    if not isinstance(layer.module, nn.Linear) and layer.module.padding not in (0, (0,), (0, 0), "valid"):
        constant &= values == 0  # at the border a constant meets the zeros of the padding
    if constant.all():
        constant[0] = False  # a layer keeps one unit
    moved = layer.sums()[:, constant].double() @ values[constant].double()
    layer.bias = layer.bias + moved.to(layer.bias)
    before.keep &= ~constant
    layer.mask = layer.mask.clone()
    layer.mask[:, constant.repeat_interleave(layer.block)] = False


def _shrink(plain: nn.Module, layer: _Layer, units: Tensor | None, *, pick: bool) -> str:
    """Put the smaller `layer`, and the norms before it, into `plain`; returns its name there."""
    old = layer.module
    rows = layer.keep.nonzero().view(-1)
    columns = torch.arange(layer.mask.shape[1], device=layer.mask.device)
    if units is not None:
        columns = units.repeat_interleave(layer.block).nonzero().view(-1)
        for step, module in layer.between:
            if step.kind == "norm":
                plain.set_submodule(step.name, _smaller_norm(module, units))
    layer.mask = layer.mask[rows][:, columns]
    new = copy.copy(old)  # what a convolution knows beside its weight: stride, padding, ...
    new._parameters = dict(old._parameters)
    weight = old.weight.detach()[rows][:, columns]
    new.weight = nn.Parameter(weight * layer.mask, requires_grad=old.weight.requires_grad)
    bias = layer.bias[rows]
    has_bias = old.bias is not None or bool((bias != 0).any())
    new.register_parameter("bias", nn.Parameter(bias) if has_bias else None)
    if isinstance(new, nn.Linear):
        new.in_features, new.out_features = len(columns), len(rows)
        name = layer.name
        plain.set_submodule(name, nn.Sequential(Pick(columns), new) if pick else new)
        return f"{name}.1" if pick else name
    new.in_channels, new.out_channels = len(columns), len(rows)
    plain.set_submodule(layer.name, new)
    return layer.name


def _smaller_norm(module: nn.Module | None, units: Tensor) -> nn.Module:
    assert isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
    new = copy.copy(module)
    new._parameters, new._buffers = dict(module._parameters), dict(module._buffers)
    new.num_features = int(units.sum())
    for name, parameter in module._parameters.items():
        if parameter is not None:
            new._parameters[name] = nn.Parameter(parameter.detach()[units], parameter.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None and buffer.dim():
            new._buffers[name] = buffer[units]
    return new
