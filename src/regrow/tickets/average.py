"""The average of networks of different topologies, and pruning it back.

Everything here works on the positions and values of the connections, so that time and memory follow the union of
the connections, whatever the storage.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regrow.arguments import (
    require_choice,
    require_count,
    require_fraction,
    require_model,
    require_models,
    require_numbers,
)
from regrow.errors import RegrowValueError
from regrow.sparsity.distributions import whole_share
from regrow.tickets.copying import copied
from regrow.tickets.keeping import Budget, best
from regrow.weights.views import named_weights, unwrapped

DIVIDE = ("tickets", "holders")
SCOPES = ("global", "layer")


@dataclass(frozen=True)
class Connections:
    """The connections of one averaged weight."""

    positions: Tensor
    """Ascending flat positions in the dense shape, int64 [n]."""
    values: Tensor
    """[n], in float32 or better."""
    held: Tensor | None = None
    """[n], the share of the tickets that hold each connection; None where nobody asks."""

    def at(self, chosen: Tensor) -> Connections:
        """Return those with the indices `chosen` [m], ascending."""
        held = None if self.held is None else self.held[chosen]
        return Connections(self.positions[chosen], self.values[chosen], held)


@dataclass(frozen=True)
class Average:
    """What is averaged of a network: its connections by weight, all its other tensors by name."""

    sparse: dict[str, Connections]
    dense: dict[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module, divide: str = "tickets") -> Average:
        """Return the average of `model` alone (copies)."""
        sparse = {}
        for name, weight in named_weights(model):
            values = _exact(weight.values())
            held = torch.ones_like(values) if divide == "holders" else None
            sparse[name] = Connections(weight.positions(), values, held)
        return cls(sparse, {name: _exact(tensor.detach().clone()) for name, tensor in _dense(model)})

    def into(self, model: nn.Module) -> nn.Module:
        """Write this into `model`, of the same architecture. Returns `model`."""
        for name, weight in named_weights(model):
            weight.assign(self.sparse[name].positions, self.sparse[name].values)
        with torch.no_grad():
            for name, tensor in _dense(model):
                tensor.copy_(self.dense[name])
        return model

    def with_buffers_of(self, model: nn.Module) -> Average:
        """Return this with the buffers of `model` (batch-norm statistics that were estimated again) in the place of
        its own.
        """
        buffers = {name: _exact(b.clone()) for name, b in model.named_buffers() if name in self.dense}
        return Average(self.sparse, self.dense | buffers)

    def pruned(self, budget: Budget) -> Average:
        """Return what is left of it after pruning back to `budget`; see `prune_back`."""
        chosen = _largest(self.sparse, budget)
        return Average({name: own.at(chosen[name]) for name, own in self.sparse.items()}, self.dense)

    def count(self) -> int:
        """Return the connections of all sparse weights together."""
        return sum(len(own.positions) for own in self.sparse.values())

    def state_dict(self) -> dict[str, Any]:
        """Return the tensors by name, as `torch.load(weights_only=True)` reads them."""
        sparse = {name: vars(own).copy() for name, own in self.sparse.items()}
        return {"sparse": sparse, "dense": dict(self.dense)}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any], model: nn.Module) -> Average:
        """Return what `state_dict` gave, on the devices of `model`.

        Raises:
            RegrowValueError: a state of another architecture.
        """
        weights, dense = dict(named_weights(model)), dict(_dense(model))
        if state["sparse"].keys() != weights.keys() or state["dense"].keys() != dense.keys():
            strange = (state["sparse"].keys() | state["dense"].keys()) ^ (weights.keys() | dense.keys())
            raise RegrowValueError(f"`state` is of another architecture: {sorted(strange)} differ")
        sparse = {}
        for name, own in state["sparse"].items():
            device = weights[name].parameter.device
            held = None if own["held"] is None else own["held"].to(device)
            sparse[name] = Connections(own["positions"].to(device), own["values"].to(device), held)
        return cls(sparse, {name: tensor.to(dense[name].device) for name, tensor in state["dense"].items()})


def superpose(
    models: Sequence[nn.Module], factors: Sequence[float] | None = None, *, divide: str = "tickets"
) -> nn.Module:
    """Return the average of several networks of one architecture, on the union of their connections; not pruned yet.

    A connection that a network does not have counts as 0 there. Dense parameters and floating-point buffers are
    averaged too, shared ones once; other buffers (counters) are those of the last network.

    Args:
        models: networks, each with a topology and a storage of its own.
        factors: of each network, positive, in any unit; None is the mean, which Sup-tickets calls connection-aware
            averaging.
        divide: ``"tickets"`` divides by all networks, as the published code does; ``"holders"`` averages each
            connection over the networks that have it.

    Returns:
        A new network in the storage of the last one, in evaluation mode. It shares no memory with any of them. Its
        batch-norm statistics are those of no network: see `reestimate`.

    Raises:
        RegrowValueError: no network, networks of different architectures, factors that do not fit.
    """
    models = require_models("models", models)
    require_choice("divide", divide, DIVIDE)
    if factors is None:
        factors = [1.0] * len(models)
    factors = require_numbers("factors", factors, count=len(models))
    check_alike(models)
    refuse_patterns("models", models)
    average = Average.of(models[0], divide)
    total = factors[0]
    for model, factor in zip(models[1:], factors[1:], strict=True):
        total += factor
        average = blend(average, Average.of(model, divide), factor / total, divide)
    return average.into(copied(models[-1]))


def prune_back(
    model: nn.Module,
    connections: int | Mapping[str, int] | None = None,
    *,
    density: float | None = None,
    scope: str = "global",
) -> nn.Module:
    """Keep exactly as many connections of `model` as asked for, those with the largest magnitude, in place.

    Ties go to the earlier layer, then to the lower position. A connection of value 0 is one like any other.

    Args:
        model: a sparse network that no method drives.
        connections: how many; with ``scope="layer"`` ``{weight name: how many}``.
        density: instead, their share of all positions of the sparse weights, in [0, 1], rounded down.
        scope: ``"global"`` takes one threshold for all sparse weights together, as Sup-tickets' published code does,
            so that the densities of the layers change; ``"layer"`` one for each.

    Returns:
        `model`.

    Raises:
        RegrowValueError: more connections than there are, or an argument that is not allowed.
    """
    require_model("model", model)
    refuse_patterns("model", [model])
    sparse = {name: Connections(w.positions(), _exact(w.values())) for name, w in named_weights(model)}
    chosen = _largest(sparse, _budget(model, connections, density, scope))
    for name, weight in named_weights(model):
        own = sparse[name].at(chosen[name])
        weight.assign(own.positions, own.values)
        weight.record.asked = weight.density
    return model


def blend(average: Average, ticket: Average, factor: float, divide: str = "tickets") -> Average:
    """Return ``(1 - factor) average + factor ticket``; with ``divide="holders"`` over the share that holds each
    connection.
    """
    sparse = {name: _blend(average.sparse[name], own, factor, divide) for name, own in ticket.sparse.items()}
    dense = {}
    for name, newest in ticket.dense.items():
        before = average.dense[name]
        constant = not newest.is_floating_point() or torch.equal(before, newest)  # counters, masks of -inf
        dense[name] = newest if constant else (1 - factor) * before + factor * newest
    return Average(sparse, dense)


def _blend(average: Connections, ticket: Connections, factor: float, divide: str) -> Connections:
    positions, here, there = union(average.positions, ticket.positions)

    def added(before: Tensor, newest: Tensor) -> Tensor:
        result = before.new_zeros(len(positions))
        result[here] = before * (1 - factor)
        result[there] += newest * factor
        return result

    if divide == "tickets" or average.held is None or ticket.held is None:
        return Connections(positions, added(average.values, ticket.values))
    held = added(average.held, ticket.held)
    total = added(average.held * average.values, ticket.held * ticket.values)
    return Connections(positions, total / held, held)


def union(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the ascending union of two ascending lists of positions, and where the entries of each lie in it."""
    both = torch.cat([first, second]).unique()
    return both, torch.searchsorted(both, first), torch.searchsorted(both, second)


