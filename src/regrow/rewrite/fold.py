"""`fold`: a copy for evaluation, with batch norms folded into the layers before them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from regrow._torch import BatchNorm
from regrow.arguments import require_model
from regrow.nn.fused import unfuse
from regrow.rewrite.calls import Calls, is_shared
from regrow.weights import views
from regrow.weights.forward import after_forward, before_forward, before_forward_of_reader
from regrow.weights.reading import as_matrix
from regrow.weights.storages import dense_class_of

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
)  # what is derived from them may do more


@torch.no_grad()
def fold(model: nn.Module) -> nn.Module:
    """Return a copy of `model` in evaluation mode, whose batch norms are folded into values and biases where they
    can be.

    A batch norm with running statistics, whose input comes from one convolution or linear layer (dense, masked or
    compressed) and goes nowhere else (as torch.fx sees it in the `forward` of the module that owns both), scales that
    layer's rows and moves its bias; `nn.Identity` takes its place. The topology stays. The copy is not for training.

    Returns:
        The copy.

    Warns:
        RuntimeWarning: the `forward` of a module with batch norms cannot be traced; it stays as it is.
    """
    folded = unfuse(copy.deepcopy(require_model("model", model))).eval()
    shared = is_shared(folded)
    for name, parent in list(folded.named_modules()):
        norms = [pair for pair in parent.named_children() if type(pair[1]) in NORMS]
        calls = Calls.of(parent, name) if norms else None
        for child_name, norm in norms:
            layer = calls.input_child(child_name) if calls is not None else None
            if layer is None or shared(norm) or shared(layer) or not _takes(layer, norm):
                continue
            if _is_watched(norm) or _is_watched(layer) or _is_tied(layer, folded):
                continue
            _fold(layer, norm)
            parent.register_module(child_name, nn.Identity().eval())
    return folded


def _is_watched(module: nn.Module) -> bool:
    """Return whether it has hooks of others, which may compute its weight or see its output."""
    own = (before_forward, before_forward_of_reader, after_forward)
    return any(
        h not in own for hooks in (module._forward_hooks, module._forward_pre_hooks) for h in hooks.values()
    )


def _is_tied(layer: nn.Module, model: nn.Module) -> bool:
    """Return whether another module holds a parameter of the layer."""
    mine = {id(parameter) for parameter in layer.parameters(recurse=False)}
    return any(id(p) in mine for m in model.modules() if m is not layer for p in m.parameters(recurse=False))


def _takes(layer: nn.Module, norm: BatchNorm) -> bool:
    """Return whether the layer's rows are the norm's channels, and nothing is between them."""
    rows = getattr(layer, "out_channels", getattr(layer, "out_features", None))
    plain = dense_class_of(layer) in LAYERS and getattr(layer, "activation", None) is None
    return rows == norm.num_features and plain and norm.running_mean is not None


def _fold(layer: nn.Module, norm: BatchNorm) -> None:
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
    sparse = next(views(layer), None)
    if sparse is not None and not sparse.is_dense:
        positions, values = sparse.positions(), sparse.take(sparse.parameter)
        rows = positions // as_matrix(sparse.shape)[1]
        sparse.fill(positions, (values * scale[rows]).to(values.dtype))
    else:
        weight: Tensor = layer.weight  # type: ignore[assignment]
        weight *= scale.reshape(-1, *[1] * (weight.dim() - 1))
    dtype = next(layer.parameters(recurse=False)).dtype
    layer.register_parameter("bias", nn.Parameter(shift.to(dtype)))
