"""Sums of branches inside a layer, and gradients that meet where one of them is computed: torch's own results."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from machine import ISAS, using
from torch import Tensor, nn
from torch.nn import functional as F

import regrow
from regrow.nn import BatchTiles, FusedBatchNorm2d, SparseConv2d
from regrow.ops import native
from regrow.ops.tiles import tile
from regrow.tiles import to_tiles
from regrow.tiles.deferred import State

pytestmark = pytest.mark.skipif(not native.available(), reason="the kernels were not built")


def sparse(conv: nn.Conv2d, summed: bool = True) -> tuple[SparseConv2d, nn.Conv2d]:
    """Every second connection of a convolution, and the same one dense."""
    layer = SparseConv2d.from_conv(conv, torch.arange(0, conv.weight.numel(), 2))
    twin = copy.deepcopy(layer.to_conv(layer.weight.to_dense())).double()
    layer.summed = summed
    return layer, twin


SUMS: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda y, r: y + r,
    "right": lambda y, r: r + y,
    "+=": lambda y, r: y.__iadd__(r),
    "torch.add": torch.add,
    "add_": lambda y, r: y.add_(r),
}


@pytest.mark.parametrize("isa", ISAS)
@settings(deadline=None, max_examples=40)
@given(
    images=st.sampled_from([1, 15, 16, 33]),
    channels=st.tuples(st.integers(1, 5), st.integers(1, 40)),
    size=st.tuples(st.integers(3, 10), st.integers(3, 10)),
    kernel=st.sampled_from([1, 3]),
    stride=st.integers(1, 2),
    bias=st.booleans(),
    border=st.integers(0, 2),
    form=st.sampled_from(sorted(SUMS)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 10**6),
)
def test_a_convolution_adds_what_its_output_is_added_to(
    isa: str,
    images: int,
    channels: tuple[int, int],
    size: tuple[int, int],
    kernel: int,
    stride: int,
    bias: bool,
    border: int,
    form: str,
    dtype: torch.dtype,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    layer, twin = sparse(nn.Conv2d(*channels, kernel, stride, kernel // 2, bias=bias).to(dtype))
    x = torch.randn(images, channels[0], *size).to(dtype)
    r = torch.randn(twin(x.double()).shape).to(dtype)
    weight = torch.randn(r.shape).to(dtype)
    exact = [tensor.to(torch.float64, copy=True).requires_grad_() for tensor in (x, r)]
    ((twin(exact[0]) + exact[1]) * weight).sum().backward()
    x.requires_grad_()
    r.requires_grad_()
    with using(isa):
        # another reader of x comes first, whose gradient the convolution's own adds to what it finds
        given = to_tiles(x) * 1
        first = layer(given)
        assert first.contents.state is State.DEFERRED
        other = SUMS[form](first, to_tiles(r, border))
        assert first.contents.state is State.DEFERRED  # never computed alone
        again = layer(given)
        total = SUMS[form](again, r)
        for found in (other, total):
            assert torch.equal(tile(found.detach().to_dense_layout(), 1), found.buffer)
        ((other + total) * to_tiles(weight, 1)).sum().backward()
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    assert torch.allclose(total.to_dense_layout().double(), twin(exact[0]) + exact[1], tolerance, tolerance)
    assert torch.equal(other.to_dense_layout(), total.to_dense_layout())
    pairs = [(x.grad, exact[0].grad), (r.grad, exact[1].grad)]
    if bias:
        pairs.append((layer.bias.grad, twin.bias.grad))
    pairs.append((layer.weight.grad.flatten()[::2], twin.weight.grad.flatten()[::2]))
    for one, expected in pairs:
        scale = max(1.0, float(expected.abs().max()))
        assert torch.allclose(one.double(), 2 * expected, tolerance, 10 * tolerance * scale)


def test_gradcheck() -> None:
    torch.manual_seed(0)
    layer, _ = sparse(nn.Conv2d(2, 3, 3, 2, 1).double())
    also, _ = sparse(nn.Conv2d(2, 3, 1, 2).double(), summed=False)
    norm = FusedBatchNorm2d(2, dtype=torch.float64)
    last = FusedBatchNorm2d(3, dtype=torch.float64, summed=True)

    def block(x: Tensor, r: Tensor) -> Tensor:
        t = to_tiles(x) * 1
        y = layer(norm(t)) + also(t)  # two readers of t
        return F.relu(last(y) + to_tiles(r)).to_dense_layout()

    x = torch.randn(3, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    r = torch.randn(3, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, (x, r))
    assert torch.autograd.gradcheck(
        lambda values: (
            torch.func.functional_call(layer, {"weight_values": values}, (to_tiles(x),))
            .__add__(to_tiles(r))
            .to_dense_layout()
        ),
        layer.weight_values,
    )


@pytest.mark.parametrize("isa", ISAS)
def test_large_buffers_are_written_past_the_caches(isa: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(20, 40, 30, 30)
    r, weight = torch.randn_like(x), torch.randn_like(x)
    assert tile(x).numel() * 4 > 4 << 20  # more than `CACHED` of norm.cpp, and the last tile is not full
    norm = nn.BatchNorm2d(40).double()
    exact = [tensor.double().requires_grad_() for tensor in (x, r)]
    y = F.relu(norm(exact[0]) + exact[1])
    ((norm(exact[0]) + y + exact[0]) * weight).sum().backward()
    x.requires_grad_()
    r.requires_grad_()
    alone, fused = copy.deepcopy(norm).float(), FusedBatchNorm2d.from_batch_norm(norm).float()
    for module in (alone, fused):
        module.zero_grad()
    with using(isa):
        given = to_tiles(x) * 1
        found = fused(given, to_tiles(r))
        plain = alone(given)
        for each in (found, plain):
            assert torch.equal(tile(each.detach().to_dense_layout()), each.buffer)
        ((plain + found + given) * to_tiles(weight)).sum().backward()
    assert torch.allclose(found.to_dense_layout().double(), y, 1e-4, 1e-4)
    same = (found.to_dense_layout() > 0) == (y > 0)  # rounding decides the others
    for one, other in zip((x, r), exact, strict=True):
        assert torch.allclose(one.grad.double()[same], other.grad[same], 1e-3, 2e-3)


def dense_and_tiled(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of x of a function of images, on a plain tensor and on tiles."""
    found = []
    for turn in (lambda x: x * 1, lambda x: to_tiles(x) * 1):
        leaf = x.clone().requires_grad_()
        function(turn(leaf)).sum().backward()
        found.append(leaf.grad)
    return found[0], found[1]


