"""From the method that a recipe names to the network that it starts with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

import regrow
from regrow.app.recipes import Recipe, find
from regrow.app.training.batches import Batches
from regrow.errors import RegrowValueError
from regrow.methods.registry import records
from regrow.models import small_dense
from regrow.sparsity.layers import NoSuchLayerError, find_layers

WHERE = ("include", "exclude")

Build = Callable[..., nn.Module]
"""Makes the recipe's network; takes further options of it, such as its ``width``."""


DENSE = ("dense", "small-dense")
"""Names of the methods that train a dense network."""

PRUNING = {"pruning": 0.0, "granet": 0.5}
"""Methods that end at the recipe's sparsity, and the published one that they start from."""


def is_topology(name: str) -> bool:
    """Whether a method is an initial topology, trained as Static."""
    return name in records() and records()[name].kind == "topology"


def network(recipe: Recipe, batches: Batches, build: Build) -> nn.Module:
    """The network as the recipe's method starts with it.

    Dense for ``dense``; narrower and dense for ``small-dense``, with the stored size that the recipe's sparse network
    has; in the recipe's sparse layers with its `initial_sparsity` for ``pruning`` (0, so a mask of ones) and
    ``granet`` (0.5); with a topology that one batch decides for
    ``snip``; else as `regrow.sparsify` makes it.
    """
    name = recipe.method.name
    if recipe.never_dense and (name in DENSE or name in PRUNING or is_topology(name)):
        raise RegrowValueError(
            f"`never_dense` is true, but method {name} needs the dense network\n"
            "Take a method that starts sparse from random connections, such as rigl or set."
        )
    if name == "dense":
        return build()
    if not recipe.sparsify:
        raise RegrowValueError(
            f"`sparsify` is missing: method {name} needs a sparse model\n"
            "Add `sparsify: {sparsity: 0.9}`, or train without sparsity with `method: dense`."
        )
    how = settings(recipe, batches.device)
    if name == "small-dense":
        sparse = _sparsify(recipe, build(), **how)
        size = regrow.costs(sparse, batches.example().cpu()).size_megabytes["sparse"]
        return build(width=small_dense(partial(find("model", recipe.model), **recipe.model.options), size))
    if name in PRUNING:
        further = {k: v for k, v in how.items() if k not in ("sparsity", "distribution", *WHERE)}
        return _sparsify(recipe, build(), distribution=initial_sparsities(recipe, build), **further)
    if is_topology(name):
        inputs, targets = (tensor.cpu() for tensor in batches.train(0))
        init = records()[name].cls(batches.task.loss, (inputs, targets), **recipe.method.options)
        return _sparsify(recipe, build(), **{**how, "init": init})
    return _sparsify(recipe, build(), **how)


def _sparsify(recipe: Recipe, model: nn.Module, **how: Any) -> nn.Module:
    """Call `regrow.sparsify`; a recipe that names layers which the network has not gets the words that would do."""
    try:
        return regrow.sparsify(model, **how)
    except NoSuchLayerError as error:
        names = [layer.name for layer in find_layers(model) if layer.dense_because is None][:2]
        some = "{" + ", ".join(f"{name}: 0.9" for name in names) + "}"
        said = [f"`sparsify.{key}=null`" for key in WHERE if recipe.sparsify.get(key)]
        if isinstance(recipe.sparsify.get("distribution"), Mapping):
            one = "`sparsify.sparsity=0.9` for all layers together"
            said.insert(0, f'{one}, or `"sparsify.distribution={some}"`')
        raise RegrowValueError(
            f"{error}\nThe recipe names layers that `model` {recipe.model.name} has not. Say {' and '.join(said)}."
        ) from error


def settings(recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """The recipe's `sparsify`, with masks for "auto" where compressed storage would be refused, or slow."""
    dense_gradient = getattr(find("method", recipe.method), "needs_gradient", "never") == "always"
    storage = recipe.sparsify.get("storage", "auto")
    if recipe.never_dense and (dense_gradient or storage == "masked"):
        why = (
            f"method {recipe.method.name} needs the dense gradient" if dense_gradient else "storage is masked"
        )
        raise RegrowValueError(
            f"`never_dense` is true, but {why}\nTake a method such as rigl or set, and storage: compressed."
        )
    if storage == "auto" and not recipe.never_dense and (dense_gradient or device.type != "cpu"):
        return {**recipe.sparsify, "storage": "masked"}
    return recipe.sparsify


def final_sparsities(recipe: Recipe, build: Build) -> dict[str, float]:
    """What the recipe's `sparsify` gives each layer: where pruning ends."""
    rows = regrow.summary(_sparsify(recipe, build(), **recipe.sparsify)).rows
    return {row.name: 1 - row.density for row in rows if row.storage != "dense"}


def initial_sparsities(recipe: Recipe, build: Build) -> dict[str, float]:
    """What each layer starts with where a method prunes on the way to `final_sparsities`.

    The recipe's distribution at the initial sparsity; a layer that it leaves dense there has a mask of ones.
    """
    start = PRUNING[recipe.method.name] if recipe.initial_sparsity is None else recipe.initial_sparsity
    final = final_sparsities(recipe, build)
    if start > recipe.sparsify.get("sparsity", 1.0):
        raise RegrowValueError(
            f"`initial_sparsity` {start} of {recipe.method.name} is above `sparsify.sparsity` "
            f"{recipe.sparsify['sparsity']}, where it is to end\nGive a lower `initial_sparsity`."
        )
    if not start or "sparsity" not in recipe.sparsify:  # a distribution that names every layer's
        return {name: min(start, sparsity) for name, sparsity in final.items()}
    rows = regrow.summary(_sparsify(recipe, build(), **{**recipe.sparsify, "sparsity": start})).rows
    return {row.name: 1 - row.density for row in rows if row.name in final}
