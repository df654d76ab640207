"""Pooling in batch tiles is torch's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from machine import ISAS, using
from torch import Tensor, nn
from torch.nn import functional as F

from regrow.nn import BatchTiles, tiles
from regrow.nn.tiles import to_tiles
from regrow.ops import native
from regrow.ops.tiles import tile

pytestmark = pytest.mark.skipif(not native.available(), reason="the kernels were not built")


def compare(function: object, x: Tensor, border: int, isa: str) -> BatchTiles | Tensor:
    """Values and gradients of `function` on tiles and on the plain tensor."""
    assert callable(function)
    plain, tiled = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected = function(plain)
    with using(isa):
        found = function(to_tiles(tiled, border))
        weight = torch.arange(expected.numel(), dtype=x.dtype).reshape(expected.shape).cos()
        (expected * weight).sum().backward()
        (found * weight).sum().backward()
        dense = found.to_dense_layout() if isinstance(found, BatchTiles) else found
        tolerance = 1e-5 if x.dtype == torch.float32 else 1e-12
        assert torch.allclose(dense, expected, rtol=tolerance, atol=tolerance)
        assert torch.allclose(tiled.grad, plain.grad, rtol=tolerance, atol=tolerance)
    if isinstance(found, BatchTiles):
        assert torch.equal(tile(dense.detach(), found.geometry.border), found.buffer)
    return found


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@pytest.mark.parametrize("isa", ISAS)
@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.sampled_from([1, 3, 16, 20]), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    border=st.integers(0, 2),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    kind=st.sampled_from(["max", "average"]),
    kernel=pairs,
    stride=st.one_of(st.none(), pairs),
    padding=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    ceil_mode=st.booleans(),
    count_include_pad=st.booleans(),
    divisor_override=st.sampled_from([None, 3]),
    ties=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_windows(
    isa: str,
    shape: tuple[int, int, int, int],
    border: int,
    dtype: torch.dtype,
    kind: str,
    kernel: tuple[int, int],
    stride: tuple[int, int] | None,
    padding: tuple[int, int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
    ties: bool,
    seed: int,
) -> None:
    assume(all(2 * p <= k <= size + 2 * p for p, k, size in zip(padding, kernel, shape[2:], strict=True)))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    x = x.round() if ties else x
    if kind == "max":
        pool: nn.Module = nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil_mode)
    else:
        pool = nn.AvgPool2d(kernel, stride, padding, ceil_mode, count_include_pad, divisor_override)
    assert isinstance(compare(pool, x, border, isa), BatchTiles)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "function",
    [
        nn.AdaptiveAvgPool2d(1),
        nn.AdaptiveAvgPool2d((1, 1)),
        lambda x: x.mean(axis=(2, 3)),
        lambda x: torch.mean(x, dim=(-1, -2), keepdim=True),
    ],
)
def test_means(isa: str, dtype: torch.dtype, function: object) -> None:
    converted: list[str] = []
    tiles.on_convert.append(lambda operation, shape, milliseconds: converted.append(operation))
    try:
        for shape in ((20, 3, 5, 4), (16, 2, 1, 1), (1, 4, 9, 9)):
            assert compare(function, torch.randn(shape, dtype=dtype), 1, isa).shape[:2] == shape[:2]
    finally:
        tiles.on_convert.clear()
    assert set(converted) == {"to_tiles", "gradient of the first tiles"}


def test_nan_is_kept() -> None:
    x = torch.tensor([[1.0, float("nan")], [2.0, -float("inf")]])[None, None]
    assert F.max_pool2d(to_tiles(x), 2).to_dense_layout().isnan().all()
    low = F.max_pool2d(to_tiles(torch.full((1, 1, 2, 2), -float("inf"))), 2)
    assert low.to_dense_layout().item() == -float("inf")


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.max_pool2d(x, 2, dilation=2),
        lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
        lambda x: F.adaptive_avg_pool2d(x, 2),
        lambda x: F.adaptive_max_pool2d(x, 1),
        lambda x: x.mean((1, 2)),
        lambda x: x.mean(1),
        lambda x: F.avg_pool2d(x[:0], 2),
    ],
)
def test_others_convert(function: object) -> None:
    assert type(compare(function, torch.randn(3, 2, 6, 6), 1, native.isa() or "")) is Tensor


def test_torch_refuses_what_it_refuses() -> None:
    x = to_tiles(torch.randn(2, 2, 4, 4))
    with pytest.raises(RuntimeError, match="pad should be at most half"):
        F.max_pool2d(x, 2, padding=2)
    with pytest.raises(RuntimeError, match="Output size is too small"):
        F.avg_pool2d(x, 5)
    with pytest.raises(RuntimeError, match="divisor must be not zero"):
        F.avg_pool2d(x, 2, divisor_override=0)
