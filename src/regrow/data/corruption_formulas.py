"""The formulas of fourteen of the fifteen common corruptions (Hendrycks and Dietterich, arXiv 1903.12261).

Each is a function of images ``x`` float64 [N, C, H, W] in [0, 1], of the random numbers of these images, and of the
parameters of one severity (`regrow.data.corruption_tables`); it returns the same shape, not yet cut off at 0 and 1.
The formulas are those of the published code (repository hendrycks/robustness, ``make_cifar_c.py`` and
``make_imagenet_c.py``), with what its libraries do at the edges; units are pixels, grey levels are shares of white.
`regrow.data.corruptions` says where regrow departs from it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F


class Draws:
    """Random numbers of N images, each image from a generator of its own: [N, ...] whatever else is in the batch."""

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self.generators = generators

    def _filled(self, shape: tuple[int, ...], dtype: torch.dtype, fill: Callable[..., object]) -> Tensor:
        out = torch.empty(len(self.generators), *shape, dtype=dtype, device="cpu")
        for row, generator in zip(out, self.generators, strict=True):
            fill(row, generator=generator)
        return out

    def normal(self, *shape: int) -> Tensor:
        """Draw float64 [N, *shape] of mean 0 and deviation 1."""
        return self._filled(shape, torch.float64, Tensor.normal_)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Draw float64 [N, *shape] from [low, high)."""
        return self._filled(shape, torch.float64, Tensor.uniform_).mul_(high - low).add_(low)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Draw int64 [N, *shape] from low .. high - 1."""
        return self._filled(
            shape, torch.int64, lambda row, generator: row.random_(low, high, generator=generator)
        )

    def poisson(self, mean: Tensor) -> Tensor:
        """Draw counts, float64 [N, ...], with the means `mean` [N, ...]."""
        return torch.stack([torch.poisson(m, g) for m, g in zip(mean, self.generators, strict=True)])


def to_bytes(x: Tensor) -> Tensor:
    """Convert shares of white to grey levels, uint8: clipped and truncated, as published."""
    # a whole number that rounding errors put just below itself stays that number
    return x.clamp(0, 1).mul_(255).add_(1e-6).to(torch.uint8)


def gaussian_noise(x: Tensor, draws: Draws, sigma: float) -> Tensor:
    """Add normal noise of deviation `sigma` to every value."""
    return x + sigma * draws.normal(*x.shape[1:])


def shot_noise(x: Tensor, draws: Draws, photons: float) -> Tensor:
    """Replace each value by a Poisson count, where white is `photons`."""
    return draws.poisson(x * photons) / photons


def impulse_noise(x: Tensor, draws: Draws, amount: float) -> Tensor:
    """Add salt and pepper: the share `amount` of all values becomes 0 or 1, equally likely."""
    draw = draws.uniform(0, 1, *x.shape[1:])
    return x.masked_fill(draw < amount, 0).masked_fill_(draw < amount / 2, 1)


def defocus_blur(x: Tensor, draws: Draws, radius: float, alias: float) -> Tensor:
    """Average over a disk of `radius`, its edge smoothed with deviation `alias`; mirrored at the edge pixel."""
    kernel = _disk(radius, alias)
    reach, (height, width) = len(kernel) // 2, x.shape[2:]
    padded, out = F.pad(x, [reach] * 4, mode="reflect"), torch.zeros_like(x)
    for row, column in (kernel > 1e-9).nonzero().tolist():
        part = padded[:, :, row : row + height, column : column + width]
        out.add_(part, alpha=float(kernel[row, column]))
    return out


def _disk(radius: float, alias: float) -> Tensor:
    """Return the kernel [K, K] of `defocus_blur`, K odd, without the zeros around it."""
    half, taps = (8, 3) if radius <= 8 else (int(radius), 5)
    line = torch.arange(-half, half + 1, dtype=torch.float64, device="cpu")
    disk = (line[:, None] ** 2 + line**2 <= radius**2).double()
    bell = torch.exp(
        -torch.arange(-(taps // 2), taps // 2 + 1, dtype=torch.float64, device="cpu").square()
        / (2 * alias**2)
    )
    bell /= bell.sum()
    padded = F.pad((disk / disk.sum())[None, None], [taps // 2] * 4, mode="reflect")
    smooth = F.conv2d(padded, torch.outer(bell, bell)[None, None])[0, 0]
    spare = max(0, half - int(radius) - taps // 2)
    return smooth[spare : len(smooth) - spare, spare : len(smooth) - spare]


def glass_blur(x: Tensor, draws: Draws, sigma: float, delta: float, times: float) -> Tensor:
    """Blur, then `times` over give each pixel the colour of one up to `delta` away, then blur again."""
    blurred = to_bytes(_smooth(x, sigma, 4, "nearest"))
    for _ in range(int(times)):
        blurred = _scattered(blurred, draws, int(delta))
    return _smooth(blurred.double().div_(255), sigma, 4, "nearest")


def _scattered(pixels: Tensor, draws: Draws, delta: int) -> Tensor:
    """Return each pixel of [N, C, H, W], the last first, replaced in place by the one `delta` rows and columns
    away at most.

    A pixel that comes before its source in the image gets what the source has become by then, and so on: the chains
    are followed for all pixels at once, each round doubling the steps made.
    """
    height, width = pixels.shape[2:]
    count = height * width
    here = torch.arange(count, device="cpu").view(height, width)
    inner = torch.zeros(height, width, dtype=torch.bool, device="cpu")
    inner[delta + 1 : height - delta + 1, delta + 1 : width - delta + 1] = True
    shift = draws.integers(-delta, delta, 2, height, width)
    source = torch.where(inner, here + shift[:, 0] * width + shift[:, 1], here)
    changed = inner.flatten()[source] & (source > here)
    link = (source + count * changed).flatten(
        1
    )  # below `count`: that pixel of old; above: what it has become
    while bool((link >= count).any()):
        link = torch.where(link < count, link, link.gather(1, (link - count).clamp_(min=0)))
    chosen = link[:, None].expand(-1, pixels.shape[1], -1)
    return pixels.flatten(2).gather(2, chosen).view_as(pixels)


def motion_blur(x: Tensor, draws: Draws, radius: float, sigma: float) -> Tensor:
    """Blur along a line whose angle is anywhere within 45 degrees of the horizontal."""
    return _streaked(x, draws.uniform(-45, 45), radius, sigma)


def _streaked(x: Tensor, degrees: Tensor, radius: float, sigma: float) -> Tensor:
    """Apply ImageMagick's motion blur to `x` at `degrees` [N]: half a Gaussian, of 2 * radius + 1 pixels.

    Pixels beyond the edge are as the edge.
    """
    steps = torch.arange(2 * math.ceil(radius) + 1, dtype=torch.float64, device="cpu")
    bell = torch.exp(-steps.square() / (2 * sigma**2))
    weights = (bell / bell.sum()).tolist()
    angle = degrees.deg2rad()[:, None]
    right, down = ((steps * part - 0.5).ceil().long() for part in (angle.cos(), angle.sin()))  # [N, steps]
    reach = len(steps) - 1
    padded = F.pad(x, [reach] * 4, mode="replicate")
    # every possible shift is a view, of which the index takes one an image
    shifts = padded.unfold(2, x.shape[2], 1).unfold(3, x.shape[3], 1)
    each, out = torch.arange(len(x), device="cpu"), torch.zeros_like(x)
    for step, weight in enumerate(weights):
        out.add_(shifts[each, :, reach + down[:, step], reach + right[:, step]], alpha=weight)
    return out


def zoom_blur(x: Tensor, draws: Draws, end: float, step: float) -> Tensor:
    """Average the image and its enlargements by 1, 1 + step, ... below `end`."""
    factors = np.arange(1, end, step)
    plans = Counter((_plan(x.shape[2], float(f)), _plan(x.shape[3], float(f))) for f in factors)
    total = x.clone()
    for (rows, columns), times in plans.items():  # neighbouring factors often give the same pixels
        total.add_(_enlarged(x, rows, columns), alpha=times)
    return total / (len(factors) + 1)


Plan = tuple[int, int, int, int]
"""Of a side: first pixel and length of the central part, its length when enlarged, first pixel of what is kept."""


def _plan(side: int, factor: float) -> Plan:
    part = math.ceil(side / factor)
    size = round(part * factor)
    return (side - part) // 2, part, size, (size - side) // 2


def _enlarged(x: Tensor, rows: Plan, columns: Plan) -> Tensor:
    """Return the centre of `x` enlarged (linear, corner pixels on corner pixels), cut to the size of `x`."""
    (top, height, tall, y), (left, width, wide, x0) = rows, columns
    part = x[:, :, top : top + height, left : left + width]
    large = F.interpolate(part, size=(tall, wide), mode="bilinear", align_corners=True)
    return large[:, :, y : y + x.shape[2], x0 : x0 + x.shape[3]]


def snow(
    x: Tensor,
    draws: Draws,
    mean: float,
    deviation: float,
    zoom: float,
    threshold: float,
    radius: float,
    sigma: float,
    keep: float,
) -> Tensor:
    """Add flakes (normal noise, enlarged, the brightest of it, blurred downwards) to a bleached image."""
    height, width = x.shape[2:]
    noise = mean + deviation * draws.normal(1, height, width)
    flakes = _enlarged(noise, _plan(height, zoom), _plan(width, zoom))
    flakes = to_bytes(flakes.masked_fill(flakes < threshold, 0)).double().div_(255)
    flakes = _streaked(flakes, draws.uniform(-135, -45), radius, sigma)
    flakes = flakes.mul_(255).round_().div_(255)
    bleached = keep * x + (1 - keep) * torch.maximum(x, 1.5 * _grey(x) + 0.5)
    return bleached + flakes + flakes.flip(2, 3)


def _grey(x: Tensor) -> Tensor:
    """Return the brightness of colours, [N, 1, H, W]."""
    if x.shape[1] == 1:
        return x
    return (x * x.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)


def fog(x: Tensor, draws: Draws, thickness: float, decay: float) -> Tensor:
    """Add `thickness` times a plasma fractal; then scale so that the brightest value is no brighter than before."""
    height, width = x.shape[2:]
    cloud = _plasma(draws, 1 << (max(height, width) - 1).bit_length(), decay)[:, None, :height, :width]
    brightest = x.amax((1, 2, 3), keepdim=True)
    return (x + thickness * cloud) * brightest / (brightest + thickness)


def _plasma(draws: Draws, size: int, decay: float) -> Tensor:
    """Draw clouds [N, size, size] from 0 to 1 by the diamond-square algorithm; `size` is a power of 2."""
    noise = draws.uniform(-1, 1, size, size)
    cloud = torch.zeros_like(noise)
    step, wibble = size, 100.0
    while step >= 2:
        half = step // 2
        corners = cloud[:, ::step, ::step]

        def fill(
            rows: int, columns: int, neighbours: Tensor, step: int = step, wibble: float = wibble
        ) -> Tensor:
            """Write the mean of the four `neighbours`, given as their sum, and noise to every `step`-th pixel."""
            value = neighbours / 4 + wibble**2 * noise[:, rows::step, columns::step]
            cloud[:, rows::step, columns::step] = value
            return value

        pairs = corners + corners.roll(-1, 1)
        middle = fill(half, half, pairs + pairs.roll(-1, 2))
        fill(0, half, middle + middle.roll(1, 1) + corners + corners.roll(-1, 2))
        fill(half, 0, middle + middle.roll(1, 2) + corners + corners.roll(-1, 1))
        step, wibble = half, wibble / decay
    cloud -= cloud.amin((1, 2), keepdim=True)
    return cloud / cloud.amax((1, 2), keepdim=True)


def brightness(x: Tensor, draws: Draws, more: float) -> Tensor:
    """Raise the value of HSV, the largest of a pixel's colours, by `more`; hue and saturation stay."""
    value = x.amax(1, keepdim=True)
    brighter = (value + more).clamp(max=1)
    return torch.where(value > 0, x * (brighter / value), brighter)  # black has no hue: it becomes grey


