"""Small-Dense: the width at which a dense network takes the memory of a sparse one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import nn

from regrow.accounting import stored_size
from regrow.accounting.units import CONVENTIONS
from regrow.arguments import require_choice, require_positive, said
from regrow.errors import RegrowValueError

STEPS = 1000


def small_dense(build: Callable[..., nn.Module], size_megabytes: float, convention: str = "clean") -> float:
    """Return the width, to three digits, whose stored size is closest to `size_megabytes`.

    Compare with the size of the sparse network that `regrow.costs` gives: the masks' bits are in it.

    Args:
        build: a function with an argument ``width`` that returns a dense network, any of those here or your own;
            it is called on the meta device where that works, with other options at their defaults
            (`functools.partial` sets them).
        size_megabytes: the size to match, below that of width 1.
        convention: of `regrow.costs`; it matters for depthwise kernels.

    Raises:
        RegrowValueError: a size that no width below 1 has, or a `build` without ``width``.

    Example:
        >>> from regrow.models import mlp
        >>> small_dense(mlp, size_megabytes=0.11)
        0.116
    """
    size_megabytes = require_positive("size_megabytes", size_megabytes)
    require_choice("convention", convention, CONVENTIONS)
    if not callable(build):
        raise RegrowValueError(f"`build` must be a function with an argument `width`, got {said(build)}")
    parameters = inspect.signature(build).parameters.values()
    if (default := _width(build)) is not inspect.Parameter.empty and not _is_factor(default):
        raise RegrowValueError(
            f"`build` must take a factor of its layers as `width`, 1.0 by default, but its default is {default!r}\n"
            "Give the argument another name where it counts channels."
        )
    if not any(p.name == "width" or p.kind is p.VAR_KEYWORD for p in parameters):
        raise RegrowValueError(
            f"`build` must take an argument `width`, but has {', '.join(p.name for p in parameters) or 'none'}"
        )

    @cache
    def size(step: int) -> float:
        try:
            model = _build(build, step / STEPS)
        except RegrowValueError:
            if step == STEPS:
                raise
            return 0.0  # no channel is left
        return stored_size(model, {}, convention)

    if size(STEPS) < size_megabytes:
        raise RegrowValueError(
            f"`size_megabytes` must be at most that of width 1, {size(STEPS):.4f}, got {size_megabytes:g}"
        )
    low, high = 0, STEPS  # size(low) < size_megabytes <= size(high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) < size_megabytes else (low, middle)
    if low and size(low) and size_megabytes - size(low) < size(high) - size_megabytes:
        return low / STEPS
    if size(high) > 2 * size_megabytes:
        raise RegrowValueError(
            f"`size_megabytes` {size_megabytes:g} is too small: the smallest width, {high / STEPS:g}, "
            f"takes {size(high):.4f}"
        )
    return high / STEPS


def scales(build: Callable[..., nn.Module]) -> bool:
    """Return whether `build` has an argument ``width`` that is a factor of its layers, 1.0 by default."""
    return _is_factor(_width(build))


def _width(build: Callable[..., nn.Module]) -> object:
    """Find the default of the argument ``width``."""
    while isinstance(build, partial):
        build = build.func
    width = inspect.signature(build).parameters.get("width")
    return inspect.Parameter.empty if width is None else width.default


def _is_factor(default: object) -> bool:
    return isinstance(default, float) or (isinstance(default, int) and default == 1)


def _build(build: Callable[..., nn.Module], width: float) -> nn.Module:
    """Return the network without memory for its weights, if it can be built so."""
    try:
        with torch.device("meta"):
            return build(width=width)
    except RegrowValueError:
        raise
    except Exception:  # the user's network cannot be built on the meta device
        return build(width=width)
