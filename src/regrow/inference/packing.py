"""How weights are laid out for the kernels: connections by blocks of input channels, with the place each reads."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from regrow.inference.graph import Connections
from regrow.inference.steps import Window, rounded
from regrow.inference.values import plane_of

NEAR = 48 * 1024
"""Bytes of input that a block of channels may hold for the pixels of a run: about the nearest cache."""
SCRATCH = 320 * 1024
"""Bytes of the copies of a band of an image, at most: what stays in the second cache."""
PARTS = 8
"""Into which outputs are divided, for threads to share."""


@dataclass(frozen=True)
class Packed:
    """The connections of a convolution as the kernels read them."""

    start: Tensor
    order: Tensor
    connections: Tensor
    parts: Tensor
    blocks: int
    reach: int


def window_of(
    image: tuple[int, int],
    out: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    channels: int,
    size: int = 4,
) -> Window:
    """Return how a convolution of a group of `channels` reads its images: in bands whose copies stay in a cache.

    Args:
        size: bytes of what it reads; other than 4, each channel is copied.
    """
    window = Window(*image, *out, kernel, stride, padding, dilation, band=max(1, out[0]))
    if kernel == (1, 1) and stride == (1, 1) and image == out and size == 4:
        return window
    unit = 4 // size
    phases = min(stride[0], (kernel[0] - 1) * dilation[0] + 1)
    more = (kernel[0] - 1) * dilation[0] // stride[0]

    def with_band(band: int) -> Window:
        copy = rounded(-(-(band + more) * out[1] // unit))
        channel = plane_of(kernel[1] * phases * copy)
        return replace(window, band=band, phases=phases, copy=unit * copy, channel=unit * channel)

    line = 16 * unit
    step = next(rows for rows in (1, 2, 4, 8, 16, 32, 64) if rows * out[1] % line == 0)
    whole = with_band(max(1, out[0]))
    bands = -(-whole.channel * channels * size // SCRATCH)
    if bands <= 1 or out[0] <= step:
        return whole
    band = -(-out[0] // bands)
    return with_band(min(out[0], max(step, -(-band // step) * step)))


def taps(window: Window) -> np.ndarray:
    """Return where each tap of the kernel begins in the copies of a channel, [height * width]."""
    y, x = np.divmod(np.arange(window.kernel[0] * window.kernel[1]), window.kernel[1])
    rows, phase = np.divmod(y * window.dilation[0], window.stride[0])
    found: np.ndarray = (x * window.phases + phase) * window.copy + rows * window.out_width
    return found


def offsets(weight: Connections, window: Window, distance: int) -> np.ndarray:
    """Return where what each connection reads begins, the channels of the input being `distance` apart."""
    taps_of_channel = max(1, weight.columns // max(1, weight.shape[1]))
    channel, tap = np.divmod(weight.col.int().numpy(), taps_of_channel)
    found: np.ndarray = channel.astype(np.int64) * distance + taps(window)[tap]
    if found.max(initial=0) >= 2**31:
        raise OverflowError("the input of one image is too large for 32-bit offsets")
    return found


def pack(weight: Connections, groups: int, window: Window, plane: int, run: int) -> Packed:
    """Lay out the connections of a convolution or linear layer.

    Args:
        weight: of shape [outputs, channels of a group, ...].
        groups: of the convolution.
        window: how it reads its images.
        plane: floats from one input channel to the next, where the window makes no copies.
        run: pixels that the kernel holds at a time.
    """
    outputs, channels = weight.shape[0] // groups, weight.shape[1]
    taps_of_channel = weight.columns // max(1, channels)
    row = weight.rows().numpy()
    channel = weight.col.int().numpy() // max(1, taps_of_channel)
    offset = offsets(weight, window, window.channel or plane)
    pixels = window.band * window.out_width
    held = min(rounded(pixels), run) * 4 * min(taps_of_channel, 6)
    block = max(8, NEAR // held)
    blocks = max(1, -(-channels // block))
    block = -(-channels // blocks)
    group, output = np.divmod(row, outputs)
    key = (
        group * blocks + channel // max(1, block)
    ) * outputs + output  # of the visit of an output in a block
    count = np.bincount(key, minlength=groups * blocks * outputs).reshape(groups * blocks, outputs)
    of_rows = weight.crow.diff().numpy().reshape(groups, outputs).sum(0).cumsum()
    parts = parts_of(of_rows, outputs)
    part = np.searchsorted(parts, np.arange(outputs), side="right")
    order = np.lexsort(
        (np.broadcast_to(np.arange(outputs), count.shape), count, np.broadcast_to(part, count.shape))
    )
    start = np.zeros((groups * blocks, outputs + 1), np.int64)
    in_order = np.take_along_axis(count, order, 1)
    np.cumsum(in_order, 1, out=start[:, 1:])
    start += np.concatenate([[0], start[:-1, -1].cumsum()])[:, None]
    place = np.empty_like(order)
    np.put_along_axis(place, order, np.broadcast_to(np.arange(outputs), order.shape), 1)
    visit = (key // outputs) * outputs + place.reshape(-1)[key]
    by_visit = np.argsort(visit, kind="stable")
    both = np.empty((len(row), 2), np.int32)
    both[:, 0] = offset[by_visit]
    both[:, 1] = weight.floats().numpy()[by_visit].view(np.int32)
    if start[-1, -1] >= 2**31:
        raise OverflowError("more connections than 32-bit numbers count")
    reach = int(offset.max()) + 1 if len(offset) else 0
    return Packed(
        torch.from_numpy(start.astype(np.int32)),
        torch.from_numpy(order.astype(np.int32)),
        torch.from_numpy(both.view(np.int64).reshape(-1)),
        torch.from_numpy(np.concatenate([[0], parts, [outputs]]).astype(np.int32)),
        blocks,
        reach,
    )


def parts_of(total: np.ndarray, outputs: int) -> np.ndarray:
    """Return where parts of about equally many connections begin, the first left out."""
    wanted = min(PARTS, outputs)
    if wanted <= 1:
        return np.empty(0, np.int64)
    found = np.searchsorted(total, total[-1] * np.arange(1, wanted) / wanted) + 1
    return np.clip(np.maximum.accumulate(found), 0, outputs)