def contrast(x: Tensor, draws: Draws, factor: float) -> Tensor:
    """Multiply differences from the mean of each image's channel by `factor`."""
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) * factor + mean


def elastic_transform(x: Tensor, draws: Draws, alpha: float, sigma: float, corner: float) -> Tensor:
    """Apply a random affine map, then random shifts that vary smoothly; parameters are shares of the shorter side.

    Args:
        alpha: shifts are this times a field of noise in [-1, 1] ...
        sigma: ... that is smoothed with this deviation.
        corner: how far each of three points, a third of a side from the centre, may be moved along each axis.
    """
    height, width = x.shape[2:]
    side = min(height, width)
    line = (torch.arange(size, dtype=torch.float64, device="cpu") for size in (height, width))
    place = torch.stack(torch.meshgrid(*line, indexing="ij")[::-1], dim=2)  # [H, W, 2]: x, y
    away = side // 3
    points = place.new_tensor([[1, 1], [1, -1], [-1, -1]]) * away + place.new_tensor(
        [width // 2, height // 2]
    )
    moved = points + draws.uniform(-corner * side, corner * side, 3, 2)
    back = torch.linalg.solve(F.pad(moved, [0, 1], value=1.0), points.expand_as(moved))  # [N, 3, 2]
    sources = F.pad(place, [0, 1], value=1.0).flatten(0, 1) @ back
    mapped = _sampled(x, sources.view(-1, height, width, 2), True)
    field = draws.uniform(-1, 1, 2, height, width)
    shifts = alpha * side * _smooth(field, sigma * side, 3, "reflect")
    return _sampled(mapped, place + shifts.movedim(1, 3), False)


def _sampled(x: Tensor, places: Tensor, at_pixel: bool) -> Tensor:
    """Sample `x` at `places` [N, H, W, 2] (x, y), linearly; mirrored at the edge pixel, or at its outer edge."""
    size = places.new_tensor([x.shape[3], x.shape[2]])
    grid = 2 * places / (size - 1) - 1 if at_pixel else (2 * places + 1) / size - 1
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=at_pixel)


