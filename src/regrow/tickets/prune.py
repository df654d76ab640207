"""One round of a ticket loop: which connections of a trained network stay, and the network that begins with them."""

from __future__ import annotations

import math
from collections.abc import Callable
from glob import escape
from typing import Any

import torch
from torch import Tensor, nn

from regrow.arguments import require_fraction, require_mapping, require_model
from regrow.errors import RegrowValueError
from regrow.sparsity import distributions
from regrow.sparsity.core import densify, is_sparse, sparsify
from regrow.sparsity.initial import Criterion
from regrow.sparsity.layers import find_layers
from regrow.sparsity.selecting import Selector, choose
from regrow.tickets.copying import copied
from regrow.tickets.keeping import Budget, best
from regrow.tickets.scores import SCORES, require_score
from regrow.weights.views import named_weights

Distribution = str | distributions.Distribution
Kept = dict[str, Tensor]
"""Flat positions of the connections of each weight that is pruned, ascending, int64 [n], by its name."""


def pruned(
    model: nn.Module,
    sparsity: float,
    *,
    score: str | Criterion = "magnitude",
    distribution: Distribution = distributions.GLOBAL,
    include: Selector | None = None,
    exclude: Selector | None = None,
) -> Kept:
    """Return the connections of `model` that are left when it is pruned to `sparsity`; the model stays as it is.

    Counts are exact, ties go to the earlier layer, then to the lower position. What has no connection gets none.

    Args:
        model: a trained network, dense or sparse.
        sparsity: share of the weights that are zero then, in [0, 1), of all positions of the weights that are pruned.
        score: the highest stay: ``"magnitude"``, ``"normalised"`` (over the mean magnitude of the layer), or a
            criterion as for `sparsify`: `regrow.SNIP`, `regrow.tickets.Gradient`, ...
        distribution: ``"global"`` prunes the lowest of all layers together; otherwise each layer to its own sparsity,
            as `sparsify` spreads it. No dictionary.
        include, exclude: as for `sparsify`; of a dense model, a sparse one says itself what is pruned.

    Raises:
        RegrowValueError: an argument that is not allowed; a sparsity below the model's own, in a layer or in all; a
            layer that would lose all connections.
    """
    kept = remaining(
        model, sparsity, score=score, distribution=distribution, include=include, exclude=exclude
    )
    if empty := [name for name, own in kept.items() if not len(own)]:
        raise RegrowValueError(
            f"`sparsity` {sparsity:g} leaves no connection at all in {empty}\nGive a lower one, or a `distribution` "
            "such as 'erk', which leaves each layer some."
        )
    return kept


def remaining(
    model: nn.Module,
    sparsity: float,
    *,
    score: str | Criterion,
    distribution: Distribution,
    include: Selector | None,
    exclude: Selector | None,
) -> Kept:
    """Return what `pruned` does, also where that is nothing in a layer."""
    score = require_score(score)
    positions = connections(model, distribution, include, exclude)
    shapes = shapes_of(model, positions)
    budget = budget_of(shapes, sparsity, distribution)
    count = budget if isinstance(budget, int) else sum(budget.values())
    scores = _scores(model, positions, shapes, score, count)
    _require_ascent({name: len(own) for name, own in positions.items()}, budget, sparsity)
    chosen = best(scores, budget)
    return {name: positions[name][chosen[name]] for name in positions}


def rewound(source: nn.Module, kept: Kept, storage: str = "auto") -> nn.Module:
    """Return a network with the weights of `source` and the connections `kept`, in training mode.

    Args:
        source: whose weights it begins with, dense or sparse; it is not changed.
        kept: what `pruned` returned.
        storage: as for `sparsify`.
    """
    network = copied(source)
    if is_sparse(network):
        densify(network)
    return sparsify(network, include=[escape(name) for name in kept], init=kept, storage=storage).train()


def connections(
    model: nn.Module,
    distribution: Distribution = distributions.GLOBAL,
    include: Selector | None = None,
    exclude: Selector | None = None,
) -> Kept:
    """Return the connections there are of each weight that is pruned: all of a dense model's."""
    sparse = dict(named_weights(require_model("model", model)))
    if sparse:
        return {name: weight.positions() for name, weight in sparse.items()}
    layers = find_layers(model)
    chosen = choose(model, layers, include, exclude, distribution, {y.weight_name: None for y in layers})
    return {
        layer.weight_name: torch.arange(layer.parameter.numel(), device=layer.parameter.device)
        for layer in chosen
    }


def shapes_of(model: nn.Module, names: Kept) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight that is pruned."""
    sparse = dict(named_weights(model))
    return {
        name: tuple(sparse[name].shape if name in sparse else model.get_parameter(name).shape)
        for name in names
    }


def budget_of(shapes: distributions.Shapes, sparsity: float, distribution: Distribution) -> Budget:
    """Return how many connections are left, of all weights together or of each."""
    distributions.require_distribution(distribution, (distributions.GLOBAL,), own=False)
    share = require_fraction("sparsity", sparsity)
    if distribution == distributions.GLOBAL:
        return distributions.connections((sum(map(math.prod, shapes.values())),), share)
    sparsities = distributions.distribute(distribution, shapes, share, others=(distributions.GLOBAL,))
    return {name: distributions.connections(shapes[name], own) for name, own in sparsities.items()}


def _require_ascent(there: dict[str, int], budget: Budget, sparsity: float) -> None:
    """Refuse more connections than there are."""
    wanted = {"": budget} if isinstance(budget, int) else budget
    for name, count in wanted.items():
        if count > (present := there[name] if name else sum(there.values())):
            where = f" in `{name}`" if name else ""
            raise RegrowValueError(
                f"`sparsity` {sparsity:g} would leave {count:,} connections{where}, and there are {present:,}\n"
                "Give a higher one: pruning never brings connections back."
            )


def _scores(
    model: nn.Module,
    positions: Kept,
    shapes: dict[str, tuple[int, ...]],
    score: str | Criterion,
    count: int,
) -> dict[str, Tensor]:
    """Score the connections at `positions`, [n] of each weight."""
    if isinstance(score, str):
        sparse = dict(named_weights(model))
        return {
            name: SCORES[score](
                sparse[name].values() if sparse else model.get_parameter(name).detach().view(-1)
            )
            for name in positions
        }
    dense = densify(copied(model)) if is_sparse(model) else model
    criterion: Callable[..., Any] = score
    further = {"count": count} if getattr(score, "iterative", False) else {}
    scores = require_mapping(
        "score", criterion(dense, shapes, **further), "a function that gives {weight name: scores}"
    )
    given = {name: tuple(own.shape) for name, own in scores.items()}
    if given != shapes:
        raise RegrowValueError(f"`score` must give one tensor for each of {shapes}, got {given}")
    return {name: scores[name].reshape(-1)[own.to(scores[name].device)] for name, own in positions.items()}
