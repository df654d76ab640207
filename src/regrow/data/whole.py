"""Images that stay in their files, whole, until a batch cuts its parts out of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from regrow.data.decoding import decode
from regrow.ops.compiling import cores

Box = tuple[int, int, int, int]
"""Top, left, height and width of a part of an image, in pixels."""


@dataclass(frozen=True)
class ImageFiles:
    """Images [N, C, S, S] that are decoded when they are asked for, as far as a run asks a tensor of images.

    Args:
        files: an image each.
        size: S, of the central square that an image is where nothing is cut out of it.
        channels: C, 3 or 1.
    """

    files: Sequence[Path]
    size: int
    channels: int

    dtype: ClassVar[torch.dtype] = torch.uint8
    device: ClassVar[torch.device] = torch.device("cpu")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: slice | Tensor) -> ImageFiles:
        chosen = self.files[index] if isinstance(index, slice) else [self.files[i] for i in index.tolist()]
        return replace(self, files=chosen)

    @property
    def shape(self) -> torch.Size:
        """[N, C, S, S]."""
        return torch.Size((len(self), self.channels, self.size, self.size))

    @property
    def nbytes(self) -> int:
        """What the central squares would take."""
        return self.shape.numel()

    def dim(self) -> int:
        """Return 4."""
        return len(self.shape)

    def numel(self) -> int:
        """Return the values of all central squares."""
        return self.shape.numel()

    def to(self, device: torch.device | str) -> Tensor:
        """Decode the central squares, uint8 [N, C, S, S] on `device`."""
        return self._all(lambda number: decode(self.files[number], self.size, self.channels)).to(device)

    def cut(self, box: Callable[[int, int, int], Box], size: int) -> Tensor:
        """Cut a part out of each image and resize it (bilinear, each pixel the mean of all that it covers).

        Args:
            box: the part of the image of a number, of a height and a width.
            size: pixels of a side.

        Returns:
            uint8 [N, C, size, size].
        """

        def one(number: int) -> NDArray[np.uint8]:
            image = decode(self.files[number], None, self.channels)
            top, left, height, width = box(number, *image.shape[1:])
            part = image[:, top : top + height, left : left + width].transpose(1, 2, 0)
            pixels = Image.fromarray(np.ascontiguousarray(part[..., 0] if self.channels == 1 else part))
            resized = np.asarray(pixels.resize((size, size), Image.Resampling.BILINEAR))
            return resized.reshape(size, size, self.channels).transpose(2, 0, 1)

        return self._all(one)

    def _all(self, one: Callable[[int], NDArray[np.uint8]]) -> Tensor:
        """Stack what `one` makes of each number; Pillow decodes outside Python's lock, so threads help."""
        with ThreadPoolExecutor(cores()) as pool:
            return torch.from_numpy(np.stack(list(pool.map(one, range(len(self))))))


def in_files(images: object) -> TypeGuard[ImageFiles]:
    """Return whether `images` are still in their files."""
    return isinstance(images, ImageFiles)
