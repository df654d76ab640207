"""Which connections each layer starts with: how many, by a distribution, and which, by chance or by a criterion."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from regrow._random import generator, sample
from regrow.arguments import (
    require_choice,
    require_fraction,
    require_function,
    require_mapping,
    require_model,
    require_tensor,
    said,
)
from regrow.errors import RegrowValueError, warn
from regrow.ops.csr import are_positions
from regrow.ops.select import top
from regrow.sparsity import distributions
from regrow.sparsity.layers import Layer, find_layers
from regrow.sparsity.meta import is_on_meta
from regrow.sparsity.selecting import Selector, choose, in_distribution
from regrow.weights.patterns import Pattern, require_held

Criterion = Callable[[nn.Module, Mapping[str, tuple[int, ...]]], Mapping[str, Tensor]]
"""Scores for an initial topology: ``(model, {weight: shape}) -> {weight: scores of that shape}``."""
NAMES = ("random", "magnitude")


def initial_topology(
    model: nn.Module,
    chosen: list[Layer],
    shapes: dict[str, tuple[int, ...]],
    sparsity: float | None,
    distribution: str | distributions.Distribution | Mapping[str, float],
    init: str | Mapping[str, Tensor] | Criterion,
    seed: int,
    gates: Mapping[str, int],
    pattern: Pattern | None = None,
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Return the density asked for and initial positions of each chosen weight, with so many `gates` apart, or with a
    `pattern`.
    """
    if pattern is not None:
        _check_pattern(pattern, chosen, gates)
    says_all = isinstance(distribution, Mapping) or isinstance(init, Mapping)
    fixed = pattern is not None and pattern.density is not None and not isinstance(init, Mapping)
    if says_all != (sparsity is None) and not fixed:
        what = (
            "a dictionary as `distribution` or `init` says everything itself"
            if says_all
            else "it must be in [0, 1)"
        )
        raise RegrowValueError(f"`sparsity` is {sparsity}, but {what}")
    if isinstance(init, Mapping):
        positions = _own_masks(init, shapes)
        if pattern is not None:
            for name, own in positions.items():
                require_held(f"init[{name!r}]", pattern, shapes[name], own)
        return {name: len(p) / math.prod(shapes[name]) for name, p in positions.items()}, positions
    if pattern is not None and fixed:
        sparsities = _of_pattern(pattern, chosen, sparsity, distribution)
    elif distribution == distributions.GLOBAL:
        count = distributions.connections(
            (sum(math.prod(_units(pattern, shape)) for shape in shapes.values()),),
            require_fraction("sparsity", sparsity),
        )
        scores = _scores(model, chosen, shapes, init, count * _unit(pattern))
        best = _best_of_all(scores, count, pattern)
        return {name: len(p) / math.prod(shapes[name]) for name, p in best.items()}, best
    else:
        sparsities = _sparsities(chosen, shapes, sparsity, distribution, (distributions.GLOBAL,))
    counts = {
        name: distributions.connections(_units(pattern, shapes[name]), s) for name, s in sparsities.items()
    }
    return {name: 1 - s for name, s in sparsities.items()}, _initial(
        model, chosen, shapes, counts, init, seed, gates, pattern
    )


