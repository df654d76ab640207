"""Random crops and flips of whole batches, on tensors, each batch a pure function of (seed, step)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from regrow._random import generator
from regrow.arguments import require_choice, require_count, require_flag, require_numbers
from regrow.data.whole import Box, ImageFiles
from regrow.errors import RegrowValueError

BORDERS = ("zeros", "reflect", "symmetric")
ATTEMPTS = 10
"""Parts of an image that are drawn until one fits into it."""


@dataclass(frozen=True)
class Augment:
    """What is done to the images of a training batch, in this order.

    Args:
        crop: pad each side by so many pixels, then cut out the original size at a random place.
        border: what `crop` pads with: ``"zeros"`` (black where images are kept in bytes, the mean where they are kept
            normalised), or the image mirrored at its edge, whose own pixels come twice (``"symmetric"``) or once
            (``"reflect"``).
        resized_crop: cut out a random part and resize it to so many pixels a side (bilinear); test images are
            cut to their centre of that size.
        scale: of that part, its share of the image's area, from and to.
        ratio: of that part, width over height, from and to (even on a log scale). Parts are drawn up to ten times until
            one fits into the image; failing that it is the largest central one (torchvision's RandomResizedCrop).
        flip: mirror left and right with probability 1/2.
    """

    crop: int = 0
    border: str = "zeros"
    resized_crop: int | None = None
    scale: Sequence[float] = (0.08, 1.0)
    ratio: Sequence[float] = (3 / 4, 4 / 3)
    flip: bool = False

    def __post_init__(self) -> None:
        own: dict[str, Any] = {
            "crop": require_count("augment.crop", self.crop, least=0),
            "border": require_choice("augment.border", self.border, BORDERS),
            "flip": require_flag("augment.flip", self.flip),
        }
        if self.resized_crop is not None:
            own["resized_crop"] = require_count("augment.resized_crop", self.resized_crop)
        for name, value in own.items():
            object.__setattr__(self, name, value)
        for name, top in (("scale", 1.0), ("ratio", math.inf)):
            pair = getattr(self, name)
            low, high = require_numbers(f"augment.{name}", pair, count=2)
            if not low <= high <= top:
                allowed = "two numbers above 0, the smaller first" + (", at most 1" if top == 1 else "")
                raise RegrowValueError(f"`augment.{name}` must be {allowed}, got {pair!r}")

    def __bool__(self) -> bool:
        """Return whether anything is done."""
        return bool(self.crop or self.resized_crop or self.flip)

    def check(self, shape: Sequence[int]) -> None:
        """Refuse examples of `shape` that are not images [C, H, W], or too small for what is to be done.

        Raises:
            RegrowValueError: with the shape.
        """
        if self and len(shape) != 3:
            raise RegrowValueError(
                f"`augment` is for images [C, H, W], got examples of shape {list(shape)}\nLeave it out: augment={{}}."
            )
        if self.resized_crop and min(shape[1:]) < self.resized_crop:
            raise RegrowValueError(
                f"`augment.resized_crop` must be at most the images' size, {min(shape[1:])}, got {self.resized_crop}"
            )

        most = min(shape[1:]) - (self.border == "reflect") if self and self.border != "zeros" else self.crop
        if self.crop > most:
            raise RegrowValueError(
                f"`augment.crop` must be at most {most} where `augment.border` is {self.border} and images are "
                f"{shape[1]} x {shape[2]}, got {self.crop}"
            )

    def train(self, images: Tensor | ImageFiles, seed: int, step: int) -> Tensor:
        """Augment images [B, C, H, W] of the batch of `step`; [B, C, S, S] where `resized_crop` is S.

        Parts of images in files are cut out of the whole images, everything else is done to their central squares.
        """
        if isinstance(images, ImageFiles):
            if self.resized_crop and not self.crop:
                parts = self._parts(len(images), random := generator(seed, "augment", step))
                return self._mirrored(images.cut(parts, self.resized_crop), random)
            images = images.to("cpu")
        if not self:
            return images
        count, random = len(images), generator(seed, "augment", step)
        if self.crop:
            places = torch.randint(2 * self.crop + 1, (2, count), generator=random, device="cpu")
            padded = _padded(images, self.crop, self.border)
            images = _crop(padded, images.shape[2:], places.to(images.device))
        if self.resized_crop:
            part = self._parts(count, random)
            boxes = [part(number, *images.shape[2:]) for number in range(count)]
            images = _resized(images, torch.tensor(boxes, device=images.device).T, self.resized_crop)
        return self._mirrored(images, random)

    def _mirrored(self, images: Tensor, random: torch.Generator) -> Tensor:
        if not self.flip:
            return images
        mirrored = torch.rand(len(images), generator=random, device="cpu") < 0.5
        return torch.where(mirrored.to(images.device).view(-1, 1, 1, 1), images.flip(3), images)

    def test(self, images: Tensor) -> Tensor:
        """Return images [B, C, H, W] of a test batch: their centre [B, C, S, S] where `resized_crop` is S."""
        if not self.resized_crop:
            return images
        top, left = ((side - self.resized_crop) // 2 for side in images.shape[2:])
        return images[:, :, top : top + self.resized_crop, left : left + self.resized_crop]

    def _parts(self, count: int, random: torch.Generator) -> Callable[[int, int, int], Box]:
        """Draw a random part of each of `count` images: a function of an image's number, height and width."""
        draws = torch.rand(count, ATTEMPTS, 4, generator=random, device="cpu").tolist()
        low, high = (math.log(value) for value in self.ratio)

        def part(number: int, height: int, width: int) -> Box:
            for share, shape, down, along in draws[number]:
                area = height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * share)
                ratio = math.exp(low + (high - low) * shape)
                wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
                if 0 < wide <= width and 0 < tall <= height:
                    return int(down * (height - tall + 1)), int(along * (width - wide + 1)), tall, wide
            wide = min(width, max(1, round(height * self.ratio[1])))
            tall = min(height, max(1, round(width / self.ratio[0])))
            return (height - tall) // 2, (width - wide) // 2, tall, wide

        return part


