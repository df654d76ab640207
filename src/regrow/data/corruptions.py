"""Images under the common corruptions of Hendrycks and Dietterich (arXiv 1903.12261), at five severities.

Images whose shorter side has up to 64 pixels get the parameters of CIFAR-C, larger ones those of ImageNet-C, in
pixels as published, except where the published code itself takes shares of the side (pixelate, elastic_transform).
Departures:

- The random numbers are regrow's own; frost is missing (`MISSING`).
- Grey images stay grey: noise is one value a pixel where the published code, which makes all images RGB, would give
  three different ones; jpeg_compression writes a grey JPEG.
- ImageNet-C was at last saved as JPEG of quality 85; nothing is here.
- glass_blur copies a neighbour to each pixel, which is what the published code does to RGB images, although it
  reads as if it exchanged the two.
- Images need not be square: sides are treated alike, each with its own length.

A higher severity does not always change the pixels more, in the published parameters as here: elastic_transform and
glass_blur exchange one kind of distortion for another, motion_blur 3 and 4 of CIFAR-C differ in what is cut off only,
snow 3 and fog 3 of ImageNet-C are no brighter than 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from regrow._random import generator
from regrow.arguments import require_count, require_seed
from regrow.data.corruption_formulas import FORMULAS, Draws, to_bytes
from regrow.data.corruption_tables import LARGE, SMALL
from regrow.errors import RegrowValueError, closest

CORRUPTIONS: dict[str, str] = {
    "gaussian_noise": "noise",
    "shot_noise": "noise",
    "impulse_noise": "noise",
    "defocus_blur": "blur",
    "glass_blur": "blur",
    "motion_blur": "blur",
    "zoom_blur": "blur",
    "snow": "weather",
    "frost": "weather",
    "fog": "weather",
    "brightness": "weather",
    "contrast": "digital",
    "elastic_transform": "digital",
    "pixelate": "digital",
    "jpeg_compression": "digital",
}
"""The group of each corruption by name, in the published order."""

MISSING: dict[str, str] = {"frost": "it lays photographs of frost over the image, and regrow has none"}
"""Corruptions of that list that regrow cannot compute, and why."""

SEVERITIES = (1, 2, 3, 4, 5)
LARGEST_SMALL = 64
"""Images whose shorter side is longer have ImageNet-C's parameters."""
SMALLEST = 8
_VALUES = 2**19
"""So many values are worked on at a time: some megabytes in float64."""


def corrupt(images: Tensor, name: str, severity: int, seed: int = 0, *, start: int = 0) -> Tensor:
    """Apply one corruption to `images`: a pure function of the arguments, image by image.

    Each image has random numbers of its own, decided by `seed`, `name`, `severity` and its place, so that parts of a
    set, each with its `start`, are corrupted as the whole is. The work is done on the CPU, in float64.

    Args:
        images: uint8 [N, C, H, W], C being 1 (grey) or 3 (RGB), sides of at least 8 pixels.
        name: one of `CORRUPTIONS` that is not in `MISSING`.
        severity: 1 (mild) to 5.
        seed: of the random numbers.
        start: the place of the first image in its set.

    Returns:
        uint8 [N, C, H, W], on the device of `images`, which stay as they are.

    Raises:
        RegrowValueError: for another name, severity, dtype, shape, seed or start.
    """
    _check_images(images)
    severity = _check(name, severity)
    seed, start = require_seed("seed", seed), require_count("start", start, least=0)
    table = SMALL if min(images.shape[2:]) <= LARGEST_SMALL else LARGE
    parameters = table[name][severity - 1]
    out = torch.empty_like(images, memory_format=torch.contiguous_format)
    size = max(1, _VALUES // images[0].numel()) if len(images) else 1
    for first in range(0, len(images), size):
        some = images[first : first + size]
        places = range(start + first, start + first + len(some))
        draws = Draws([generator(seed, "corruption", name, severity, place) for place in places])
        changed = FORMULAS[name](some.cpu().double().div_(255), draws, *parameters)
        out[first : first + size] = to_bytes(changed)
    return out


def corrupted(
    images: Tensor,
    severities: Iterable[int] = SEVERITIES,
    names: Iterable[str] | None = None,
    seed: int = 0,
    *,
    start: int = 0,
) -> Iterator[tuple[str, int, Tensor]]:
    """Yield ``(name, severity, images)`` for each corruption at each severity, made when asked for.

    Args:
        images, seed, start: as for `corrupt`.
        severities: which, in this order.
        names: which, in this order. Default: all that regrow can compute.

    Raises:
        RegrowValueError: as `corrupt`, at once; and for no name or no severity.
    """
    chosen = _list("names", [name for name in CORRUPTIONS if name not in MISSING] if names is None else names)
    levels = _list("severities", severities)
    _check_images(images)
    for name in chosen:
        levels = [_check(name, severity) for severity in levels]
    seed, start = require_seed("seed", seed), require_count("start", start, least=0)
    pairs = [(name, severity) for name in chosen for severity in levels]
    return ((name, level, corrupt(images, name, level, seed, start=start)) for name, level in pairs)


def _list(argument: str, given: object) -> list[Any]:
    """Return `given` as a list that is not empty; a word is not taken for its letters."""
    values = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else []
    if not values:
        raise RegrowValueError(f"`{argument}` must be a list of at least one, got {given!r}")
    return values


def _check(name: object, severity: object) -> int:
    """Return `severity` if it is one; also refuse what is not a corruption or cannot be computed."""
    if not isinstance(name, str) or name not in CORRUPTIONS:
        raise RegrowValueError(
            f"`name` must be a corruption, got {name!r}{closest(str(name), CORRUPTIONS)}\n"
            f"Known are: {', '.join(CORRUPTIONS)}."
        )
    if (why := MISSING.get(name)) is not None:
        raise RegrowValueError(f"`name` must be a corruption that regrow can compute, not {name!r}: {why}")
    return require_count("severity", severity, most=5)


def _check_images(images: object) -> None:
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        got = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise RegrowValueError(f"`images` must be a tensor of bytes, torch.uint8, got {got}")
    if images.dim() != 4 or images.shape[1] not in (1, 3) or min(images.shape[2:]) < SMALLEST:
        raise RegrowValueError(
            f"`images` must be of shape [N, C, H, W], C 1 (grey) or 3 (RGB), H and W at least {SMALLEST}, "
            f"got {list(images.shape)}"
        )
