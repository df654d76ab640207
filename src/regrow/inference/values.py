"""`Value`: a tensor of an inference program, as a strided view of a buffer; and `Planes`, how kernels see it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regrow.inference.steps import LINE, Buffer, Place, rounded


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
    def planes(
        cls, shape: Sequence[int], channel: int, *, pixels: int | None = None, wide: bool = False
    ) -> Value:
        """Return a new value of this shape in planes: dimension `channel` outside of the pixels.

        Args:
            shape: of the tensor.
            channel: a dimension of it.
            pixels: how many there are in an image; they are the last dimensions, the channel's left out. Default: those
                behind the channel, and where that is last all others, but the first of three and more.
            wide: whether kernels write whole lines to it, even where there is one pixel.
        """
        shape = tuple(shape)
        channel %= len(shape)
        pixel_dims = _pixel_dims(len(shape), channel)
        if pixels is not None:
            found, pixel_dims = 1, []
            for d in reversed([d for d in range(len(shape)) if d != channel]):
                if found * shape[d] <= pixels:
                    pixel_dims.insert(0, d)
                    found *= shape[d]
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


def like(value: Value, channel: int) -> Value:
    """Return a new value in planes, with as many pixels in an image as `value` has."""
    seen = Planes.of(value.form, channel)
    return Value.planes(
        value.shape, channel, pixels=None if seen is None or seen.pixels == 1 else seen.pixels
    )


def _pixel_dims(dims: int, channel: int) -> list[int]:
    first = (1 if dims > 2 else 0) if channel == dims - 1 else channel + 1
    return [d for d in range(first, dims) if d != channel]


def plane_of(pixels: int) -> int:
    """Return how far apart planes of so many pixels are: an odd number of lines, such that the same pixels of all
    channels spread over the sets of the nearest cache.
    """
    return 1 if pixels == 1 else (rounded(pixels) // LINE | 1) * LINE


def merged(dims: list[tuple[int, list[int]]]) -> list[tuple[int, list[int]]]:
    """Return dimensions, each a size and some strides, with those as one that make one run in all; the outer first."""
    found: list[tuple[int, list[int]]] = []
    for size, strides in dims:
        if size == 1:
            continue
        if found and all(a == size * b for a, b in zip(found[-1][1], strides, strict=True)):
            found[-1] = (found[-1][0] * size, strides)
        else:
            found.append((size, strides))
    return found


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
        pixels, most = 1, form.numel()
        if form.shape[channel] == 1:  # images that follow one another are not taken for more pixels of one
            most = math.prod(form.shape[d] for d in _pixel_dims(form.dim(), channel))
        while others and others[-1][1] == pixels and pixels * others[-1][0] <= most:
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
