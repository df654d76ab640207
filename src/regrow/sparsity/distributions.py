"""How many connections each layer gets: the distribution.

It is a function ``(shapes, sparsity) -> {layer: sparsity}``. The built-in ones follow RigL
(arXiv 1911.11134, section 3) and its reference code: sum and product of the weight's whole shape for
Erdos-Renyi-Kernel, of its two channel dimensions for Erdos-Renyi.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from regrow.arguments import (
    number,
    require_choice,
    require_count,
    require_fraction,
    require_function,
    require_mapping,
    require_sequence,
    said,
)
from regrow.errors import RegrowValueError

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Distribution = Callable[[Shapes, float], Mapping[str, float]]


def whole_share(fraction: float, count: int, *, up: bool = False) -> int:
    """Return ``floor(fraction * count)``, the product rounded to 6 digits first; `up` rounds it up instead.

    0.29 * 100 is 28.999999999999996 in floating point and 0.1 * 30 is 3.0000000000000004.
    """
    product = round(fraction * count, 6)
    return math.ceil(product) if up else math.floor(product)


def connections(shape: Shape, sparsity: float) -> int:
    """Return the exact number of active connections: ``N - floor(sparsity * N)`` for a weight of N positions."""
    size = math.prod(require_shape("shape", shape))
    return size - whole_share(require_fraction("sparsity", sparsity, one=True), size)


def require_shape(name: str, shape: object) -> Shape:
    """Return `shape`, sizes of at least 1, as a tuple.

    Raises:
        RegrowValueError: naming the argument, what was given and what is allowed.
    """
    sizes = require_sequence(name, shape, "a shape, a tuple of sizes")
    return tuple(require_count(name, size) for size in sizes)


def _require_shapes(shapes: object) -> dict[str, Shape]:
    given = require_mapping("shapes", shapes, "a dictionary {weight name: shape}")
    return {name: require_shape("shapes", shape) for name, shape in given.items()}


def uniform(shapes: Shapes, sparsity: float) -> dict[str, float]:
    """Return the same sparsity everywhere (`sparsify` leaves the model's first layer dense beside it)."""
    return dict.fromkeys(_require_shapes(shapes), require_fraction("sparsity", sparsity))


def er(shapes: Shapes, sparsity: float) -> dict[str, float]:
    """Apply Erdos-Renyi: density proportional to ``(n_in + n_out) / (n_in * n_out)`` (SET, arXiv 1707.04780)."""
    shapes = _require_shapes(shapes)
    return _erdos_renyi({name: sum(s[:2]) / math.prod(s[:2]) for name, s in shapes.items()}, shapes, sparsity)


def erk(shapes: Shapes, sparsity: float) -> dict[str, float]:
    """Apply Erdos-Renyi-Kernel: density proportional to ``sum(shape) / prod(shape)`` (RigL, section 3)."""
    shapes = _require_shapes(shapes)
    return _erdos_renyi({name: sum(s) / math.prod(s) for name, s in shapes.items()}, shapes, sparsity)


def _erdos_renyi(raw: Mapping[str, float], shapes: Shapes, sparsity: float) -> dict[str, float]:
    """Solve ``sum(min(1, eps * raw) * N) = (1 - sparsity) * sum(N)``; what is capped stays at density 1."""
    require_fraction("sparsity", sparsity)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    budget = sum(connections(shape, sparsity) for shape in shapes.values())
    capped: set[str] = set()
    while len(capped) < len(raw):
        rest = [name for name in raw if name not in capped]
        eps = (budget - sum(sizes[name] for name in capped)) / sum(raw[name] * sizes[name] for name in rest)
        over = {name for name in rest if eps * raw[name] > 1}
        if not over:
            return {name: 0.0 if name in capped else 1 - eps * raw[name] for name in raw}
        capped |= over
    return dict.fromkeys(raw, 0.0)


DISTRIBUTIONS: dict[str, Distribution] = {"uniform": uniform, "er": er, "erk": erk}
GLOBAL = "global"
"""The name of what is not a distribution: the best of all layers together, by scores (`regrow.sparsity.initial`)."""


def require_distribution(distribution: object, others: Sequence[str] = (), *, own: bool = True) -> None:
    """Refuse what is not a distribution: a name, a function, or (`own`) a dictionary.

    Raises:
        RegrowValueError: naming the argument, what was given and what is allowed.
    """
    if own and isinstance(distribution, Mapping):
        if not require_mapping("distribution", distribution, "a dictionary {glob of layer names: sparsity}"):
            raise RegrowValueError("`distribution` is an empty dictionary, it must name one layer or more")
    elif callable(distribution):
        require_function("distribution", distribution, "shapes", "sparsity")
    elif distribution not in others if isinstance(distribution, str) else True:
        rest = ", a function of the shapes or a dictionary"
        require_choice("distribution", distribution, (*DISTRIBUTIONS, *others), others=rest)


def distribute(
    distribution: str | Distribution, shapes: Shapes, sparsity: float, *, others: Sequence[str] = ()
) -> dict[str, float]:
    """Return the sparsity of each layer, checked.

    Args:
        distribution: a name in `DISTRIBUTIONS` or a function ``(shapes, sparsity) -> {layer: sparsity}``.
        shapes: the dense shape of each layer's weight.
        sparsity: the overall sparsity asked for, in [0, 1).
        others: further names that the caller knows, for messages.

    Raises:
        RegrowValueError: for an unknown name, a layer left out or unknown, or a sparsity outside [0, 1).
    """
    shapes, sparsity = _require_shapes(shapes), require_fraction("sparsity", sparsity)
    require_distribution(distribution, others, own=False)
    if isinstance(distribution, str):
        distribution = DISTRIBUTIONS[distribution]
    found = distribution(dict(shapes), sparsity)
    result = dict(require_mapping("distribution", found, "a function that gives {weight name: sparsity}"))
    if result.keys() != shapes.keys():
        wrong = sorted(result.keys() ^ shapes.keys())
        raise RegrowValueError(
            f"`distribution` cannot be met: it must give one sparsity for each of {sorted(shapes)}, "
            f"but these are missing or unknown: {wrong}"
        )
    for name, value in result.items():
        if (plain := number(value)) is None:
            raise RegrowValueError(
                f"`distribution` must be a function that gives numbers, got {said(value)} for `{name}`"
            )
        result[name] = value = float(plain)
        if not 0 <= value < 1 or connections(shapes[name], value) == 0:
            raise RegrowValueError(
                f"`distribution` cannot be met: layer `{name}` of shape {tuple(shapes[name])} would get sparsity "
                f"{value:g}, allowed is [0, 1) with at least one connection"
            )
    return result