def _padded(images: Tensor, padding: int, border: str) -> Tensor:
    """Give `images` [B, C, H, W] `padding` more pixels at each side."""
    if border == "zeros":
        return F.pad(images, [padding] * 4)
    for dimension in (2, 3):  # F.pad mirrors no bytes
        size = images.shape[dimension]
        place = torch.arange(-padding, size + padding, device=images.device)
        if border == "symmetric":
            place = torch.where(place < 0, -1 - place, place)
            place = torch.where(place >= size, 2 * size - 1 - place, place)
        else:
            place = size - 1 - (size - 1 - place.abs()).abs()
        images = images.index_select(dimension, place)
    return images


def _crop(padded: Tensor, size: Sequence[int], places: Tensor) -> Tensor:
    """Cut images [B, C, H + 2p, W + 2p] to `size` [H, W] at the rows and columns `places` [2, B]."""
    # every possible cut is a view, of which the index takes one an image
    cuts = padded.unfold(2, size[0], 1).unfold(3, size[1], 1)  # [B, C, 2p + 1, 2p + 1, H, W]
    return cuts[torch.arange(len(padded), device=padded.device), :, places[0], places[1]]


def _resized(images: Tensor, parts: Tensor, size: int) -> Tensor:
    """Resize the part of each image [B, C, H, W] in `parts` (top, left, height, width; [4, B]) to [B, C, size, size].

    Bytes stay bytes.
    """
    height, width = images.shape[2:]
    # twice the pixels' centres, of a part of 1
    line = (torch.arange(size, device=images.device) * 2 + 1) / size
    top, left, tall, wide = parts[:, :, None]  # [B, 1]
    x = (2 * left + wide * line) / width - 1  # [B, size]
    y = (2 * top + tall * line) / height - 1
    grid = torch.stack([x[:, None, :].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)], dim=3)
    values = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return values.round_().to(torch.uint8) if images.dtype == torch.uint8 else values
