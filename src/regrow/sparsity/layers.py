"""Which weights of a model can be sparse, and why the others stay dense."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from regrow._torch import ConvNd, computed_by_hook, is_weight_norm, recurrent_weights
from regrow.errors import RegrowValueError, warn
from regrow.sparsity import uses
from regrow.weights import views
from regrow.weights.forward import after_forward, before_forward
from regrow.weights.storages import STORAGES, dense_class_of

GAIN = "a gain of weight_norm, not the weight"
NOT_WEIGHTS = ("bias", "not the weight", GAIN)
"""Reasons of what has two or more dimensions, but connects nothing."""

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Layer:
    """One weight of two or more dimensions."""

    name: str
    """Name of the module: ``layers.0``."""
    module: nn.Module
    parameter_name: str
    dense_because: str | None
    """Why it stays dense by default, or None where it is sparse by default."""
    never_because: tuple[str, str] | None = None
    """Why it cannot be sparse at all, and what to do about it."""
    unlike_its_kind: bool = False
    """Whether it stays dense by default where others of its kind are sparse."""

    @property
    def weight_name(self) -> str:
        """Name of the weight: ``layers.0.weight``."""
        return f"{self.name}.{self.parameter_name}" if self.name else self.parameter_name

    @property
    def parameter(self) -> nn.Parameter:
        parameter: nn.Parameter = getattr(self.module, self.parameter_name)
        return parameter

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.parameter.shape)

    @property
    def is_transposed(self) -> bool:
        """Whether its first dimension is that of the inputs."""
        return isinstance(self.module, TRANSPOSED) or _is_conv1d(self.module)

    @property
    def gates(self) -> int:
        """How many gates of a recurrent cell the weight holds, one below the other; 1 for any other weight."""
        if not isinstance(self.module, nn.RNNBase | nn.RNNCellBase):
            return 1
        return max(1, self.shape[0] // self.module.hidden_size)


Owners = dict[int, list[tuple[str, nn.Module]]]


def find_layers(model: nn.Module) -> list[Layer]:
    """Return every weight of two or more dimensions but compressed ones, with the verdict of the default rule.

    Sparse by default: Linear, convolutions but depthwise ones, the Conv1D of the transformers library, the
    projections of `nn.MultiheadAttention` and recurrent weights; never an embedding or a weight tied to one, nor one
    in which a zero is not a missing connection (`regrow.sparsity.uses`), nor one that is not a plain floating-point
    tensor.

    Raises:
        RegrowValueError: a lazy module that has not seen a batch yet.
    """
    owners: Owners = {}
    found = []
    for name, module in model.named_modules():
        for parameter_name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if isinstance(parameter, UninitializedParameter):
                raise RegrowValueError(
                    f"`model` holds a lazy layer without a shape: `{name}`.\nRun one batch through the model first."
                )
            if (
                parameter.dim() < 2
                or parameter.numel() == 0
                or any(w.parameter is parameter and not w.is_dense for w in views(module))
            ):
                continue
            owners.setdefault(id(parameter), []).append((name, module))
            found.append((name, module, parameter_name))
    memo = uses.meta_copies(model) if any(uses.overrides(m) for _, m, _ in found) else {}
    return [_layer(model, *one, owners, memo) for one in found]


def _layer(
    model: nn.Module, name: str, module: nn.Module, parameter_name: str, owners: Owners, memo: dict[int, Any]
) -> Layer:
    tied = owners[id(getattr(module, parameter_name))]
    never = _never_because(module, parameter_name, [m for _, m in tied])
    reason = _by_kind(name, module, parameter_name, tied)
    unlike = None
    if reason is None:
        unlike = never[0] if never else None
        if not unlike and uses.overrides(module):
            unlike = uses.another_weight(module, parameter_name, memo)
    elif reason != GAIN:
        unlike = _computed_by(model, name, module, parameter_name)
    return Layer(name, module, parameter_name, unlike or reason, never, unlike is not None)


def _by_kind(
    name: str, module: nn.Module, parameter_name: str, tied: list[tuple[str, nn.Module]]
) -> str | None:
    """Return why weights of this kind stay dense, or None where they are sparse."""
    embedding = next((n for n, m in tied if isinstance(m, EMBEDDINGS)), None)
    if isinstance(module, EMBEDDINGS):
        return "embedding"
    if embedding is not None:
        return f"tied to the embedding `{embedding}`"
    if tied[0][0] != name:
        return f"shares the weight of `{tied[0][0]}`"
    if _is_gain(module, parameter_name):
        return GAIN
    if isinstance(module, ConvNd):
        depthwise = module.groups > 1 and module.groups == module.in_channels
        return "not the weight" if parameter_name != "weight" else "depthwise" if depthwise else None
    if isinstance(module, nn.MultiheadAttention):
        return None if parameter_name in PROJECTIONS else "bias"
    if issubclass(dense_class_of(module), nn.RNNBase | nn.RNNCellBase):
        names = recurrent_weights(module)
        weight = parameter_name.startswith("weight_")
        return None if weight and parameter_name in names else "not the weight" if weight else "bias"
    if isinstance(module, nn.Linear) or _is_conv1d(module):
        return None if parameter_name == "weight" else "not the weight"
    return f"{type(module).__name__} is not sparse by default"


EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def _is_conv1d(module: nn.Module) -> bool:
    """Return whether `module` is the transformers library's Conv1D, a linear layer with a transposed weight."""
    return any(
        c.__name__ == "Conv1D" and c.__module__.startswith("transformers.") for c in type(module).__mro__
    )


