"""`Value`: a tensor of an inference program, as a strided view of a buffer; and `Planes`, how kernels see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regrow.deploy.steps import LINE, Buffer, Place, rounded


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor in a buffer: `form` is a tensor on the meta device with its shape, strides and offset."""

    buffer: Buffer
    form: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple(self.form.shape)

    @property
    def place(self) -> Place:
        """Where its first element is."""
        return Place(self.buffer, int(self.form.storage_offset()))

    @classmethod
    def contiguous(cls, shape: Sequence[int], space: int = 0) -> Value:
        """Return a new value in torch's own layout."""
        form = torch.empty(tuple(shape), device="meta")
        return cls(Buffer(rounded(form.numel()), space), form)

    @classmethod
    def planes(cls, shape: Sequence[int], channel: int, *, wide: bool = False) -> Value:
        """Return a new value of this shape in planes: dimension `channel` outside of the pixels.

        Dimensions before the channel are images where the channel is followed by others, and pixels where it is last,
        all but the first of three and more. `wide`: kernels write whole vectors, even where there is one pixel.
        """
        shape = tuple(shape)
        channel %= len(shape)
        last = channel == len(shape) - 1
        first_pixel = (1 if len(shape) > 2 else 0) if last else channel + 1
        pixel_dims = [d for d in range(first_pixel, len(shape)) if d != channel]
        strides, stride = [0] * len(shape), 1
        for d in reversed(pixel_dims):
            strides[d] = stride
            stride *= max(1, shape[d])
        plane = LINE if wide and stride == 1 else plane_of(stride)
        strides[channel] = plane
        stride = plane * max(1, shape[channel])
        for d in reversed(range(len(shape))):
            if d != channel and d not in pixel_dims:
                strides[d] = stride
                stride *= max(1, shape[d])
        form = torch.empty_strided(shape, strides, device="meta")
        return cls(Buffer(rounded(stride)), form)


def plane_of(pixels: int) -> int:
    """Return how far apart planes of so many pixels are: an odd number of lines, such that the same pixels of all channels
    spread over the sets of the nearest cache.
    """
    return 1 if pixels == 1 else (rounded(pixels) // LINE | 1) * LINE


@dataclass(frozen=True)
class Planes:
    """How a kernel sees a value: images of channels of pixels that follow one another."""

    images: int
    channels: int
    pixels: int
    image: int
    """From one image to the next, in floats."""
    plane: int
    """From one channel to the next."""

    @classmethod
    def of(cls, form: Tensor, channel: int) -> Planes | None:
        """Return how `form` looks with dimension `channel` as channels; None if it is not laid out in planes."""
        channel %= form.dim()
        others = [
            (form.shape[d], form.stride(d)) for d in range(form.dim()) if d != channel and form.shape[d] != 1
        ]
        pixels = 1
        while others and others[-1][1] == pixels:
            pixels *= others.pop()[0]
        images, image = 1, 0
        for size, stride in reversed(others):
            if images > 1 and stride != images * image:
                return None
            images, image = images * size, image or stride
        channels, plane = form.shape[channel], form.stride(channel)
        if channels == 1:
            plane = max(plane, pixels)
        if plane < pixels or (images > 1 and image < (channels - 1) * plane + pixels):
            return None
        return cls(images, channels, pixels, image, plane)

    @property
    def padded(self) -> bool:
        """Whether kernels may read and write whole lines from each pixel on that begins one."""
        return self.plane >= rounded(self.pixels)