class Readers(nn.Module):
    """Several readers of one tensor, some of which can add a gradient to their own."""

    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.first, self.second = nn.BatchNorm2d(4).double(), nn.BatchNorm2d(4).double()
        self.conv = nn.Conv2d(4, 4, 3, padding=1).double()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        one = self.first(x)
        x = self.change(x)
        two = self.second(x) * 0.3
        return self.conv(x * 2) + one * one + two.tanh() + x


def quietly(x: Tensor) -> Tensor:
    with torch.no_grad():
        nn.BatchNorm2d(4).double()(x)
    return x


def watched(x: Tensor) -> Tensor:
    x.register_hook(lambda gradient: gradient * 2)
    return x


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "detached": lambda x: x.detach() + x,
    "a reader without gradients": quietly,
    "a hook": watched,
    "in a view of its own": lambda x: x.clone().mul_(3),
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_reader_gets_its_gradient(change: str) -> None:
    torch.manual_seed(0)
    model = Readers(CHANGES[change])
    expected, found = dense_and_tiled(model, torch.randn(5, 4, 6, 6, dtype=torch.float64))
    assert torch.allclose(found, expected, 1e-10, 1e-12)


def test_a_change_in_place_between_two_readers() -> None:
    torch.manual_seed(0)
    layer, twin = sparse(nn.Conv2d(3, 4, 3, padding=1).double(), summed=False)
    x = torch.randn(5, 3, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        t = to_tiles(x.clone())
        y = layer(t)
        t.relu_()
        assert torch.allclose((y + layer(t)).to_dense_layout(), twin(x) + twin(x.relu()), 1e-10)
    t = to_tiles(x.clone().requires_grad_()) * 1
    y = layer(t)
    t.relu_()
    z = layer(t)
    z.sum().backward()  # the second reader knows nothing of the first
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_gradients_in_the_middle_of_a_graph() -> None:
    torch.manual_seed(0)
    layer, twin = sparse(nn.Conv2d(3, 3, 3, padding=1).double())
    norm, other = nn.BatchNorm2d(3).double(), nn.BatchNorm2d(3).double()
    x = torch.randn(5, 3, 6, 6, dtype=torch.float64, requires_grad=True)

    def middle(x: Tensor, conv: nn.Module) -> list[Tensor]:
        y = F.relu(norm(x))
        z = conv(y) + x
        return [x, y, z, other(z)]

    expected, found = middle(x * 1, twin), middle(to_tiles(x) * 1, layer)
    for number in range(3):  # the last alone, a part, all
        wanted = slice(number, 3)
        one = torch.autograd.grad(expected[3].pow(2).sum(), expected[wanted], retain_graph=True)
        two = torch.autograd.grad((found[3] * found[3]).sum(), found[wanted], retain_graph=True)
        for a, b in zip(one, two, strict=True):
            assert torch.allclose(b.to_dense_layout(), a, 1e-10, 1e-12)
    passed_only = torch.autograd.grad((found[2] - found[2].detach()).sum(), found[0], retain_graph=True)[0]
    assert torch.allclose(
        passed_only.to_dense_layout(),
        torch.autograd.grad(expected[2].sum(), expected[0], retain_graph=True)[0],
    )


def two_heads() -> tuple[list[SparseConv2d], list[nn.Conv2d], Tensor]:
    """Two readers of one tensor, the same dense, and images."""
    torch.manual_seed(0)
    pairs = [sparse(nn.Conv2d(3, 3, 3, padding=1).double(), summed=False) for _ in range(2)]
    images = torch.randn(5, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    return [layer for layer, _ in pairs], [twin for _, twin in pairs], images


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_gradients_of_one_reader_at_a_time(order: tuple[int, int]) -> None:
    layers, twins, x = two_heads()
    t = to_tiles(x) + to_tiles(torch.ones_like(x))  # whose graph can run twice
    outputs, exact = [layer(t) for layer in layers], [twin(x + 1) for twin in twins]
    losses, exact_losses = ([(y * y).sum() for y in each] for each in (outputs, exact))
    for i in order:  # neither frees nor needs the graph of the other
        found = torch.autograd.grad(losses[i], t)[0].to_dense_layout()
        expected = torch.autograd.grad(exact_losses[i], x, retain_graph=True)[0]
        assert torch.allclose(found, expected, 1e-10, 1e-12)
    t = to_tiles(x) + to_tiles(torch.ones_like(x))
    losses = [(y * y).sum() for y in [layer(t) for layer in layers]]
    for i in order:
        losses[i].backward()
    expected = torch.autograd.grad(sum(exact_losses), x)[0]
    assert torch.allclose(x.grad, expected, 1e-10, 1e-12)


def test_a_reader_outside_of_the_loss_is_left_alone() -> None:
    (unused, used), _, x = two_heads()
    calls: list[Any] = []
    unused.weight_values.register_hook(calls.append)
    unused.weight_values.register_post_accumulate_grad_hook(calls.append)
    t = to_tiles(x) * 1
    unused(t)
    used(t).sum().backward()
    assert calls == []
    assert unused.weight_values.grad is None


def test_a_second_derivative_passes_the_readers_by() -> None:
    (layer, _), (twin, _), x = two_heads()
    found = []
    for one, t in ((twin, x * 1), (layer, to_tiles(x) * 1)):
        loss = one(t).sum() + F.conv2d(t * t, torch.ones(1, 3, 1, 1).double()).sum()
        first = torch.autograd.grad(loss, t, create_graph=True)[0]
        found.append(torch.autograd.grad((first * first).sum(), x)[0])
    assert torch.allclose(found[1], found[0], 1e-10)


def test_detached_between_two_readers() -> None:
    (first, second), _, x = two_heads()
    t = to_tiles(x) * 1
    first(t)
    t.detach_()
    second(t).sum().backward()
    assert x.grad is None


def test_leaves_do_not_share_a_gradient() -> None:
    layers, _, x = two_heads()
    given = to_tiles(x.detach())
    leaves = [to_tiles(torch.zeros_like(x)).detach().requires_grad_() for _ in range(2)]
    for layer in layers:
        layer.summed = True
    (layers[0](given) + leaves[0] + (layers[1](given) + leaves[1])).sum().backward()
    (layers[0](given) + leaves[0]).sum().backward()
    one, other = ((leaf.grad + torch.zeros_like(x)).mean() for leaf in leaves)
    assert (float(one), float(other)) == (2, 1)


def test_a_residual_of_a_norm_whose_output_is_added_to() -> None:
    x, r = (torch.randn(5, 3, 6, 6, dtype=torch.float64) for _ in range(2))
    norm = FusedBatchNorm2d(3, dtype=torch.float64, summed=True)
    expected = F.batch_norm(x, None, None, training=True) + r + x
    found = F.relu(norm(to_tiles(x), to_tiles(r)) + to_tiles(x))
    assert torch.allclose(found.to_dense_layout(), F.relu(expected), 1e-10)


def test_an_identity_alone_carries_a_gradient() -> None:
    norm = nn.BatchNorm2d(3).double()
    layer, _ = sparse(nn.Conv2d(3, 3, 1).double())
    x = torch.randn(5, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    t = to_tiles(x) * 1
    norm(t)  # nobody uses it
    (layer(to_tiles(torch.zeros_like(x))) + t).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


OTHERS: dict[str, Callable[[Any, Tensor], Any]] = {  # what else may be done with a deferred output
    "number": lambda y, x: y + 2.0,
    "channel": lambda y, x: y + x[:1, :, :1, :1],
    "alpha": lambda y, x: torch.add(y, to_tiles(x), alpha=0.5),
    "product": lambda y, x: y * to_tiles(x),
    "itself": lambda y, x: y + y,
    "relu": lambda y, x: F.relu(y),
    "pooling": lambda y, x: F.max_pool2d(y, 2),
    "dtype": lambda y, x: y + x.float(),
    "in place of another": lambda y, x: x.clone().add_(y),
    "in place of tiles": lambda y, x: to_tiles(x.clone()).add_(y),
    "detach": lambda y, x: y.detach() + y,
    "to_dense_layout": lambda y, x: y.to_dense_layout() + x if isinstance(y, BatchTiles) else y + x,
}


@pytest.mark.parametrize("use", OTHERS)
@pytest.mark.parametrize("kind", ["conv", "norm"])
def test_deferred_tiles_are_tensors_like_others(use: str, kind: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 3, 6, 6, dtype=torch.float64)
    layer, twin = sparse(nn.Conv2d(3, 3, 3, padding=1).double())
    if kind == "norm":
        twin = nn.BatchNorm2d(3).double()
        layer = FusedBatchNorm2d.from_batch_norm(copy.deepcopy(twin), summed=True)
    expected, found = OTHERS[use](twin(x), x), OTHERS[use](layer(to_tiles(x)), x)
    found_plain = found.to_dense_layout() if isinstance(found, BatchTiles) else found
    assert torch.allclose(found_plain, expected, 1e-6 if use == "dtype" else 1e-10)
    expected.sum().backward()
    found.sum().backward()
    assert torch.allclose(layer.bias.grad, twin.bias.grad, 1e-6)
    if kind == "norm":
        assert torch.allclose(layer.running_var, twin.running_var)


@pytest.mark.parametrize("kind", ["conv", "norm"])
def test_what_is_watched_is_not_put_off(kind: str) -> None:
    x = torch.randn(5, 3, 6, 6, dtype=torch.float64)
    layer: nn.Module = sparse(nn.Conv2d(3, 3, 1).double())[0]
    if kind == "norm":
        layer = FusedBatchNorm2d(3, dtype=torch.float64, summed=True)
    alone = layer(to_tiles(x)).to_dense_layout()
    seen: list[Tensor] = []
    layer.register_forward_hook(lambda module, given, output: seen.append(output))
    total = layer(to_tiles(x)) + to_tiles(x)
    assert seen[0].contents.state is State.COMPUTED
    assert torch.allclose(seen[0].to_dense_layout(), alone)
    assert torch.allclose(total.to_dense_layout(), alone + x)


def test_a_convolution_without_gradients_and_a_sum_with_them() -> None:
    layer, twin = sparse(nn.Conv2d(3, 3, 1).double())
    x = torch.randn(5, 3, 6, 6, dtype=torch.float64)
    r = torch.randn(5, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        y = layer(to_tiles(x))
    total = y + to_tiles(r)
    total.sum().backward()
    assert layer.weight_values.grad is None
    assert torch.equal(r.grad, torch.ones_like(r))
    assert torch.allclose(total.to_dense_layout(), twin(x) + r)
    with torch.inference_mode():
        assert torch.allclose((layer(to_tiles(x)) + to_tiles(x)).to_dense_layout(), twin(x) + x)


def test_unfuse() -> None:
    layer, _ = sparse(nn.Conv2d(3, 3, 1))
    assert "summed=True" in repr(layer)
    regrow.unfuse(nn.Sequential(layer))
    assert not layer.summed
