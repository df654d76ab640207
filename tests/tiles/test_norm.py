"""Batch norm in batch tiles, alone and with what follows it, is torch's."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from machine import ISAS, threads, using
from not_finite import STRANGE, assert_same, places, with_strange
from torch import Tensor, nn
from torch.nn import functional as F

from regrow.nn import BatchTiles, FusedBatchNorm2d
from regrow.ops import native
from regrow.ops.tiles import tile
from regrow.tiles.tensor import to_tiles

pytestmark = pytest.mark.skipif(not native.available(), reason="the kernels were not built")


def assert_zero_around(x: Tensor) -> None:
    assert isinstance(x, BatchTiles)
    assert torch.equal(tile(x.detach().to_dense_layout(), x.geometry.border), x.buffer)


@pytest.mark.parametrize("isa", ISAS)
@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(
        st.sampled_from([1, 2, 15, 16, 17, 40]), st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)
    ).filter(lambda shape: shape[0] * shape[2] * shape[3] > 1),
    border=st.integers(0, 2),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    affine=st.booleans(),
    momentum=st.sampled_from([0.1, 1.0, None]),
    tracked=st.booleans(),
    training=st.booleans(),
    relu=st.booleans(),
    residual=st.sampled_from(["", "tiles", "plain"]),
    mean=st.sampled_from([0.0, 3.0, -200.0]),
    seed=st.integers(0, 10**6),
)
def test_fused_norm(
    isa: str,
    shape: tuple[int, int, int, int],
    border: int,
    dtype: torch.dtype,
    affine: bool,
    momentum: float | None,
    tracked: bool,
    training: bool,
    relu: bool,
    residual: str,
    mean: float,
    seed: int,
) -> None:
    draw = torch.Generator().manual_seed(seed)

    def drawn(*size: int) -> Tensor:
        return torch.randn(*size, generator=draw, dtype=torch.float64)

    norm = nn.BatchNorm2d(shape[1], 1e-3, momentum, affine, tracked).double().train(training)
    for tensor in (*norm.parameters(), *norm.buffers()):
        if tensor.dim():
            tensor.data = drawn(shape[1]).abs() + 0.1
    exact = [(drawn(*shape) + mean).to(dtype).double().requires_grad_() for _ in range(2)]
    weight = drawn(*shape)
    twin = copy.deepcopy(norm).to(dtype)
    fused = FusedBatchNorm2d.from_batch_norm(twin)

    expected = norm(exact[0])
    expected = expected + exact[1] if residual else expected
    gate = expected.detach() > 0
    expected = expected * gate if relu else expected
    (expected * weight).sum().backward()

    with using(isa):
        x, r = (tensor.detach().to(dtype).requires_grad_() for tensor in exact)
        added = {"": None, "plain": r, "tiles": to_tiles(r, 1 - min(border, 1))}[residual]
        found = fused(to_tiles(x, border), added) if relu else twin(to_tiles(x, border))
        if not relu and added is not None:
            found = found + added
        assert_zero_around(found)
        found.backward(to_tiles(weight.to(dtype), 1))

    tolerance = 1e-10 if dtype == torch.float64 else 2e-3 if mean < -100 else 2e-4
    near_zero = relu and (expected.abs() + (~gate) > 0).logical_not().any()
    plain = found.to_dense_layout().double()
    assert torch.allclose(plain, expected, rtol=tolerance, atol=tolerance)
    for name, value in fused.state_dict().items():
        assert torch.allclose(value.double(), norm.state_dict()[name].double(), rtol=tolerance)
    if near_zero or (relu and ((plain > 0) != gate).any()):
        return  # rounding decides what a ReLU lets through
    pairs = [(x.grad, exact[0].grad), (r.grad, exact[1].grad)]
    pairs += [(p.grad, q.grad) for p, q in zip(fused.parameters(), norm.parameters(), strict=True)]
    for one, other in pairs:
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            scale = max(1.0, float(other.abs().max()))
            assert torch.allclose(one.double(), other, rtol=tolerance, atol=10 * tolerance * scale)


@pytest.mark.parametrize("isa", ISAS)
@settings(deadline=None, max_examples=60)
@given(
    images=st.sampled_from([2, 16, 19]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    training=st.booleans(),
    relu=st.booleans(),
    residual=st.booleans(),
    drawn=st.tuples(places, places, places),
    affine=st.tuples(*[st.sampled_from([None, None, None, *STRANGE])] * 2),
    scale=st.sampled_from([1.0, 1e19]),
    seed=st.integers(0, 10**6),
)
def test_what_is_not_finite(
    isa: str,
    images: int,
    dtype: torch.dtype,
    training: bool,
    relu: bool,
    residual: bool,
    drawn: tuple[list[tuple[float, float]], ...],
    affine: tuple[float | None, float | None],
    scale: float,
    seed: int,
) -> None:
    """Results exactly as torch's; of the gradients the finite ones, and those alone are finite.

    For the others torch adds the same terms in another order of scaling, so that one says inf and the other nan.
    """
    draw, shape = torch.Generator().manual_seed(seed), (images, 3, 4, 3)
    x, r, above = (with_strange(torch.randn(shape, generator=draw, dtype=dtype), some) for some in drawn)
    x = x * scale  # squares are beyond float32
    norm = nn.BatchNorm2d(3, dtype=dtype).train(training)
    with torch.no_grad():
        for parameter, value in zip(norm.parameters(), affine, strict=True):
            parameter.uniform_(0.5, 2, generator=draw)
            if value is not None:
                parameter[1] = value
        norm.running_var.fill_(scale * scale)
    fused, exact = FusedBatchNorm2d.from_batch_norm(copy.deepcopy(norm)), copy.deepcopy(norm).double()
    if not training:
        exact.running_var.copy_(norm.running_var)

    leaves = [t.double().clone().requires_grad_() for t in (x, r)]
    expected = exact(leaves[0])
    expected = expected + leaves[1] if residual else expected
    expected = F.relu(expected) if relu else expected
    expected.backward(above.double())

    own = [t.clone().requires_grad_() for t in (x, r)]
    with using(isa):
        layer = fused if relu else fused.to_batch_norm()
        found = layer(to_tiles(own[0]), to_tiles(own[1])) if relu and residual else layer(to_tiles(own[0]))
        found = found + to_tiles(own[1]) if residual and not relu else found
        assert_zero_around_or_nan(found)
        found.backward(to_tiles(above))

    tolerance = 1e-3 if dtype == torch.float32 else 1e-9
    plain = found.detach().to_dense_layout()
    assert_same(plain, expected.detach(), tolerance)
    for name, value in layer.state_dict().items():
        wanted = exact.state_dict()[name].to(value.dtype)
        assert torch.allclose(value, wanted, rtol=tolerance, equal_nan=True), name
    if relu and ((plain > 0) != (expected > 0)).any():
        return  # rounding decides what a ReLU lets through
    pairs = list(zip(own[: 1 + residual], leaves, strict=False))
    pairs += list(zip(layer.parameters(), exact.parameters(), strict=True))
    for one, other in pairs:
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad.isfinite(), other.grad.to(dtype).isfinite())
        sound = other.grad.isfinite()
        limit = tolerance * max(1.0, float(other.grad[sound].abs().max())) if sound.any() else 0.0
        assert torch.allclose(one.grad[sound].double(), other.grad[sound], rtol=tolerance, atol=10 * limit)


def assert_zero_around_or_nan(x: Tensor) -> None:
    assert_same(tile(x.detach().to_dense_layout(), x.geometry.border), x.buffer, 0)


def test_a_second_derivative_through_nan() -> None:
    """The gate of a ReLU behind a sum: nan passes, and what is not finite is cut where the ReLU was closed."""
    x, r = torch.randn(2, 2, 3, 2, 2, dtype=torch.float64)
    with torch.no_grad():
        r[0, 0, 0, 0], r[1, 2, 0, 0] = float("nan"), -100.0
    above = torch.ones_like(x)
    above[1, 2, 0, 0] = float("inf")
    fused, results = FusedBatchNorm2d(3, dtype=torch.float64).eval(), []
    for tiled in (True, False):
        leaves = [x.clone().requires_grad_(), r.clone().requires_grad_()]
        if tiled:
            y = fused(*(to_tiles(t) for t in leaves)).to_dense_layout()
        else:
            y = fused(*leaves)
        results.append(torch.autograd.grad(y, leaves, above, create_graph=True))
    for found, expected in zip(*results, strict=True):
        assert_same(found.detach(), expected.detach(), 1e-9)


def test_gradcheck() -> None:
    x = torch.randn(3, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    r = torch.randn(3, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    fused, plain = FusedBatchNorm2d(2, dtype=torch.float64), nn.BatchNorm2d(2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, r: fused(to_tiles(x), to_tiles(r)).to_dense_layout(), (x, r))
    assert torch.autograd.gradcheck(lambda x: plain(to_tiles(x)).to_dense_layout(), x)


def test_torchs_own_module_uses_it() -> None:
    x = torch.randn(20, 6, 5, 5)
    norm, twin = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
    y = norm(to_tiles(x))
    assert isinstance(y, BatchTiles)
    assert torch.allclose(y.to_dense_layout(), twin(x), atol=1e-5)
    assert torch.allclose(norm.running_var, twin.running_var)
    with torch.inference_mode():
        assert torch.allclose(norm.eval()(to_tiles(x)).to_dense_layout(), twin.eval()(x), atol=1e-5)


def test_what_has_no_kernel_is_converted() -> None:
    x, r = torch.randn(2, 4, 6, 5, 5, dtype=torch.bfloat16)
    norm, twin = FusedBatchNorm2d(6), FusedBatchNorm2d(6)  # float32
    assert torch.equal(norm(to_tiles(x), r), twin(x, r))
    empty = to_tiles(torch.empty(0, 6, 5, 5))
    assert FusedBatchNorm2d(6).eval()(empty).shape == (0, 6, 5, 5)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        FusedBatchNorm2d(6)(to_tiles(torch.randn(1, 6, 1, 1)))


def test_results_do_not_depend_on_the_threads() -> None:
    x = to_tiles(torch.randn(70, 9, 7, 7)).requires_grad_()
    found = []
    for number in (1, 2, 3):
        with threads(number):
            norm = FusedBatchNorm2d(9)
            y = norm(x)
            found.append([y.detach().buffer, *torch.autograd.grad(y.sum() * 1e-3, [x, norm.weight])])
    for other in found[1:]:
        assert torch.equal(found[0][0], other[0])
        assert torch.equal(found[0][1].buffer, other[1].buffer)
        assert torch.equal(found[0][2], other[2])


def test_a_change_of_the_input_is_noticed() -> None:
    for change in (Tensor.relu_, lambda x: x.sub_(1), lambda x: x.__setitem__(0, 1.0)):
        x = to_tiles(torch.randn(4, 3, 5, 5, requires_grad=True))
        y = nn.BatchNorm2d(3)(x)
        change(x)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_there_and_back_keeps_the_tensors() -> None:
    norm = nn.BatchNorm2d(3)
    fused = FusedBatchNorm2d.from_batch_norm(norm)
    back = fused.eval().to_batch_norm()
    assert fused.weight is norm.weight
    assert back.running_var is norm.running_var
    assert type(back) is nn.BatchNorm2d
    assert not back.training
    assert fused.state_dict().keys() == norm.state_dict().keys()
    assert torch.equal(fused(torch.ones(2, 3, 4, 4)), F.relu(norm.eval()(torch.ones(2, 3, 4, 4))))
