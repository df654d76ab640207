"""Pooling in batch tiles is torch's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from machine import ISAS, using
from not_finite import assert_same, places, with_strange
from torch import Tensor, nn
from torch.nn import functional as F

from regrow.nn import BatchTiles
from regrow.ops import native
from regrow.ops.tiles import tile
from regrow.tiles import on_convert, to_tiles

pytestmark = pytest.mark.skipif(not native.available(), reason="the kernels were not built")


def compare(
    function: object,
    x: Tensor,
    border: int,
    isa: str,
    above: list[tuple[float, float]] = [],  # noqa: B006  (read only)
) -> BatchTiles | Tensor:
    """Values and gradients of `function` on tiles and on the plain tensor; `above`: not finite in the gradient."""
    assert callable(function)
    plain, tiled = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected = function(plain)
    with using(isa):
        found = function(to_tiles(tiled, border))
        weight = torch.arange(expected.numel(), dtype=x.dtype).reshape(expected.shape).cos()
        weight = with_strange(weight, above)
        expected.backward(weight)
        found.backward(to_tiles(weight, 1) if isinstance(found, BatchTiles) else weight)
        dense = found.to_dense_layout() if isinstance(found, BatchTiles) else found
        tolerance = 1e-5 if x.dtype == torch.float32 else 1e-12
        assert_same(dense.detach(), expected.detach(), tolerance)
        assert_same(tiled.grad, plain.grad, tolerance)
    if isinstance(found, BatchTiles):
        assert_same(tile(dense.detach(), found.geometry.border), found.buffer, 0)
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
    strange=st.tuples(places, places),
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
    strange: tuple[list[tuple[float, float]], ...],
    seed: int,
) -> None:
    assume(all(2 * p <= k <= size + 2 * p for p, k, size in zip(padding, kernel, shape[2:], strict=True)))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    x = with_strange(x.round() if ties else x, strange[0])
    if kind == "max":
        pool: nn.Module = nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil_mode)
    else:
        pool = nn.AvgPool2d(kernel, stride, padding, ceil_mode, count_include_pad, divisor_override)
    assert isinstance(compare(pool, x, border, isa, strange[1]), BatchTiles)


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
    with on_convert(lambda operation, shape, milliseconds: converted.append(operation)):
        for shape in ((20, 3, 5, 4), (16, 2, 1, 1), (1, 4, 9, 9)):
            assert compare(function, torch.randn(shape, dtype=dtype), 1, isa).shape[:2] == shape[:2]
    assert set(converted) == {"to_tiles", "gradient of the first tiles"}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_several_nan_the_last_gets_the_gradient(isa: str, dtype: torch.dtype) -> None:
    """As in torch, whose other ties go to the first."""
    nan = float("nan")
    x = torch.tensor([[nan, 1.0, 4.0, 4.0], [2.0, nan, 4.0, nan], [1.0, nan, 3.0, 3.0]], dtype=dtype)
    compare(nn.MaxPool2d(2, 1), x.expand(17, 2, 3, 4), 1, isa)


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
