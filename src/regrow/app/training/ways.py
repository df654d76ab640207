"""From the method that a recipe names to the network that it starts with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

import regrow
from regrow.app.recipes import Part, Recipe, find, method_of
from regrow.app.training.batches import Batches
from regrow.errors import RegrowValueError
from regrow.methods.formulas import ALWAYS
from regrow.methods.registry import EXAMPLES, MethodRecord, parameters_of
from regrow.models import small_dense
from regrow.ops import backends
from regrow.sparsity.layers import find_layers
from regrow.sparsity.selecting import NoSuchLayerError
from regrow.tickets import kind_of
from regrow.tickets.prune import budget_of, connections, shapes_of
from regrow.weights.storages import STORAGES

WHERE = ("include", "exclude")

Build = Callable[..., nn.Module]
"""Makes the recipe's network; takes further options of it, such as its ``width``."""


def network(recipe: Recipe, batches: Batches, build: Build) -> nn.Module:
    """Make the network as the recipe's method starts with it.

    Dense for a dense way to train, or narrower and dense, with the stored size that the recipe's sparse network has; in
    the recipe's sparse layers with its `initial_sparsity` for a method that prunes (where that is 0, a mask of ones);
    with a topology that one batch decides for an initial topology; else as `regrow.sparsify` makes it.
    """
    name, record = recipe.method.name, method_of(recipe.method)
    if recipe.never_dense and not record.starts_at_random:
        raise RegrowValueError(
            f"`never_dense` is true, but method {name} needs the dense network\n"
            f"Take a method that starts sparse from random connections, such as {EXAMPLES}."
        )
    if recipe.start is not None and regrow.is_sparse(begun := build()):
        if record.kind != "method" or record.initial_sparsity is not None:
            raise RegrowValueError(
                f"`start` {recipe.start} is a sparse network, and method {name} begins with another\n"
                f"Take a method such as static or {EXAMPLES}, or the file of a dense network."
            )
        return begun
    if record.is_dense and not record.is_narrow:
        return build()
    if not recipe.sparsify:
        raise RegrowValueError(
            f"`sparsify` is missing: method {name} needs a sparse model\n"
            "Add `sparsify: {sparsity: 0.9}`, or train without sparsity with `method: dense`."
        )
    if prunes(recipe):
        return _require_prunable(recipe, build())
    how = settings(recipe, batches.device, record)
    if record.is_narrow:
        sparse = _sparsify(recipe, build(), **how)
        size = regrow.costs(sparse, batches.example().cpu()).size_megabytes["sparse"]
        return build(width=small_dense(partial(find("model", recipe.model), **recipe.model.options), size))
    if record.initial_sparsity is not None:
        further = {k: v for k, v in how.items() if k not in ("sparsity", "distribution", *WHERE)}
        return _sparsify(
            recipe,
            build(),
            distribution=initial_sparsities(recipe, record, build),
            **further,
        )
    if record.is_topology:
        return _sparsify(recipe, build(), **{**how, "init": topology(name, batches, recipe.method.options)})
    return _sparsify(recipe, build(), **how)


def prunes(recipe: Recipe) -> bool:
    """Return whether tickets are pruned out of the recipe's network, so that its first run trains that."""
    return recipe.tickets is not None and kind_of(recipe.tickets.name).prunes


def _require_prunable(recipe: Recipe, model: nn.Module) -> nn.Module:
    """Return the dense `model` that tickets are pruned out of, once the recipe's `sparsify` is known to fit it."""
    distribution = recipe.sparsify.get("distribution", "erk")
    where = [recipe.sparsify.get(key) for key in WHERE]
    shapes = shapes_of(model, connections(model, distribution, *where))
    budget_of(shapes, recipe.sparsify["sparsity"], distribution)
    return model


def topology(name: str, batches: Batches, options: Mapping[str, Any]) -> Any:
    """Make the initial topology of a method, of what it takes of the first batch."""
    cls, (inputs, targets) = method_of(Part(name=name)).cls, (tensor.cpu() for tensor in batches.train(0))
    given = {"loss_fn": batches.task.loss, "batch": (inputs, targets), "example": inputs[:1]}
    return cls(**{n: given[n] for n in parameters_of(cls) if n in given}, **options)


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


def settings(recipe: Recipe, device: torch.device, method: MethodRecord) -> dict[str, Any]:
    """Return the recipe's `sparsify`, with the pattern that the method needs if the recipe has none.

    For storage "auto", the one storage that the method runs on, or masks where faster.
    """
    how = dict(recipe.sparsify)
    if method.pattern is not None and how.get("pattern") is None:
        how["pattern"] = method.pattern
    storage, only = recipe.sparsify.get("storage", "auto"), method.storages
    is_dense = storage in STORAGES and STORAGES[storage].is_dense
    always_dense = all(STORAGES[name].is_dense for name in only)
    if recipe.never_dense and (always_dense or is_dense):
        needs = (
            "needs the dense gradient" if method.needs == ALWAYS else f"runs on {' and '.join(only)} storage"
        )
        why = f"storage is {storage}" if not always_dense else f"method {recipe.method.name} {needs}"
        raise RegrowValueError(
            f"`never_dense` is true, but {why}\nTake a method such as {EXAMPLES}, and storage: compressed."
        )
    kernels = (
        device.type in backends.LINEAR.devices
    )  # `sparsify` would look at the CPU, where it makes the network
    if (
        storage == "auto"
        and not recipe.never_dense
        and not (kernels and {"masked", "compressed"} <= set(only))
    ):
        return {**how, "storage": "masked" if "masked" in only else only[0]}
    return how


def final_sparsities(recipe: Recipe, build: Build) -> dict[str, float]:
    """Return what the recipe's `sparsify` gives each layer: where pruning ends."""
    rows = regrow.summary(_sparsify(recipe, build(), **recipe.sparsify)).rows
    return {row.name: 1 - row.density for row in rows if row.storage != "dense"}


def initial_sparsities(recipe: Recipe, record: MethodRecord, build: Build) -> dict[str, float]:
    """Return what each layer starts with where a method prunes on the way to `final_sparsities`.

    The recipe's distribution at its `initial_sparsity`, or at the published one where it has none; a layer that this
    leaves dense has a mask of ones.
    """
    own = recipe.initial_sparsity
    final = final_sparsities(recipe, build)
    if "sparsity" not in recipe.sparsify:  # a distribution that names every layer's
        return {
            name: min(record.starts_from(end) if own is None else own, end) for name, end in final.items()
        }
    end = recipe.sparsify["sparsity"]
    start = record.starts_from(end) if own is None else own
    if start > end:
        raise RegrowValueError(
            f"`initial_sparsity` {start} of {recipe.method.name} is above `sparsify.sparsity` {end}, where it is to "
            "end\nGive a lower `initial_sparsity`."
        )
    if not start:
        return dict.fromkeys(final, 0.0)
    rows = regrow.summary(_sparsify(recipe, build(), **{**recipe.sparsify, "sparsity": start})).rows
    return {row.name: 1 - row.density for row in rows if row.name in final}
