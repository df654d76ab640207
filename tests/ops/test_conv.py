"""The sparse convolution, each instruction set that this machine has and the reference, against torch in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from machine import ISAS, threads, using
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from regrow._random import generator
from regrow.ops import csr, native
from regrow.ops.conv import backward, forward
from regrow.ops.csr import Csr
from regrow.ops.images import sparse_conv2d
from regrow.ops.tiles import Geometry, tile, untile
from regrow.ops.window import Window

TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 0.01}


def compressed(
    shape: tuple[int, int, int, int], density: float, dtype: torch.dtype, seed: int
) -> tuple[Tensor, Tensor, Tensor, Csr]:
    """A weight in float64 with some channels left empty, its positions, its values with padding, its index."""
    draw = generator(seed, "weight")
    mask = torch.rand(shape, generator=draw) < density
    if 0 < density < 1:
        mask[torch.rand(shape[0], generator=draw) < 0.2] = False
        mask[:, torch.rand(shape[1], generator=draw) < 0.2] = False
    weight = (torch.randn(shape, generator=draw) * mask).to(dtype)
    positions = mask.view(-1).nonzero().view(-1)
    columns = shape[1] * shape[2] * shape[3]
    crow, col = csr.from_positions(positions, shape[0], columns)
    spare = seed % 3
    col = F.pad(col, (0, spare))
    values = F.pad(weight.view(-1)[positions], (0, spare), value=7)[:, None]
    return weight.double(), positions, values, Csr.of(crow, col, columns)


def dense(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
    """The convolution by torch."""
    top, bottom, left, right = window.padding
    return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, window.stride, 0, window.dilation)


def pair(numbers: st.SearchStrategy[int]) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(numbers, numbers)


windows = st.builds(
    Window,
    pair(st.integers(1, 4)),
    pair(st.sampled_from([1, 1, 2, 3])),
    st.tuples(*[st.integers(0, 3)] * 4),
    pair(st.sampled_from([1, 1, 2])),
)


@pytest.mark.parametrize("implementation", ["reference", *ISAS])
@settings(deadline=None, max_examples=60)
@given(
    window=windows,
    size=st.tuples(st.integers(1, 19), st.integers(1, 19)),
    channels=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    images=st.sampled_from([0, 1, 5, 16, 17, 35]),
    borders=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    density=st.sampled_from([0.0, 0.02, 0.1, 0.4, 1.0]),
    dtype=st.sampled_from(list(TOLERANCE)),
    bias=st.booleans(),
    needs=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    seed=st.integers(0, 10**6),
)
def test_every_geometry(
    implementation: str,
    window: Window,
    size: tuple[int, int],
    channels: tuple[int, int],
    images: int,
    borders: tuple[int, int],
    density: float,
    dtype: torch.dtype,
    bias: bool,
    needs: tuple[bool, bool, bool],
    seed: int,
) -> None:
    geometry = Geometry(images, *size, borders[0])
    output = window.output(geometry, borders[1])
    assume(min(output.height, output.width) >= 1)
    weight, positions, values, index = compressed((*channels, *window.kernel), density, dtype, seed)
    draw = generator(seed, "activations")

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

    x = drawn(images, channels[1], *size)
    b = drawn(channels[0]) if bias else None
    g = drawn(images, channels[0], output.height, output.width)
    with using(implementation):
        arguments = (tile(x, geometry.border), geometry, values)
        y = forward(*arguments, b, index, window, output.border)
        found = backward(tile(g, output.border), output, *arguments, index, window, needs)

    exact = [t.double().requires_grad_() for t in (x, weight)]
    reference = dense(exact[0], exact[1], None if b is None else b.double(), window)

    def close(found: Tensor, expected: Tensor, terms: int) -> None:
        assert found.dtype == dtype
        limit = TOLERANCE[dtype] * (1 + terms**0.5) * 5
        torch.testing.assert_close(found.double(), expected, rtol=TOLERANCE[dtype], atol=limit)

    def close_tiles(buffer: Tensor, at: Geometry, expected: Tensor, terms: int) -> None:
        plain = untile(buffer, at)
        close(plain, expected, terms)
        assert torch.equal(tile(plain, at.border), buffer)  # zeros around the images and past the batch

    taps = window.kernel[0] * window.kernel[1]
    close_tiles(y, output, reference.detach(), channels[1] * taps)
    wanted = (
        torch.autograd.grad(reference, exact, g.double()) if images else [torch.zeros_like(t) for t in exact]
    )
    if needs[0]:
        close_tiles(found[0], geometry, wanted[0], channels[0] * taps)
    if needs[1]:
        expected = F.pad(wanted[1].reshape(-1)[positions], (0, seed % 3))[:, None]
        close(found[1], expected, images * output.height * output.width)
    if needs[2]:
        close(found[2], g.double().sum((0, 2, 3)), images * output.height * output.width)


@pytest.mark.parametrize("implementation", ISAS)
@pytest.mark.parametrize(
    ("channels", "side", "kernel", "stride"),
    [
        ((40, 5), 60, 3, 1),
        ((5, 40), 60, 3, 1),
        ((20, 40), 60, 1, 1),
        ((9, 3), 150, 1, 1),
        ((24, 20), 61, 3, 2),
    ],
)
@pytest.mark.parametrize("density", [0.03, 0.4])
def test_activations_larger_than_the_caches(
    implementation: str, channels: tuple[int, int], side: int, kernel: int, stride: int, density: float
) -> None:
    around = kernel // 2
    window = Window((kernel, kernel), (stride, stride), (around,) * 4, (1, 1))
    geometry = Geometry(40, side, side, 1)
    weight, positions, values, index = compressed((*channels, kernel, kernel), density, torch.float32, 1)
    x = torch.randn(40, channels[1], side, side, generator=generator(0, "x"))
    exact = [x.requires_grad_(), weight.float().requires_grad_()]
    expected = dense(exact[0], exact[1], None, window)
    g = torch.randn(expected.shape, generator=generator(0, "g"))
    wanted = torch.autograd.grad(expected, exact, g)
    with using(implementation):
        arguments = (tile(x.detach()), geometry, values)
        y = forward(*arguments, None, index, window, 1)
        found = backward(tile(g), window.output(geometry), *arguments, index, window, (True, True, False))
    torch.testing.assert_close(untile(y, window.output(geometry)), expected.detach(), rtol=1e-5, atol=1e-4)
    assert torch.equal(tile(untile(found[0], geometry)), found[0])
    torch.testing.assert_close(untile(found[0], geometry), wanted[0], rtol=1e-5, atol=1e-4)
    values_gradient = found[1][: len(positions), 0]
    torch.testing.assert_close(values_gradient, wanted[1].reshape(-1)[positions], rtol=1e-4, atol=0.02)


def problem(window: Window, dtype: torch.dtype = torch.float64) -> tuple[Geometry, list[Any]]:
    """What the kernels are given, differentiable, with their index mirrored and not."""
    geometry = Geometry(2, 5, 6, 1)
    _, _, values, index = compressed((4, 3, *window.kernel), 0.4, dtype, 3)
    x = torch.randn(2, 3, 5, 6, dtype=dtype, generator=generator(0, "x"))
    bias = torch.randn(4, dtype=dtype, generator=generator(0, "bias"))
    leaves = [t.requires_grad_() for t in (tile(x), values, bias)]
    return geometry, [leaves[0], *geometry, *leaves[1:], *index, *window, 1]


def images_problem(window: Window, dtype: torch.dtype = torch.float64) -> list[Any]:
    """What `sparse_conv2d` is given, differentiable."""
    _, arguments = problem(window, dtype)
    x = torch.randn(2, 3, 5, 6, dtype=dtype, generator=generator(0, "x")).requires_grad_()
    return [x, *arguments[5:16]]


@pytest.mark.parametrize(
    "window",
    [
        Window((3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
        Window((3, 2), (2, 1), (0, 1, 2, 0), (1, 2)),
    ],
)
def test_gradcheck(window: Window) -> None:
    arguments = images_problem(window)
    leaves = [argument for argument in arguments[:3] if isinstance(argument, Tensor)]
    assert torch.autograd.gradcheck(lambda *some: sparse_conv2d(*some, *arguments[3:]), leaves)
    assert torch.autograd.gradgradcheck(lambda *some: sparse_conv2d(*some, *arguments[3:]), leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype: torch.dtype) -> None:
    arguments = images_problem(Window((3, 3), (1, 1), (1, 1, 1, 1), (1, 1)), dtype)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(sparse_conv2d, arguments, test_utils=checks)
    if dtype == torch.float32:
        torch.library.opcheck(sparse_conv2d, arguments)


@pytest.mark.skipif(not native.available(), reason="the kernels were not built")
@pytest.mark.parametrize("images", [16, 50])
@pytest.mark.parametrize("density", [0.01, 0.2])
def test_the_number_of_threads_changes_nothing(images: int, density: float) -> None:
    window = Window((3, 3), (1, 1), (1, 1, 1, 1), (1, 1))
    geometry = Geometry(images, 9, 14, 1)
    _, _, values, index = compressed((70, 60, 3, 3), density, torch.float32, 0)
    x, g = tile(torch.randn(images, 60, 9, 14)), tile(torch.randn(images, 70, 9, 14))
    results = []
    for number in (1, 2, 3):
        with threads(number):
            y = forward(x, geometry, values, None, index, window, 1)
            gradients = backward(g, window.output(geometry), x, geometry, values, index, window, (True,) * 3)
            results.append((y, *gradients))
    for others in results[1:]:
        assert all(torch.equal(*both) for both in zip(results[0], others, strict=True))


def test_flops_follow_the_connections() -> None:
    arguments = images_problem(Window((3, 3), (2, 1), (1, 1, 1, 1), (1, 1)), torch.float32)
    with FlopCounterMode(display=False) as counter:
        sparse_conv2d(*arguments).sum().backward()
    once = 2 * len(arguments[1]) * 2 * 3 * 6
    assert counter.get_total_flops() == 3 * once


@pytest.mark.skipif(not native.available(), reason="the kernels were not built")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.zeros(1, 3, 57, 16)}, r"`buffer` must be contiguous \[1, channels, 50, 16\]"),
        ({4: 0, 0: torch.zeros(1, 3, 30, 16)}, "`border` must be at least 1, got 0"),
        ({9: [9, 9]}, "the kernel is larger than the padded image"),
        ({10: [0, 1]}, "`kernel`, `stride` and `dilation` must be positive"),
        ({11: [1, 1]}, "`padding` four"),
        ({8: torch.zeros(2, dtype=torch.int32)}, "`col` must be a contiguous int32 vector"),
        ({0: torch.zeros(1, 3, 56, 16, dtype=torch.float16)}, "float32, float64 and bfloat16"),
    ],
)
def test_what_the_kernels_refuse(change: dict[int, Any], message: str) -> None:
    _, arguments = problem(Window((3, 3), (1, 1), (1, 1, 1, 1), (1, 1)), torch.float32)
    given = [*arguments[:9], *map(list, arguments[12:16]), arguments[16]]
    for place, value in change.items():
        given[place] = value
    with torch.no_grad(), pytest.raises(RuntimeError, match=message):
        torch.ops.regrow_native.conv_forward(*given)
