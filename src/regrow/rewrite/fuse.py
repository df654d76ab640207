"""`fuse`: let layers do what follows them; `regrow.nn.fused` undoes it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import nn

from regrow.arguments import require_model
from regrow.nn import FusedBatchNorm2d, SparseConv2d, SparseLinear, TiledConv2d
from regrow.nn.fused import Fused
from regrow.ops.reference import ACTIVATIONS
from regrow.rewrite.calls import Calls, is_shared

NAMES: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.GELU: "gelu", nn.SiLU: "silu"}


def fuse(model: nn.Module) -> nn.Module:
    """Let layers do what follows them, in place: fewer passes over the data, the same results.

    - A `torch.nn.BatchNorm2d` whose output goes into a ReLU and nowhere else (as torch.fx sees it in the `forward` of
      the module that owns it) does the ReLU too, forward and backward, where the data are in batch tiles; where sparse
      convolutions read that ReLU, pooled or not, the norm puts its input into tiles itself.
    - A `torch.nn.BatchNorm2d` or a `SparseConv2d` whose output is added to something, in the very next call, and goes
      nowhere else, does the sum too, where the data are in batch tiles; of norms only those with a ReLU behind the sum.
    - A dense `torch.nn.Conv2d` of few input channels whose output sparse convolutions read, or such a norm, does its
      work in batch tiles too: the first layer, as a rule.
    - ReLU, GELU or SiLU right behind a `SparseLinear` in an `nn.Sequential` is
      folded into it; `nn.Identity` takes its place.

    Modules that are used twice, or whose output a forward hook sees, are left alone; a hook that is put on a
    norm later sees its output after the ReLU, and one on that ReLU is given the same. Parameters, buffers and the names
    of the state dict stay, so checkpoints of fused and unfused models load into each other.

    Returns:
        `model`.

    Warns:
        RuntimeWarning: the `forward` of a module with such children cannot be traced; it stays as it is.
    """
    shared = is_shared(require_model("model", model))
    for name, parent in list(model.named_modules()):
        _fuse_called(parent, name, shared)
        if isinstance(parent, nn.Sequential) and "forward" not in vars(parent):
            _fuse_activations(parent, shared)
    return model


def _fuse_called(parent: nn.Module, name: str, shared: Any) -> None:
    """Let norms and convolutions that are children of `parent` do what its `forward` does with their output."""
    layers = [
        (child_name, child)
        for child_name, child in parent.named_children()
        if (type(child) is nn.BatchNorm2d or isinstance(child, SparseConv2d) or TiledConv2d.pays(child))
        and not shared(child)
        and not child._forward_hooks
    ]
    modes = Calls.in_both_modes(parent, name) if layers else []
    for child_name, layer in layers:
        if isinstance(layer, SparseConv2d):
            layer.summed = all(calls.only_sum_follows(child_name) for calls in modes)
        if not isinstance(layer, nn.BatchNorm2d):
            continue
        followed = all(calls.only_relu_follows(child_name) for calls in modes)
        summed = all(calls.only_sum_follows(child_name, relu=True) for calls in modes)
        tiled = all(_want_tiles(calls.readers(child_name, relu=True)) for calls in modes)
        if followed or summed:
            fused = FusedBatchNorm2d.from_batch_norm(layer, followed=followed, summed=summed, tiled=tiled)
            parent.register_module(child_name, fused)
    for child_name, layer in layers:  # now that the norms that read them are what they will be
        wanted = all(_want_tiles(calls.readers(child_name)) for calls in modes)
        if wanted and TiledConv2d.pays(layer):
            parent.register_module(child_name, TiledConv2d.from_conv(layer))


def _want_tiles(readers: list[nn.Module]) -> bool:
    """Return whether there are some, and all have sparse convolutions, or are norms that want tiles themselves."""

    def wants(reader: nn.Module) -> bool:
        tiled = isinstance(reader, FusedBatchNorm2d) and reader.tiled
        return tiled or any(isinstance(module, SparseConv2d) for module in reader.modules())

    return bool(readers) and all(map(wants, readers))


def _fuse_activations(parent: nn.Sequential, shared: Any) -> None:
    children = list(parent._modules.items())  # repeated ones too
    for (_, layer), (name, activation) in pairwise(children):
        wanted = NAMES.get(type(activation))
        if not isinstance(layer, SparseLinear) or layer.activation is not None or wanted not in ACTIVATIONS:
            continue
        exact = getattr(activation, "approximate", "none") == "none"  # of GELU
        watched = layer._forward_hooks or activation._forward_hooks
        if exact and not shared(layer) and not watched:
            layer.activation = wanted
            parent.register_module(name, Fused(activation))
