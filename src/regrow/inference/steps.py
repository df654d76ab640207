"""Steps of an inference program: what the kernels read as whole numbers (csrc/infer_steps.h), field by field."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, fields
from typing import ClassVar

import torch
from torch import Tensor

from regrow.inference.graph import ACTIVATIONS

FORMAT = 1
NONE = -1
"""A constant, or a place, that is not there."""
DIMENSIONS = 6
"""Of a copy."""
SLACK = 64
"""Floats behind a value that kernels may read, though they never use them."""


@dataclass(eq=False)
class Buffer:
    """Memory of one value: in the arena, of a tensor that goes in (`space` is 1 and more) or out, or, below -1, of a
    constant.
    """

    size: int
    """Floats."""
    space: int = 0
    at: int = 0
    """Where it begins in the arena, in floats."""


@dataclass(frozen=True)
class Place:
    """Somewhere in a buffer."""

    buffer: Buffer | None
    at: int = 0

    def encode(self) -> list[int]:
        """Return the two numbers of a place."""
        return [NONE, 0] if self.buffer is None else [self.buffer.space, self.buffer.at + self.at]


NOWHERE = Place(None)


@dataclass
class Step:
    """One step: its fields are, in order, those of the structure of the same name in csrc/infer_steps.h."""

    KIND: ClassVar[int] = 0
    NAME: ClassVar[str] = ""
    """Of the kernel, for explanations."""

    def encode(self) -> list[int]:
        """Return the numbers of the step: its kind, how many fields it has, and these."""
        found: list[int] = []
        for each in fields(self):
            found += _encode(getattr(self, each.name))
        return [self.KIND, len(found), *found]

    def places(self) -> list[Place]:
        """Return what the step reads and writes."""
        return [v for each in fields(self) if isinstance(v := getattr(self, each.name), Place) and v.buffer]


def _encode(value: object) -> list[int]:
    if isinstance(value, Place | Window):
        return value.encode()
    if isinstance(value, tuple):
        return [int(number) for number in value]
    if isinstance(value, float):
        return list(struct.unpack("<q", struct.pack("<d", value)))
    assert isinstance(value, int)
    return [int(value)]


def activation(name: str | None) -> int:
    """Return the number of an activation."""
    return 0 if name is None else 1 + ACTIVATIONS.index(name)


@dataclass(frozen=True)
class Window:
    """How a convolution reads its images; see csrc/infer.h."""

    height: int
    width: int
    out_height: int
    out_width: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    band: int = 1
    phases: int = 1
    copy: int = 0
    channel: int = 0

    def encode(self) -> list[int]:
        """Return the numbers of the window."""
        return [number for each in fields(self) for number in _encode(getattr(self, each.name))]


@dataclass
class OfImages(Step):
    """What every kind of convolution reads and writes, image by image and plane by plane."""

    x: Place
    y: Place
    residual: Place
    x_image: int
    x_plane: int
    y_image: int
    y_plane: int
    residual_image: int
    residual_plane: int
    images: int


@dataclass
class Conv(OfImages):
    """A convolution by the connections of its weight."""

    KIND = 1
    NAME = "sparse convolution"
    groups: int
    channels: int
    outputs: int
    blocks: int
    start: int
    order: int
    connections: int
    parts: int
    bias: int
    activation: int
    reach: int
    window: Window


@dataclass
class Int8(OfImages):
    """A convolution in int8, the sizes of its window in bytes."""

    KIND = 10
    NAME = "sparse convolution in int8"
    groups: int
    channels: int
    outputs: int
    start: int
    order: int
    bundle: int
    pairs: int
    parts: int
    correction: int
    scale: int
    bias: int
    activation: int
    is_signed: int
    inverse: float
    reach: int
    window: Window


@dataclass
class Dense(OfImages):
    """A convolution by a dense weight."""

    KIND = 2
    NAME = "dense convolution"
    channels: int
    outputs: int
    taps: int
    offset: int
    weight: int
    bias: int
    activation: int
    reach: int
    window: Window


@dataclass
class Vector(Step):
    """A linear layer of one vector."""

    KIND = 3
    NAME = "matrix-vector product"
    x: Place
    y: Place
    residual: Place
    rows: int
    columns: int
    crow: int
    col: int
    values: int
    scale: int
    bias: int
    activation: int


@dataclass
class Copy(Step):
    """A copy from one layout into another."""

    KIND = 4
    NAME = "copy"
    x: Place
    y: Place
    size: tuple[int, ...]
    x_stride: tuple[int, ...]
    y_stride: tuple[int, ...]


@dataclass
class Map(Step):
    """Sums, products and activations, element by element: ``y = activation((x operation b) + c)``."""

    KIND = 5
    NAME = "element-wise"
    x: Place
    b: Place
    c: Place
    y: Place
    operation: int
    activation: int
    size: tuple[int, ...]
    x_stride: tuple[int, ...]
    b_stride: tuple[int, ...]
    c_stride: tuple[int, ...]
    y_stride: tuple[int, ...]


@dataclass
class Mean(Step):
    """The mean of each channel's pixels."""

    KIND = 6
    NAME = "mean"
    x: Place
    y: Place
    images: int
    channels: int
    pixels: int
    x_image: int
    x_plane: int
    y_image: int
    y_plane: int


