"""`fold`: a copy for evaluation, with batch norms folded into the layers before them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from regrow.fuse import unfuse
from regrow.nn.order import Calls, is_shared


@torch.no_grad()
def fold(model: nn.Module) -> nn.Module:
    """A copy of `model` in evaluation mode, whose batch norms are folded into values and biases where they can be.

    A batch norm with running statistics, whose input comes from one convolution or linear layer (dense, masked or
    compressed) and goes nowhere else (as torch.fx sees it in the `forward` of the module that owns both), scales that
    layer's rows and moves its bias; `nn.Identity` takes its place. The topology stays. The copy is not for training.

    Returns:
        The copy.

    Warns:
        RuntimeWarning: the `forward` of a module with batch norms cannot be traced; it stays as it is.
    """
    folded = unfuse(copy.deepcopy(model)).eval()
    shared = is_shared(folded)
    for name, parent in list(folded.named_modules()):
        norms = [pair for pair in parent.named_children() if isinstance(pair[1], _BatchNorm)]
        calls = Calls.of(parent, name) if norms else None
        for child_name, norm in norms:
            layer = calls.input_child(child_name) if calls is not None else None
            watched = norm._forward_hooks or norm._forward_pre_hooks or (layer and layer._forward_hooks)
            if layer is None or watched or shared(norm) or shared(layer) or not _takes(layer, norm):
                continue
            _fold(layer, norm)
            parent.register_module(child_name, nn.Identity())
    return folded


def _takes(layer: nn.Module, norm: _BatchNorm) -> bool:
    """Whether the layer's rows are the norm's channels, and nothing is between them."""
    rows = getattr(layer, "out_channels", getattr(layer, "out_features", None))
    plain = type(layer) in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    compressed = "weight_values" in layer._parameters and getattr(layer, "activation", None) is None
    return rows == norm.num_features and (plain or compressed) and norm.running_mean is not None


def _fold(layer: nn.Module, norm: _BatchNorm) -> None:
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None
    assert var is not None
    scale = torch.rsqrt(var + norm.eps)
    if norm.affine:
        scale = scale * norm.weight
    bias = layer._parameters["bias"]
    shift = (-mean if bias is None else bias - mean) * scale
    if norm.affine:
        shift = shift + norm.bias
    if "weight_values" in layer._parameters:
        values, crow = layer._parameters["weight_values"], layer._buffers["weight_crow"]
        assert values is not None
        assert crow is not None
        per_value = scale.repeat_interleave(crow.diff())
        values[: len(per_value), 0] *= per_value
    else:
        weight: Tensor = layer.weight  # type: ignore[assignment]
        weight *= scale.reshape(-1, *[1] * (weight.dim() - 1))
    layer.register_parameter("bias", nn.Parameter(shift))
