"""Images to batch tiles and back: the kernels and their reference do the same."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from machine import ISAS, using

from regrow._random import generator
from regrow.ops.tiles import geometry_of, reborder, tile, untile


def expected(images: torch.Tensor, border: int) -> torch.Tensor:
    """Element by element, as the module's docstring describes the layout."""
    n, c, h, w = images.shape
    geometry = geometry_of(images, border)
    buffer = torch.zeros(geometry.tiles, c, geometry.plane, 16, dtype=images.dtype)
    for i in range(n):
        for row in range(h):
            start = (row + border) * (w + border) + border
            buffer[i // 16, :, start : start + w, i % 16] = images[i, :, row]
    return buffer


@pytest.mark.parametrize("isa", ["reference", *ISAS])
@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(
        st.sampled_from([0, 1, 5, 15, 16, 17, 40]),
        st.sampled_from([1, 3, 15, 16, 19, 33]),
        st.integers(1, 9),
        st.sampled_from([1, 2, 5, 8, 17]),
    ),
    border=st.integers(0, 2),
    other=st.integers(0, 3),
    layout=st.sampled_from(["contiguous", "channels-last", "turned", "expanded"]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 10**6),
)
def test_there_and_back(
    isa: str,
    shape: tuple[int, int, int, int],
    border: int,
    other: int,
    layout: str,
    dtype: torch.dtype,
    seed: int,
) -> None:
    images = torch.randn(shape, generator=generator(seed, "images")).to(dtype)
    if layout == "channels-last":
        images = images.contiguous(memory_format=torch.channels_last)
    elif layout == "turned":
        images = images.transpose(2, 3).contiguous().transpose(2, 3)
    elif layout == "expanded":
        images = images[:1].expand(shape[0] and 18, -1, -1, -1) if shape[0] else images
    with using(isa):
        buffer = tile(images, border)
        geometry = geometry_of(images, border)
        assert torch.equal(buffer, expected(images, border))
        assert torch.equal(reborder(buffer, geometry, other), expected(images, other))
        for channels_last in (False, True):
            back = untile(buffer, geometry, channels_last)
            assert torch.equal(back, images)
            assert back.is_contiguous(
                memory_format=torch.channels_last if channels_last else torch.contiguous_format
            )