def _largest(sparse: Mapping[str, Connections], budget: Budget) -> dict[str, Tensor]:
    """Return which connections of each weight `budget` keeps: indices, ascending."""
    return best({name: own.values.abs() for name, own in sparse.items()}, budget, "an averaged weight")


def _budget(
    model: nn.Module, connections: int | Mapping[str, int] | None, density: float | None, scope: str
) -> Budget:
    require_choice("scope", scope, SCOPES)
    if (connections is None) == (density is None):
        raise RegrowValueError("give either `connections` or `density`, and not both")
    sizes = {name: weight.numel for name, weight in named_weights(model)}
    if density is not None:
        share = require_fraction("density", density, one=True)
        if scope == "layer":
            return {name: whole_share(share, size) for name, size in sizes.items()}
        return whole_share(share, sum(sizes.values()))
    if scope == "global":
        return require_count("connections", connections, least=0)
    if not isinstance(connections, Mapping) or connections.keys() != sizes.keys():
        raise RegrowValueError(
            f"`connections` must be a number for each of {sorted(sizes)} with scope='layer', got {connections!r}"
        )
    return {name: require_count(f"connections[{name!r}]", connections[name], least=0) for name in sizes}


def check_alike(models: Sequence[nn.Module]) -> None:
    """Refuse networks of different architectures.

    Raises:
        RegrowValueError: naming the first tensor that differs.
    """
    first = _shapes(models[0])
    for place, model in enumerate(models[1:], 1):
        shapes = _shapes(model)
        for name in [*first, *shapes]:
            if first.get(name) != shapes.get(name):
                raise RegrowValueError(
                    f"`models` must be of one architecture, but `{name}` is {first.get(name, 'absent')} in the first "
                    f"and {shapes.get(name, 'absent')} in number {place + 1}"
                )


def _shapes(model: nn.Module) -> dict[str, str]:
    """Return what each tensor of `model` is, by name, whatever its storage."""
    sparse = {name: f"sparse, {tuple(weight.shape)}" for name, weight in named_weights(model)}
    return sparse | {name: f"dense, {tuple(tensor.shape)}" for name, tensor in _dense(model)}


def _dense(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield names and tensors, shared ones once, of all parameters and buffers that are not part of a sparse weight."""
    model = unwrapped(model)
    weights = [weight for _, weight in named_weights(model)]
    own = {id(weight.parameter) for weight in weights}
    own |= {id(tensor) for weight in weights for tensor in weight.topology.values()}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if id(tensor) not in own:
            yield name, tensor


def _exact(tensor: Tensor) -> Tensor:
    """Convert floating point to float32 or better: in bfloat16 an average would lose what tickets differ in."""
    if not tensor.is_floating_point():
        return tensor
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def refuse_patterns(argument: str, models: Iterable[nn.Module]) -> None:
    """Refuse networks whose weights have a pattern: the largest of a union of topologies do not keep to it.

    Raises:
        RegrowValueError: naming the first such weight.
    """
    for model in models:
        for name, weight in named_weights(model):
            if weight.record.pattern is not None:
                raise RegrowValueError(
                    f"`{argument}`: `{name}` has the pattern {weight.record.pattern}, which pruning by magnitude would "
                    "break.\nMake the network sparse without `pattern`, or take an ensemble of its tickets."
                )
