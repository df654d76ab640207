"""Batch tiles: the layout in which sparse convolutions, and what stands between them, keep their activations.

Images [N, C, H, W] are one contiguous buffer [T, C, P, 16] with T = ceil(N / 16): tiles of 16 batch elements, which are
innermost, and to each channel P lines of 16: the image row by row with a border of zeros around it, P rounded up by
`plane`. The border at the right of a row is the one at the left of the next. Border, rounding lines and the lanes past
N of the last tile hold zeros in every buffer, so that an element-wise function with f(0) = 0 runs on the whole buffer,
and a sum over it is the sum over the images.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from regrow.ops.backends import TILES, use_kernel

TILE = 16
"""Batch elements that are stored together."""

BORDER = 1
"""Pixels of zeros around an image in what operators make, unless another number is asked for."""


class Geometry(NamedTuple):
    """What a buffer does not say of the images in it."""

    images: int
    height: int
    width: int
    border: int

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return -(-self.images // TILE)

    @property
    def plane(self) -> int:
        """Lines of a channel."""
        return plane(self.height, self.width, self.border)


def geometry_of(images: Tensor, border: int) -> Geometry:
    """Return the geometry of images [N, C, H, W] with that border."""
    count, _, height, width = images.shape
    return Geometry(count, height, width, border)


def plane(height: int, width: int, border: int) -> int:
    """Count the lines of 16 of a channel: no multiple of 64, where all channels fall upon the same lines of a cache."""
    lines = (height + 2 * border) * (width + border) + border
    return lines + 1 if lines % 64 == 0 else lines


def tile(images: Tensor, border: int = BORDER) -> Tensor:
    """Convert images [N, C, H, W] of any strides into a buffer [T, C, P, 16]."""
    geometry = geometry_of(images, border)
    if use_kernel(TILES, images):
        if not (images.is_contiguous() or images.is_contiguous(memory_format=torch.channels_last)):
            images = images.contiguous()
        buffer: Tensor = torch.ops.regrow_native.tile.default(images, border)
        return buffer
    more = geometry.tiles * TILE - geometry.images
    padded = F.pad(images, (border, 0, border, border, 0, 0, 0, more)).flatten(2)
    padded = F.pad(padded, (0, geometry.plane - padded.shape[2]))
    tiled: Tensor = padded.unflatten(0, (geometry.tiles, TILE))
    return tiled.permute(0, 2, 3, 1).contiguous()


def untile(buffer: Tensor, geometry: Geometry, channels_last: bool = False) -> Tensor:
    """Convert a buffer [T, C, P, 16] into images [N, C, H, W], contiguous or channels-last."""
    if use_kernel(TILES, buffer):
        found: Tensor = torch.ops.regrow_native.untile.default(buffer, *geometry, channels_last)
        return found.permute(0, 3, 1, 2) if channels_last else found
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return _images(buffer, geometry).contiguous(memory_format=memory_format)


def _images(buffer: Tensor, geometry: Geometry) -> Tensor:
    """Return the images in a buffer as a strided view [N, C, H, W]; a copy if the batch is cut from its tiles."""
    images, height, width, border = geometry
    wide = (height + 2 * border, width + border)
    planes = buffer[:, :, : wide[0] * wide[1]].permute(0, 3, 1, 2).flatten(0, 1)[:images]
    padded: Tensor = planes.unflatten(2, wide)
    return padded[:, :, border : border + height, border : border + width]


def reborder(buffer: Tensor, geometry: Geometry, border: int) -> Tensor:
    """Return the same images in a buffer with another border; the buffer itself if it has that already."""
    if border == geometry.border:
        return buffer
    if use_kernel(TILES, buffer):
        found: Tensor = torch.ops.regrow_native.reborder.default(buffer, *geometry, border)
        return found
    return tile(_images(buffer, geometry), border)