def _units(pattern: Pattern | None, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of what the connections of a weight are counted in."""
    return shape if pattern is None else pattern.units(shape)


def _unit(pattern: Pattern | None) -> int:
    """Return how many connections one of them has."""
    return 1 if pattern is None else pattern.size


def _check_pattern(pattern: Pattern, chosen: Sequence[Layer], gates: Mapping[str, int]) -> None:
    """Refuse a pattern that a chosen weight cannot have."""
    for layer in chosen:
        why = pattern.why_not(layer.shape)
        if layer.is_transposed:
            why = f"{type(layer.module).__name__} has its inputs first"
        if gates[layer.weight_name] > 1:
            why = "its gates are apart"
        if why is not None:
            raise RegrowValueError(
                f"`pattern` is {pattern}, but `{layer.weight_name}` of shape {layer.shape} cannot have it: {why}.\n"
                "Leave it dense with `exclude`, or make it sparse without a pattern by a call of its own, with "
                "`include`."
            )


def _of_pattern(
    pattern: Pattern,
    chosen: list[Layer],
    sparsity: float | None,
    distribution: str | distributions.Distribution | Mapping[str, float],
) -> dict[str, float]:
    """Return the sparsity that a pattern gives each weight; refuse to be asked for another."""
    assert pattern.density is not None
    own = 1 - pattern.density
    asked = {} if sparsity is None else {"sparsity": require_fraction("sparsity", sparsity)}
    if isinstance(distribution, Mapping):
        asked |= {f"distribution of `{name}`": s for name, s in _by_glob(distribution, chosen).items()}
    elif distribution not in ("erk", "uniform"):  # the default, and what it comes to
        raise RegrowValueError(
            f"`pattern` {pattern} gives every weight the same density, got distribution {said(distribution)}\n"
            "Leave `distribution` out."
        )
    for what, value in asked.items():
        if abs(value - own) > 1e-6:
            raise RegrowValueError(
                f"`pattern` {pattern} gives every weight the sparsity {own:g}, got {value:g} as {what}\n"
                "Leave `sparsity` and `distribution` out."
            )
    return {layer.weight_name: own for layer in chosen}


def require_init(init: object) -> str | Mapping[str, Tensor] | Criterion:
    """Return `init` of `sparsify`; None is ``"random"``.

    Raises:
        RegrowValueError: naming the argument, what was given and what is allowed.
    """
    if init is None:
        return NAMES[0]
    if isinstance(init, Mapping):
        for name, mask in require_mapping("init", init, "a dictionary {weight name: mask}").items():
            require_tensor(f"init[{name!r}]", mask)
        return init
    if callable(init):
        return require_function("init", init, "model", "shapes")
    return require_choice("init", init, NAMES, others=", masks or a criterion")


def _sparsities(
    chosen: list[Layer],
    shapes: dict[str, tuple[int, ...]],
    sparsity: float | None,
    distribution: str | distributions.Distribution | Mapping[str, float],
    others: tuple[str, ...] = (),
) -> dict[str, float]:
    if isinstance(distribution, Mapping):
        return _by_glob(distribution, chosen)
    return distributions.distribute(
        distribution, shapes, require_fraction("sparsity", sparsity), others=others
    )


def asked_sparsities(
    model: nn.Module,
    sparsity: float | None = None,
    distribution: str | distributions.Distribution | Mapping[str, float] = "erk",
    *,
    include: Selector | None = None,
    exclude: Selector | None = None,
) -> dict[str, float]:
    """Return the sparsity that `sparsify` with these arguments would ask of each weight, by its name; nothing is
    changed.

    Works on the meta device. Weights that would stay dense are left out.

    Raises:
        RegrowValueError: as `sparsify` does.
    """
    layers = find_layers(require_model("model", model))
    distributions.require_distribution(distribution, (distributions.GLOBAL,))
    reasons = {layer.weight_name: layer.dense_because for layer in layers}
    chosen = choose(model, layers, include, exclude, distribution, reasons)
    if isinstance(distribution, Mapping) != (sparsity is None):
        raise RegrowValueError(
            f"`sparsity` is {sparsity}, allowed is [0, 1), and only beside a named distribution"
        )
    if distribution == distributions.GLOBAL:
        raise RegrowValueError(
            "`distribution` 'global' leaves it to the weights' values how sparse each layer is, which is not known "
            f"without them.\nGive one of {', '.join(distributions.DISTRIBUTIONS)}."
        )
    return _sparsities(chosen, {layer.weight_name: layer.shape for layer in chosen}, sparsity, distribution)


def _by_glob(distribution: Mapping[str, float], chosen: list[Layer]) -> dict[str, float]:
    """Return the sparsity of each chosen weight by the first glob that matches it."""
    result: dict[str, float] = {}
    for glob, value in distribution.items():
        value = require_fraction(f"distribution[{glob!r}]", value)
        for name in in_distribution(glob, chosen):
            result.setdefault(name, value)
    return result


def _initial(
    model: nn.Module,
    chosen: list[Layer],
    shapes: dict[str, tuple[int, ...]],
    counts: dict[str, int],
    init: str | Criterion,
    seed: int,
    gates: Mapping[str, int],
    pattern: Pattern | None,
) -> dict[str, Tensor]:
    shares = {name: _shares(name, count, gates[name]) for name, count in counts.items()}
    if init == "random":
        return {
            layer.weight_name: _random(layer, shares[layer.weight_name], seed, pattern) for layer in chosen
        }
    scores = _scores(model, chosen, shapes, init, sum(counts.values()) * _unit(pattern))
    if not getattr(init, "per_layer", True):
        return _best_of_all(scores, sum(counts.values()), pattern)
    return {name: _best_of_each(scores[name], own, pattern) for name, own in shares.items()}


def _shares(name: str, count: int, gates: int) -> list[int]:
    """Share `count` connections evenly among the gates of a weight; the first ones get what remains."""
    if count < gates:
        raise RegrowValueError(
            f"`gates` is 'apart', but `{name}` would get {count} connections for {gates} gates, allowed is at least "
            "one for each\nGive a lower sparsity, or gates='together'."
        )
    return [count // gates + (gate < count % gates) for gate in range(gates)]


def _random(layer: Layer, shares: list[int], seed: int, pattern: Pattern | None) -> Tensor:
    """Draw so many positions of each gate of a layer's weight, or as many with a `pattern`."""
    if pattern is not None:
        own = generator(seed, "topology", layer.weight_name)
        return pattern.draw(layer.shape, sum(shares), own).to(_home(layer))
    size = math.prod(layer.shape) // len(shares)
    drawn = []
    for gate, count in enumerate(shares):
        own = generator(seed, "topology", layer.weight_name, *([gate] if len(shares) > 1 else []))
        drawn.append(sample(count, size, own).add_(gate * size))
    return torch.cat(drawn).to(_home(layer))


def _best_of_each(scores: Tensor, shares: list[int], pattern: Pattern | None) -> Tensor:
    """Find the positions with so many of the best scores of each gate, or with as many and a `pattern`."""
    if pattern is not None:
        return pattern.best(scores, sum(shares))
    of_gates = scores.reshape(len(shares), -1)
    found = [top(own, count) for own, count in zip(of_gates, shares, strict=True)]
    return torch.cat([own.add_(gate * of_gates.shape[1]) for gate, own in enumerate(found)])


def _scores(
    model: nn.Module,
    chosen: list[Layer],
    shapes: dict[str, tuple[int, ...]],
    init: str | Criterion,
    count: int,
) -> dict[str, Tensor]:
    """Score each chosen weight, in the order of `shapes`, of which `count` connections are to be kept."""
    if init == "random":
        raise RegrowValueError(
            "`distribution` 'global' keeps the best connections of all layers together, but `init` is 'random', which "
            "has no scores.\nGive init='magnitude' or a criterion such as regrow.SNIP, or another distribution: "
            f"{', '.join(distributions.DISTRIBUTIONS)}."
        )
    if is_on_meta(model):
        raise RegrowValueError(
            f"`init` is {init!r}, but `model` is on the meta device, without weights to score.\n"
            "Use init='random' or masks of your own, or call its to_empty(device=...) and initialise it first."
        )
    if init == "magnitude":
        scores: Mapping[str, Tensor] = {layer.weight_name: layer.parameter.detach().abs() for layer in chosen}
    else:
        assert not isinstance(init, str)
        score: Callable[..., object] = init
        further = {"count": count} if getattr(init, "iterative", False) else {}
        scores = require_mapping(
            "init", score(model, shapes, **further), "a function that gives {weight name: scores}"
        )
        for name, own in scores.items():
            require_tensor(f"init[{name!r}]", own)
    _check_shapes("init", scores, shapes)
    return {name: scores[name] for name in shapes}


def _best_of_all(
    scores: Mapping[str, Tensor], count: int, pattern: Pattern | None = None
) -> dict[str, Tensor]:
    """Find the `count` best positions of all layers together; returns those of each.

    With a `pattern`, they are units of it, and say how many each layer has; which, the pattern.
    """
    flat = {name: (own if pattern is None else pattern.pool(own)).reshape(-1) for name, own in scores.items()}
    device = next(iter(flat.values())).device
    chosen = top(torch.cat([own.to(device) for own in flat.values()]), count)
    positions, start = {}, 0
    for name, own in flat.items():
        inside = chosen[(chosen >= start) & (chosen < start + len(own))] - start
        positions[name], start = inside.to(own.device), start + len(own)
    empty = [name for name, inside in positions.items() if len(inside) == 0]
    if empty:
        warn(f"the criterion leaves no connection at all in {empty}")
    if pattern is None:
        return positions
    return {name: pattern.best(scores[name], len(inside)) for name, inside in positions.items()}


def _home(layer: Layer) -> torch.device:
    """Return where the layer's weight is, or will be."""
    return torch.device("cpu") if layer.parameter.is_meta else layer.parameter.device


def _own_masks(masks: Mapping[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return the positions of the connections, from masks, or from positions themselves."""
    listed = {name for name, mask in masks.items() if mask.dtype == torch.int64 and name in shapes}
    _check_shapes(
        "init",
        {name: mask for name, mask in masks.items() if name not in listed},
        {name: shape for name, shape in shapes.items() if name not in listed},
    )
    for name, mask in masks.items():
        size = math.prod(shapes[name])
        some = mask.numel() > 0 if name in listed else bool(mask.any())
        if not some or not (mask.dtype == torch.bool or are_positions(mask, size)):
            raise RegrowValueError(
                f"`init[{name!r}]` must be a boolean mask with a connection, or ascending positions in [0, {size}), "
                f"got {mask.dtype}"
            )
    return {n: masks[n] if n in listed else masks[n].reshape(-1).nonzero().view(-1) for n in shapes}


def _check_shapes(
    argument: str, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if given != dict(shapes):
        raise RegrowValueError(f"`{argument}` must give one tensor for each of {dict(shapes)}, got {given}")
