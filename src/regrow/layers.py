"""Which weights of a model can be sparse, and why the others stay dense."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from regrow.errors import RegrowValueError, closest
from regrow.weights import views
from regrow.weights.views import before_forward, named_weights

Selector = Sequence[str] | str | Callable[[str, nn.Module], bool]


@dataclass(frozen=True)
class Layer:
    """One weight of two or more dimensions."""

    name: str
    """Name of the module: ``layers.0``."""
    module: nn.Module
    parameter_name: str
    dense_because: str | None
    """Why it stays dense by default, or None where it is sparse by default."""

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


def find_layers(model: nn.Module) -> list[Layer]:
    """Every weight of two or more dimensions but compressed ones, with the verdict of the default rule.

    Sparse by default: Linear, convolutions but depthwise ones, the Conv1D of the transformers library, the
    projections of `nn.MultiheadAttention` and recurrent weights; never an embedding or a weight tied to one.

    Raises:
        RegrowValueError: a lazy module that has not seen a batch yet.
    """
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    layers = []
    for name, module in model.named_modules():
        for parameter_name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if isinstance(parameter, UninitializedParameter):
                raise RegrowValueError(
                    f"`model` holds a lazy layer without a shape: `{name}`.\nRun one batch through the model first."
                )
            if (
                parameter.dim() < 2
                or parameter.numel() == 0
                or any(w.parameter is parameter and w.storage == "compressed" for w in views(module))
            ):
                continue
            owners.setdefault(id(parameter), []).append((name, module))
            layers.append((name, module, parameter_name))
    return [
        Layer(name, module, parameter_name, _dense_because(name, module, parameter_name, owners))
        for name, module, parameter_name in layers
    ]


def _dense_because(
    name: str, module: nn.Module, parameter_name: str, owners: dict[int, list[tuple[str, nn.Module]]]
) -> str | None:
    tied = owners[id(getattr(module, parameter_name))]
    embedding = next((n for n, m in tied if isinstance(m, nn.Embedding | nn.EmbeddingBag)), None)
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "embedding"
    if embedding is not None:
        return f"tied to the embedding `{embedding}`"
    if tied[0][0] != name:
        return f"shares the weight of `{tied[0][0]}`"
    if isinstance(module, nn.modules.conv._ConvNd):
        return "depthwise" if module.groups > 1 and module.groups == module.in_channels else None
    if isinstance(module, nn.MultiheadAttention):
        return None if parameter_name.endswith("proj_weight") else "bias"
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return None if parameter_name.startswith("weight_") else "bias"
    if isinstance(module, nn.Linear) or _is_conv1d(module):
        return None if parameter_name == "weight" else "not the weight"
    return f"{type(module).__name__} is not sparse by default"


def _is_conv1d(module: nn.Module) -> bool:
    """The transformers library's Conv1D, a linear layer with a transposed weight."""
    return any(
        c.__name__ == "Conv1D" and c.__module__.startswith("transformers.") for c in type(module).__mro__
    )


def select(argument: str, selector: Selector, layers: Sequence[Layer]) -> set[str]:
    """Weight names of the `layers` that a selector picks.

    Args:
        argument: name of the argument, for messages.
        selector: a glob of layer or weight names, several, or a predicate ``(name, module)``.

    Raises:
        RegrowValueError: a glob, or the predicate, that picks nothing.
    """
    if callable(selector):
        picked = {layer.weight_name for layer in layers if selector(layer.name, layer.module)}
        if not picked:
            raise RegrowValueError(
                f"`{argument}` picks no layer: the predicate was false for {_names(layers)}"
            )
        return picked
    globs = [selector] if isinstance(selector, str) else list(selector)
    if not globs:
        raise RegrowValueError(
            f"`{argument}` is empty, allowed are globs of layer names such as {_names(layers)}"
        )
    return {name for glob in globs for name in matching(argument, glob, layers)}


def matching(argument: str, glob: str, layers: Sequence[Layer]) -> list[str]:
    """Weight names of the `layers` that one glob matches.

    Raises:
        RegrowValueError: a glob that matches nothing.
    """
    picked = [
        layer.weight_name
        for layer in layers
        if fnmatch.fnmatchcase(layer.name, glob) or fnmatch.fnmatchcase(layer.weight_name, glob)
    ]
    if not picked:
        hint = closest(glob, [layer.name for layer in layers])
        raise RegrowValueError(f"`{argument}` matches nothing: {glob!r}{hint}\nLayers: {_names(layers)}")
    return picked


