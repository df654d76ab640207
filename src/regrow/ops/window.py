"""`Window`: the geometry of a convolution."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from regrow.ops.tiles import BORDER, Geometry


class Window(NamedTuple):
    """Where a convolution's taps lie; vertically, then horizontally."""

    kernel: Sequence[int]
    """Height and width."""
    stride: Sequence[int]
    padding: Sequence[int]
    """Rows above and below the image, columns left and right of it."""
    dilation: Sequence[int]

    def span(self, dimension: int) -> int:
        """Count the pixels from the first tap to the last, both included."""
        return self.dilation[dimension] * (self.kernel[dimension] - 1) + 1

    def size(self, dimension: int, size: int) -> int:
        """Count the pixels of the output for so many of the input; below 1 if the kernel exceeds the padded image."""
        padded = size + self.padding[2 * dimension] + self.padding[2 * dimension + 1]
        return (padded - self.span(dimension)) // self.stride[dimension] + 1

    def output(self, geometry: Geometry, border: int = BORDER) -> Geometry:
        """Return the geometry of the output."""
        return Geometry(geometry.images, self.size(0, geometry.height), self.size(1, geometry.width), border)

    def border(self, geometry: Geometry) -> int:
        """Return the border that the kernels read of the input."""
        return max(
            border
            for d, size in enumerate((geometry.height, geometry.width))
            for border in (
                self.padding[2 * d],
                (self.size(d, size) - 1) * self.stride[d] + self.span(d) - self.padding[2 * d] - size,
            )
        )

    def gradient_border(self, geometry: Geometry) -> int:
        """Return the border that the kernels read of the output's gradient, by the geometry of the input."""
        return max(
            border
            for d, size in enumerate((geometry.height, geometry.width))
            for border in (
                -((self.padding[2 * d] - self.span(d) + 1) // self.stride[d]),
                (size - 1 + self.padding[2 * d]) // self.stride[d] - self.size(d, size) + 1,
            )
        )


@lru_cache(maxsize=1024)
def borders(window: Window, geometry: Geometry) -> tuple[int, int]:
    """Return `Window.border` and `Window.gradient_border`, computed once for the layers of a network."""
    return window.border(geometry), window.gradient_border(geometry)
