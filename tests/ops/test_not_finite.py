"""What is not finite passes the kernels as it passes torch's functions: a network that has diverged looks so.

The expected results are sums over the connections alone, in float64: a dense product would multiply what is not finite
with the zeros between them, and say nan where a sparse layer does not even look.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from machine import ISAS, using
from not_finite import STRANGE, assert_same, places, with_strange
from torch import Tensor
from torch.nn import functional as F

from regrow import SparseLinear
from regrow._random import generator
from regrow.ops import csr
from regrow.ops.conv import backward, forward
from regrow.ops.csr import Csr
from regrow.ops.linear import linear
from regrow.ops.reference import ACTIVATIONS, THROUGH
from regrow.ops.tiles import Geometry, tile, untile
from regrow.ops.window import Window

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 0.1}
IMPLEMENTATIONS = ["reference", *ISAS]

four = st.tuples(places, places, places, places)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 20),
    columns=st.integers(1, 30),
    batch=st.sampled_from([1, 3, 16, 17, 100]),
    dtype=st.sampled_from(list(TOLERANCE)),
    activation=st.sampled_from(list(ACTIVATIONS)),
    drawn=four,
    seed=st.integers(0, 10**6),
)
def test_linear(
    implementation: str,
    rows: int,
    columns: int,
    batch: int,
    dtype: torch.dtype,
    activation: str,
    drawn: tuple[list[tuple[float, float]], ...],
    seed: int,
) -> None:
    draw = generator(seed, "not finite")
    positions = (torch.rand(rows, columns, generator=draw) < 0.3).view(-1).nonzero().view(-1)
    row, col = positions // columns, positions % columns
    shapes = (batch, columns), (len(positions), 1), (rows,), (batch, rows)
    x, values, bias, gradient = (
        with_strange(torch.randn(shape, generator=draw).to(dtype), some)
        for shape, some in zip(shapes, drawn, strict=True)
    )
    crow, columns_of = csr.from_positions(positions, rows, columns)
    index = Csr.of(crow, columns_of, columns)
    leaves = [t.clone().requires_grad_() for t in (x, values, bias)]
    with using(implementation):
        output = linear(*leaves, index, activation)
        output.backward(gradient)

    x, values, bias, gradient = (t.double() for t in (x, values, bias, gradient))
    products = x[:, col] * values[:, 0]
    before = bias + torch.zeros(batch, rows, dtype=torch.float64).index_add(1, row, products)
    assert_same(output.detach(), ACTIVATIONS[activation](before), TOLERANCE[dtype])
    kept = (
        output.detach().double() if activation == "relu" else before
    )  # which rounding may have brought to 0
    through = THROUGH[activation](gradient, kept) if activation != "none" else gradient
    expected = (
        torch.zeros_like(x).index_add(1, col, through[:, row] * values[:, 0]),
        (through[:, row] * x[:, col]).sum(0)[:, None],
        through.sum(0),
    )
    for leaf, wanted in zip(leaves, expected, strict=True):
        assert leaf.grad is not None
        assert_same(leaf.grad, wanted, 10 * TOLERANCE[dtype])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_activations_and_their_derivatives(implementation: str, dtype: torch.dtype, activation: str) -> None:
    """One feature, passed on as it is, against torch's function and torch's own backward pass."""
    x = torch.tensor([*STRANGE, -0.0, 0.0, -200.0, 200.0, -88.2, 88.9, -1e30, 1e30, 1.0] * 3, dtype=dtype)[
        :, None
    ]
    layer = SparseLinear(
        1, 1, False, positions=torch.tensor([0]), values=torch.ones(1, dtype=dtype), activation=activation
    )
    given_, twin = x.clone().requires_grad_(), x.double().requires_grad_()
    with using(implementation):
        y = layer(given_)
        y.sum().backward()
    expected = ACTIVATIONS[activation](twin)
    expected.sum().backward()
    assert_same(y.detach(), expected.detach(), 1e-6)
    assert given_.grad is not None
    assert twin.grad is not None
    assert_same(given_.grad, twin.grad, 1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@settings(deadline=None, max_examples=60)
@given(
    channels=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    images=st.sampled_from([1, 16, 19]),
    size=st.tuples(st.integers(3, 6), st.integers(3, 6)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.integers(0, 1),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    drawn=st.tuples(places, places),
    weight=st.sampled_from([0.0, *STRANGE]),
    seed=st.integers(0, 10**6),
)
def test_convolutions(
    implementation: str,
    channels: tuple[int, int],
    images: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: int,
    dtype: torch.dtype,
    drawn: tuple[list[tuple[float, float]], ...],
    weight: float,
    seed: int,
) -> None:
    """Beyond an image's edges there are zeros, which torch's own implementations multiply or leave out.

    So only where all that a number could be computed of is finite must it be close; where it is not, it must not be.
    """
    draw = generator(seed, "not finite")
    window = Window(kernel, stride, (padding,) * 4, (1, 1))
    geometry = Geometry(images, *size, 1)
    out = window.output(geometry)
    columns = channels[1] * kernel[0] * kernel[1]
    positions = (torch.rand(channels[0], columns, generator=draw) < 0.5).view(-1).nonzero().view(-1)
    row, col = positions // columns, positions % columns
    values = torch.randn(len(positions), 1, generator=draw, dtype=dtype)
    values[:1] = weight or values[:1]
    x = with_strange(torch.randn(images, channels[1], *size, generator=draw, dtype=dtype), drawn[0])
    above = torch.randn(images, channels[0], out.height, out.width, generator=draw, dtype=dtype)
    above = with_strange(above, drawn[1])
    crow, columns_of = csr.from_positions(positions, channels[0], columns)
    index = Csr.of(crow, columns_of, columns)
    with using(implementation):
        arguments = (tile(x), geometry, values)
        y = forward(*arguments, None, index, window, 1)
        found = backward(tile(above), out, *arguments, index, window, (True, True, True))

    x, values, above = (t.double() for t in (x, values, above))
    unfold = {"kernel_size": kernel, "stride": stride, "padding": padding}
    read, inside = F.unfold(x, **unfold), F.unfold(torch.ones_like(x), **unfold) > 0
    flat = above.flatten(2)
    expected = torch.zeros_like(flat).index_add(1, row, (read[:, col] * values).where(inside[:, col], 0))
    exact = weight == 0
    tolerance = TOLERANCE[dtype] * 10
    images_of = untile(y, out).double().flatten(2)
    if exact or implementation != "reference":  # which has a dense weight, and so multiplies the zeros in it
        assert_finite_alike(images_of, expected, tolerance, exact=exact and implementation != "reference")
    spread = torch.zeros_like(read).index_add(1, col, (flat[:, row] * values).where(inside[:, col], 0))
    assert_finite_alike(
        untile(found[0], geometry).double(), F.fold(spread, size, **unfold), tolerance, exact=False
    )
    of_values = (flat[:, row] * read[:, col]).where(inside[:, col], 0).sum((0, 2))
    assert_finite_alike(found[1][:, 0].double(), of_values, tolerance, exact=False)
    assert_same(found[2], above.sum((0, 2, 3)), tolerance)
    for buffer, at in ((y, out), (found[0], geometry)):
        assert_same(
            tile(untile(buffer, at), at.border), buffer, 0
        )  # zeros around the images and past the batch


def assert_finite_alike(found: Tensor, expected: Tensor, tolerance: float, exact: bool) -> None:
    if exact:
        return assert_same(found, expected, tolerance)
    assert not (found.isfinite() & ~expected.isfinite()).any()
    both = found.isfinite()
    return assert_same(found[both], expected[both], tolerance)


def test_a_second_derivative_through_a_relu() -> None:
    x = torch.tensor([[float("nan"), 1.0, -1.0]], dtype=torch.float64, requires_grad=True)
    weight = torch.ones(3, dtype=torch.float64, requires_grad=True)
    layer = SparseLinear(
        3, 3, False, positions=torch.tensor([0, 4, 8]), values=weight.detach(), activation="relu"
    )
    results = []
    for y, leaf in ((layer(x), layer.weight_values), (torch.relu(x * weight), weight)):
        (once,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        (of_values,) = torch.autograd.grad(once.sum(), leaf)
        results.append((once.detach(), of_values.view(-1)[:3]))
    for found, expected in zip(*results, strict=True):
        assert_same(found, expected, 0)