def _is_gain(module: nn.Module, parameter_name: str) -> bool:
    """Return whether it is a magnitude that `torch.nn.utils.weight_norm`, in either form, has split off a weight."""
    if isinstance(module, parametrize.ParametrizationList):
        return parameter_name == "original0" and any(is_weight_norm(p) for p in module)
    other = f"{parameter_name.removesuffix('_g')}_v"
    return parameter_name.endswith("_g") and other in module._parameters


def _computed_by(model: nn.Module, name: str, module: nn.Module, parameter_name: str) -> str | None:
    """Return what computes from a parameter the weight that the layer uses: a parametrization, or a hook of
    torch.nn.utils.
    """
    if isinstance(module, parametrize.ParametrizationList):
        parent, _, tensor = name.rpartition("parametrizations.")
        owner = model.get_submodule(parent.rstrip("."))
        by = ", ".join(type(p).__name__.lstrip("_") for p in module)
    else:
        hooks = [(h, computed_by_hook(h)) for h in module._forward_pre_hooks.values()]
        owner, tensor, by = next(
            (
                (module, n, type(h).__name__)
                for h, n in hooks
                if n and parameter_name in (f"{n}_orig", f"{n}_v")
            ),
            (module, "", ""),
        )
    if not by or _by_kind("", owner, tensor, [("", owner)]) is not None:
        return None
    return f"{by} computes the weight from it"


def _never_because(
    module: nn.Module, parameter_name: str, owners: Sequence[nn.Module]
) -> tuple[str, str] | None:
    """Return why a parameter cannot be sparse, and the remedy."""
    parameter = getattr(module, parameter_name)
    leave = "Leave it out."
    if any(isinstance(owner, EMBEDDINGS) and owner.sparse for owner in owners):
        return (
            "its gradient is a sparse tensor, which no mask can cut",
            "Make the embedding with sparse=False.",
        )
    if nn.Parameter not in type(parameter).__mro__:
        return f"its weight is a {type(parameter).__name__}, no plain tensor", leave
    if parameter.dtype not in DTYPES or parameter.layout != torch.strided:
        kind = parameter.dtype if parameter.layout == torch.strided else parameter.layout
        return f"its weight is {str(kind).removeprefix('torch.')}", leave
    if parameter.is_inference():
        return "its weight was made in inference mode", "Make the model outside of torch.inference_mode()."
    if parameter.untyped_storage().nbytes() < parameter.numel() * parameter.element_size():
        return (
            "its entries share memory (expand), or have none",
            "Give it a tensor of its own: weight.clone().",
        )
    if isinstance(module, torch.jit.ScriptModule):
        return "its module is compiled by TorchScript", "Call sparsify before torch.jit.script."
    return None


def warn_of_unlike(layers: Sequence[Layer], chosen: Sequence[Layer]) -> None:
    """Say so where more stays dense of what is usually sparse than is sparse."""
    unlike = [layer for layer in layers if layer.unlike_its_kind]
    lost, kept = (sum(layer.parameter.numel() for layer in some) for some in (unlike, chosen))
    if lost > kept:
        reasons = "; ".join(dict.fromkeys(str(layer.dense_because) for layer in unlike))
        warn(
            f"{lost / (lost + kept):.0%} of the weights of `model` that layers of their kinds have sparse stay dense: "
            f"{reasons}.\nName those with `include` in which a zero is a missing connection; regrow.summary(model) "
            "lists them."
        )


def why_not_stored(storage: str, layer: Layer, model: nn.Module, beside: Mapping[str, str]) -> str | None:
    """Say why the weight cannot be stored so, or return None where it can.

    Args:
        storage: the storage's name.
        layer: the weight.
        model: what it is part of.
        beside: the storage of each parameter of its module that is to be sparse, by name.
    """
    module, forms = layer.module, STORAGES[storage].forms
    if forms is None:
        return None
    form = forms.get(type(module))
    if form is None:
        return f"{type(module).__name__} has no {storage} form"
    if reason := form.why_not_with(module, beside, storage):
        return reason
    if sparse := [w.parameter_name for w in views(module) if w.parameter_name not in beside]:
        return f"{', '.join(sparse)} beside it is sparse already"
    if module is model:
        return "the model itself cannot be replaced in place"
    if parametrize.is_parametrized(module):
        return "its weight is parametrized"
    if uses.is_replaced(module):
        return "its forward is not its class's"
    names = [name for name, m in model.named_modules(remove_duplicate=False) if m is module]
    if len(names) > 1:
        return f"it is used under several names: {', '.join(names)}"
    holders = [m for m in model.modules() for p in m.parameters(recurse=False) if p is layer.parameter]
    if len(holders) > 1:
        return "its weight is shared"
    reader = next((m for m in model.modules() if module in m.children() and reads_weights(m)), None)
    if reader is not None:
        return f"{type(reader).__name__} reads its weight directly"
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    if module._backward_hooks or any(hook not in (before_forward, after_forward) for hook in hooks):
        return "it has hooks, which a replaced module would lose"
    return None


def reads_weights(module: nn.Module) -> bool:
    """Return whether `module` reads its children's weights without calling them."""
    return isinstance(module, nn.TransformerEncoderLayer | nn.MultiheadAttention)