@dataclass
class Pool(Step):
    """The greatest pixel of each window, or the mean over it."""

    KIND = 7
    NAME = "pooling"
    x: Place
    y: Place
    images: int
    channels: int
    x_image: int
    x_plane: int
    y_image: int
    y_plane: int
    max: int
    adaptive: int
    count_padding: int
    image: tuple[int, int]
    out: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    divisor: int
    scratch: int


@dataclass
class Norm(Step):
    """A layer norm, or a softmax, over the channels."""

    KIND = 8
    NAME = "layer norm or softmax"
    x: Place
    y: Place
    images: int
    channels: int
    pixels: int
    x_image: int
    x_plane: int
    y_image: int
    y_plane: int
    weight: int
    bias: int
    softmax: int
    epsilon: float


@dataclass
class Attention(Step):
    """Scaled dot-product attention; `strides`: from image to image, head to head, channel to channel, of q, k, v, y."""

    KIND = 9
    NAME = "attention"
    q: Place
    k: Place
    v: Place
    y: Place
    strides: tuple[int, ...]
    images: int
    heads: int
    queries: int
    keys: int
    size: int
    out_size: int
    causal: int
    scale: float


@dataclass
class Program:
    """Steps in the order in which they run, with the constants that they name by number."""

    steps: list[Step] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    """Of each step, the layer that it does the work of."""
    constants: list[Tensor] = field(default_factory=list)
    scratch: int = 0
    """Floats that each thread needs for itself, at most."""

    def constant(self, tensor: Tensor | None) -> int:
        """Return the number of a constant, which is kept."""
        if tensor is None:
            return NONE
        for number, known in enumerate(self.constants):
            if known is tensor:
                return number
        self.constants.append(tensor.contiguous())
        return len(self.constants) - 1

    def encode(self) -> Tensor:
        """Place all buffers in the arena, and return the program as int64."""
        arena = _arrange(self.steps)
        numbers = [FORMAT, arena, self.scratch, len(self.steps)]
        for step in self.steps:
            numbers += step.encode()
        return torch.tensor(numbers, dtype=torch.int64, device="cpu")


LINE = 16
"""Floats to which buffers are rounded: a line of the cache, and the longest vector."""


def rounded(size: int) -> int:
    """Return `size` rounded up to whole lines."""
    return -(-size // LINE) * LINE


def _arrange(steps: list[Step]) -> int:
    """Give each buffer of the arena its place, such that those that live at the same time do not overlap.

    Returns:
        The size of the arena in floats.
    """
    lives: dict[Buffer, tuple[int, int]] = {}
    for time, step in enumerate(steps):
        for place in step.places():
            assert place.buffer is not None
            if place.buffer.space == 0:
                lives[place.buffer] = (lives.get(place.buffer, (time, time))[0], time)
    placed: list[Buffer] = []
    for buffer in sorted(lives, key=lambda b: (-b.size, lives[b])):  # the largest first
        first, last = lives[buffer]
        at = 0
        for other in sorted(placed, key=lambda b: b.at):
            begins, ends = lives[other]
            if begins <= last and first <= ends and other.at < at + buffer.size:
                at = max(at, other.at + other.size)
        buffer.at = at
        placed.append(buffer)
    return max((buffer.at + buffer.size for buffer in placed), default=0)
