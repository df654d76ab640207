"""Which of a model's layers become sparse, by what `sparsify` is told: selectors, and the keys of a distribution."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence

from torch import nn

from regrow.arguments import require_function, require_patterns
from regrow.errors import RegrowValueError, closest
from regrow.sparsity.layers import GAIN, Layer
from regrow.weights.sharded import ONE, TWO, is_sharded, not_whole
from regrow.weights.views import named_weights

Selector = Sequence[str] | str | Callable[[str, nn.Module], bool]


def select(argument: str, selector: Selector, layers: Sequence[Layer]) -> set[str]:
    """Return the weight names of the `layers` that a selector picks.

    Args:
        argument: name of the argument, for messages.
        selector: a glob of layer or weight names, several, or a predicate ``(name, module)``.

    Raises:
        RegrowValueError: a glob, or the predicate, that picks nothing.
    """
    if callable(selector):
        require_function(argument, selector, "name", "module")
        layers = [layer for layer in layers if layer.dense_because != GAIN]
        picked = {layer.weight_name for layer in layers if selector(layer.name, layer.module)}
        if not picked:
            raise RegrowValueError(
                f"`{argument}` picks no layer: the predicate was false for {_names(layers)}"
            )
        return picked
    globs = require_patterns(argument, selector)
    if not globs:
        raise RegrowValueError(
            f"`{argument}` is empty, allowed are globs of layer names such as {_names(layers)}"
        )
    return {name for glob in globs for name in matching(argument, glob, layers)}


class NoSuchLayerError(RegrowValueError):
    """A glob matches no layer of a model."""


def matching(argument: str, glob: str, layers: Sequence[Layer]) -> list[str]:
    """Return the weight names of the `layers` that one glob matches.

    Raises:
        NoSuchLayerError: a glob that matches nothing.
    """
    picked = [
        layer.weight_name
        for layer in layers
        if glob == layer.weight_name
        or (
            layer.dense_because != GAIN  # the name of a layer does not mean it
            and (fnmatch.fnmatchcase(layer.name, glob) or fnmatch.fnmatchcase(layer.weight_name, glob))
        )
    ]
    if not picked:
        hint = closest(glob, [layer.name for layer in layers])
        raise NoSuchLayerError(f"`{argument}` matches nothing: {glob!r}{hint}\nLayers: {_names(layers)}")
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
    """Return the layers that become sparse, for `sparsify`'s arguments.

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
    if is_sharded(model, ONE) or (not chosen and is_sharded(model, TWO)):
        raise not_whole("model")
    if not chosen:
        reasons = "; ".join(f"{name or '(none)'}: {why}" for name, why in dense_because.items())
        if any(layer.never_because is None for layer in layers):
            remedy = "Name layers with `include`."
        else:
            remedy = "Give a model with weights of two or more dimensions in a floating-point type."
        raise RegrowValueError(
            f"`model` has nothing to sparsify ({reasons or 'it has no weights'}).\n{remedy}"
        )
    for layer in chosen:
        if layer.never_because is not None:
            why, remedy = layer.never_because
            argument = "distribution" if by_layer else "include"
            raise RegrowValueError(f"`{argument}` names `{layer.weight_name}`, but {why}.\n{remedy}")
    for layer in layers:
        if layer.weight_name not in names and dense_because[layer.weight_name] is None:
            dense_because[layer.weight_name] = "not named by the caller"
    return chosen


def in_distribution(glob: str, layers: Sequence[Layer]) -> list[str]:
    """Return the weight names that a glob of a dictionary means: those sparse by default, unless it names a layer
    exactly.
    """
    found = matching("distribution", glob, layers)
    exact = [layer.weight_name for layer in layers if glob in (layer.name, layer.weight_name)]
    default = [
        layer.weight_name for layer in layers if layer.dense_because is None and layer.weight_name in found
    ]
    return exact or default or found