def _smooth(x: Tensor, sigma: float, truncate: float, border: str) -> Tensor:
    """Apply a Gaussian blur to `x` [N, C, H, W], cut off at `truncate` deviations."""
    rows, columns = (_smoothing(side, sigma, truncate, border) for side in x.shape[2:])
    return rows @ x @ columns.T


def _smoothing(side: int, sigma: float, truncate: float, border: str) -> Tensor:
    """Return what blurs a line of `side` pixels, [side, side]; beyond its ends is the end pixel, or its mirror
    image.
    """
    reach = int(truncate * sigma + 0.5)
    if reach == 0:
        return torch.eye(side, dtype=torch.float64, device="cpu")
    steps = torch.arange(-reach, reach + 1, device="cpu")
    weights = torch.exp(-0.5 * (steps.double() / sigma) ** 2)
    source = torch.arange(side, device="cpu")[:, None] + steps
    if border == "nearest":
        source = source.clamp(0, side - 1)
    else:
        source = source.remainder(2 * side)
        source = torch.minimum(source, 2 * side - 1 - source)
    matrix = torch.zeros(side, side, dtype=torch.float64, device="cpu")
    return matrix.scatter_add_(1, source, (weights / weights.sum()).expand_as(source))


def pixelate(x: Tensor, draws: Draws, share: float) -> Tensor:
    """Shrink to `share` of each side and enlarge again, each time by the mean of a box."""
    height, width = x.shape[2:]
    small = int(width * share), int(height * share)
    box = Image.Resampling.BOX
    return _by_pillow(x, lambda image: image.resize(small, box).resize((width, height), box))


def jpeg_compression(x: Tensor, draws: Draws, quality: float) -> Tensor:
    """Write and read the images as JPEG."""

    def change(image: Image.Image) -> Image.Image:
        file = BytesIO()
        image.save(file, "JPEG", quality=int(quality))
        return Image.open(file)

    return _by_pillow(x, change)


def _by_pillow(x: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    """Apply Pillow's `change` to each image of `x`."""
    pixels = to_bytes(x).movedim(1, 3)
    grey = pixels.shape[3] == 1
    arrays = (pixels[..., 0] if grey else pixels).contiguous().numpy()
    changed = torch.from_numpy(np.stack([np.asarray(change(Image.fromarray(array))) for array in arrays]))
    return (changed[:, None] if grey else changed.movedim(3, 1)).contiguous().double().div_(255)


FORMULAS: dict[str, Callable[..., Tensor]] = {
    formula.__name__: formula
    for formula in (
        gaussian_noise,
        shot_noise,
        impulse_noise,
        defocus_blur,
        glass_blur,
        motion_blur,
        zoom_blur,
        snow,
        fog,
        brightness,
        contrast,
        elastic_transform,
        pixelate,
        jpeg_compression,
    )
}