def _names(layers: Sequence[Layer]) -> str:
    return ", ".join(layer.name or "(the model itself)" for layer in layers)


def choose(
    model: nn.Module,
    layers: Sequence[Layer],
    include: Selector | None,
    exclude: Selector | None,
    distribution: object,
    dense_because: dict[str, str | None],
) -> list[Layer]:
    """The layers that become sparse, for `sparsify`'s arguments.

    Args:
        model: the model.
        layers: what `find_layers` gave.
        include, exclude, distribution: as for `sparsify`.
        dense_because: why each weight stays dense, by name; brought up to date.

    Raises:
        RegrowValueError: nothing is chosen, or what is sparse already, or arguments that exclude each other.
    """
    by_layer = isinstance(distribution, Mapping)
    if by_layer + (include is not None) + (exclude is not None) > 1:
        raise RegrowValueError(
            "`include` and `exclude` were both given, or one beside a dictionary as `distribution`: `include` and the "
            "dictionary name exactly what is sparse, `exclude` takes away from the default.\nGive one of them."
        )
    names = {layer.weight_name for layer in layers if layer.dense_because is None}
    if include is not None:
        names = select("include", include, layers)
    elif isinstance(distribution, Mapping):
        names = {name for glob in distribution for name in in_distribution(glob, layers)}
    elif exclude is not None:
        excluded = select("exclude", exclude, layers)
        dense_because.update(dict.fromkeys(names & excluded, "excluded by the caller"))
        names -= excluded
    chosen: list[Layer] = []
    for layer in layers:  # a weight with several owners belongs to the first
        if layer.weight_name in names and all(layer.parameter is not other.parameter for other in chosen):
            chosen.append(layer)
    first = next((layer for layer in layers if layer.dense_because is None), None)
    if distribution == "uniform" and include is None and len(chosen) > 1 and first in chosen:
        dense_because[chosen[0].weight_name] = "first layer, dense under uniform"
        chosen = chosen[1:]
    sparse = [name for name, _ in named_weights(model)]
    if sparse and (include is None or any(layer.weight_name in sparse for layer in chosen)):
        raise RegrowValueError(
            f"`model` is sparse already: {sparse}\nCall regrow.densify(model) first, or name others with `include`."
        )
    if not chosen:
        reasons = "; ".join(f"{name or '(none)'}: {why}" for name, why in dense_because.items())
        raise RegrowValueError(
            f"`model` has nothing to sparsify ({reasons or 'it has no weights'}).\nName layers with `include`."
        )
    for layer in layers:
        if layer.weight_name not in names and dense_because[layer.weight_name] is None:
            dense_because[layer.weight_name] = "not named by the caller"
    return chosen


def in_distribution(glob: str, layers: Sequence[Layer]) -> list[str]:
    """Weight names that a glob of a dictionary means: those sparse by default, unless it names a layer exactly."""
    found = matching("distribution", glob, layers)
    exact = [layer.weight_name for layer in layers if glob in (layer.name, layer.weight_name)]
    default = [
        layer.weight_name for layer in layers if layer.dense_because is None and layer.weight_name in found
    ]
    return exact or default or found


def why_not_compressed(layer: Layer, model: nn.Module) -> str | None:
    """Why the weight cannot be stored compressed, or None where it can."""
    module = layer.module
    if type(module) not in (nn.Linear, nn.Conv2d):
        return f"{type(module).__name__} has no compressed form"
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        return f"a convolution with groups={module.groups} has no compressed form"
    if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
        return f"a convolution with padding_mode={module.padding_mode!r} has no compressed form"
    if module is model:
        return "the model itself cannot be replaced in place"
    if parametrize.is_parametrized(module):
        return "its weight is parametrized"
    names = [name for name, m in model.named_modules(remove_duplicate=False) if m is module]
    if len(names) > 1:
        return f"it is used under several names: {', '.join(names)}"
    holders = [m for m in model.modules() for p in m.parameters(recurse=False) if p is module.weight]
    if len(holders) > 1:
        return "its weight is shared"
    reader = next((m for m in model.modules() if module in m.children() and reads_weights(m)), None)
    if reader is not None:
        return f"{type(reader).__name__} reads its weight directly"
    own = [hook for hook in module._forward_pre_hooks.values() if hook is not before_forward]
    if module._forward_hooks or own or module._backward_hooks:
        return "it has hooks, which a replaced module would lose"
    return None


def reads_weights(module: nn.Module) -> bool:
    """Whether `module` reads its children's weights without calling them."""
    return isinstance(module, nn.TransformerEncoderLayer | nn.MultiheadAttention)
