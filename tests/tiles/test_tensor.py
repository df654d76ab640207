"""`BatchTiles` is the tensor that it shows, whatever is done with it."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regrow.ops.tiles import Geometry, tile
from regrow.tiles import BatchTiles, on_convert, to_tiles

SHAPE = (5, 3, 4, 6)


@pytest.fixture
def converted() -> Iterator[list[str]]:
    """The operations for which something was converted."""
    names: list[str] = []

    def listener(operation: str, shape: torch.Size, milliseconds: float) -> None:
        assert len(shape) == 4
        assert milliseconds >= 0
        names.append(operation)

    with on_convert(listener):
        yield names


def draw(*shape: int) -> Tensor:
    return torch.randn(*(shape or SHAPE), generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def set_item(x: Tensor) -> Tensor:
    x[1:3, 0] = x[0, 1] * 2
    return x


def twice_in_place(x: Tensor) -> Tensor:
    y = x.mul_(2)
    y += 3
    return x.clamp_(min=0.5) + y  # x and y are one tensor


def into_out(x: Tensor) -> Tensor:
    with torch.no_grad():
        y = torch.zeros_like(x)
        torch.exp(x, out=y)
    return y * x


def in_place_functional(x: Tensor) -> Tensor:
    y = F.elu(x, inplace=True)
    return x + 2 * y  # one tensor


W4, W3 = draw(4, 3, 3, 3), draw(3)
STAY: dict[str, Callable[[Tensor], Tensor]] = {  # in tiles, without a conversion
    "relu": F.relu,
    "relu_": lambda x: torch.relu_(x) * x,
    "nn.ReLU": nn.ReLU(inplace=True),
    "gelu": F.gelu,
    "silu": lambda x: F.silu(x, inplace=True),
    "tanh": torch.tanh,
    "relu6": F.relu6,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "abs": abs,
    "neg": lambda x: -x,
    "add": lambda x: x + x,
    "add alpha": lambda x: torch.add(x, F.relu(x), alpha=0.5),
    "sub": lambda x: x - F.relu(x),
    "mul": lambda x: x * F.relu(x),
    "times a number": lambda x: 3 * x,
    "times a tensor's number": lambda x: x * torch.tensor(2.5, dtype=torch.float64, requires_grad=True),
    "over a number": lambda x: x / 3,
    "+=": lambda x: x.__iadd__(F.relu(x)),
    "mul_": lambda x: x.mul_(F.relu(x)).mul_(0.5),
    "clone": lambda x: x.clone(),
    "contiguous": lambda x: x.contiguous(),
    "zeros_like": lambda x: torch.zeros_like(x) + x,
    "detach": lambda x: x.detach() * x,
    "chunk of the graph": lambda x: x.data + x,
    "functional in place": in_place_functional,
    "no dropout": lambda x: F.dropout(x, 0.5, training=False),
}
LEAVE: dict[str, Callable[[Tensor], Tensor]] = {  # not known: on plain tensors
    "conv2d": lambda x: F.conv2d(x, W4, padding=1),
    "nn.Conv2d": nn.Conv2d(3, 4, 1).double(),
    "conv_transpose2d": lambda x: F.conv_transpose2d(x, W4.transpose(0, 1)),
    "linear": lambda x: F.linear(x, draw(2, 6)),
    "matmul": lambda x: x @ x.transpose(2, 3),
    "plus a number": lambda x: x + 1,
    "a number minus": lambda x: 1 - x,
    "times infinity": lambda x: (x * float("inf")).isinf() * x,
    "over zero": lambda x: torch.nan_to_num(x / 0, 1, 2, 3) * x,
    "plus a channel": lambda x: x + W3[:, None, None],
    "times a channel": lambda x: W3[:, None, None] * x,
    "exp": torch.exp,
    "sqrt": lambda x: x.abs().sqrt(),
    "pow": lambda x: x**2,
    "sigmoid": lambda x: x.sigmoid(),
    "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: F.log_softmax(x, 1),
    "layer_norm": lambda x: F.layer_norm(x, (4, 6)),
    "group_norm": lambda x: F.group_norm(x, 3),
    "instance_norm": F.instance_norm,
    "mean": lambda x: x.mean(),
    "sum": lambda x: x.sum((0, 2)),
    "var": lambda x: x.var((0, 2, 3)),
    "amax": lambda x: x.amax((2, 3)),
    "max": lambda x: x.max(1).values,
    "norm": lambda x: x.norm(),
    "std_mean": lambda x: torch.std_mean(x, (0, 2, 3))[0],
    "cumsum": lambda x: x.cumsum(3),
    "topk": lambda x: x.topk(2, 3).values,
    "sort": lambda x: x.sort(2).values,
    "cat": lambda x: torch.cat([x, x, x.flip(0)], 1),
    "stack": lambda x: torch.stack([x, 2 * x]),
    "chunk": lambda x: x.chunk(3, 1)[1],
    "split": lambda x: torch.split(x, 2)[2],
    "view": lambda x: x.contiguous().view(5, -1),
    "reshape": lambda x: x.reshape(-1, 8),
    "flatten": lambda x: x.flatten(1),
    "unflatten": lambda x: x.unflatten(3, (2, 3)),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "transpose": lambda x: x.transpose(1, 2),
    "mT": lambda x: x.mT,
    "index": lambda x: x[1:, :, 2],
    "a mask": lambda x: x[x > 0],
    "index_select": lambda x: x.index_select(0, torch.tensor([4, 0])),
    "gather": lambda x: x.gather(1, torch.zeros(5, 1, 4, 6, dtype=torch.int64)),
    "where": lambda x: torch.where(x > 0, x, 0.1),
    "masked_fill": lambda x: x.masked_fill(x > 1, 5.0),
    "clamp": lambda x: x.clamp(0.1, 0.5),
    "maximum": lambda x: torch.maximum(x, x.flip(0)),
    "lerp": lambda x: torch.lerp(x, x.detach() ** 2, 0.3),
    "addcmul": lambda x: torch.addcmul(x, x, x, value=0.5),
    "einsum": lambda x: torch.einsum("nchw,nchv->nwv", x, x),
    "pad": lambda x: F.pad(x, (1, 0, 2, 1)),
    "channel pad": lambda x: F.pad(x, (0, 0, 0, 0, 1, 1)),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "unfold": lambda x: F.unfold(x, 3),
    "grid_sample": lambda x: F.grid_sample(x, draw(5, 2, 2, 2).tanh(), align_corners=False),
    "lp_pool2d": lambda x: F.lp_pool2d(x.abs(), 2, 2),
    "mse_loss": lambda x: F.mse_loss(x, torch.ones(SHAPE, dtype=torch.float64)),
    "cross_entropy": lambda x: F.cross_entropy(x, torch.ones(5, 4, 6, dtype=torch.int64)),
    "roll": lambda x: x.roll(1, 2),
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "expand": lambda x: x[:1].expand(SHAPE),
    "squeeze": lambda x: x.unsqueeze(0).squeeze(0),
    "unbind": lambda x: x.unbind(0)[2],
    "rows": lambda x: next(iter(x)),
    "fft": lambda x: torch.fft.rfft(x).abs(),
    "channels-last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "to float32": lambda x: x.float().double(),
    "set an item": set_item,
    "in place": twice_in_place,
    "out": into_out,
    "fill_": lambda x: x.clone().fill_(2) * x,
    "requires_grad": lambda x: x.exp().requires_grad_() * x,
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", [*STAY, *LEAVE])
def test_values_and_gradients_are_those_of_the_plain_tensor(
    name: str, layout: torch.memory_format, converted: list[str]
) -> None:
    function = {**STAY, **LEAVE}[name]
    x = draw().contiguous(memory_format=layout)
    plain, tiled = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected = function(plain * 1)
    given = to_tiles(tiled) * 1
    assert isinstance(given, BatchTiles)
    assert given.dtype == torch.float64
    before = len(converted)
    found = function(given)
    if name in STAY:
        assert isinstance(found, BatchTiles)
        assert len(converted) == before
        assert_zero_around(found)
    else:
        assert len(converted) > before
    found = found.to_dense_layout() if isinstance(found, BatchTiles) else found
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-14)
    weight = draw(*expected.shape) if expected.dim() else torch.ones((), dtype=torch.float64)
    (expected * weight).sum().backward()
    (found * weight).sum().backward()
    assert tiled.grad is not None
    assert torch.allclose(tiled.grad, plain.grad, rtol=1e-12, atol=1e-14, equal_nan=True)
    assert tiled.grad.stride() == x.stride()


def assert_zero_around(x: BatchTiles) -> None:
    """Border, rounding lines and lanes past the batch hold zeros."""
    assert torch.equal(tile(x.detach().to_dense_layout(), x.geometry.border), x.buffer)


def test_gradients_stay_in_tiles(converted: list[str]) -> None:
    seen: list[Tensor] = []
    leaf, weight = to_tiles(draw()).requires_grad_(), to_tiles(draw(), 2)
    converted.clear()
    y = F.relu(leaf)
    y.register_hook(seen.append)
    (y * 2 + y - 0.5 * y).backward(weight, retain_graph=True)
    (y * 1).backward(weight)  # accumulates
    assert converted == []
    assert isinstance(seen[0], BatchTiles)
    assert isinstance(leaf.grad, BatchTiles)
    assert torch.allclose(leaf.grad.to_dense_layout(), (draw() > 0) * 3.5 * draw())


def test_a_plain_gradient_joins_the_tiles(converted: list[str]) -> None:
    leaf = to_tiles(draw()).requires_grad_()
    F.relu(leaf).backward(draw())
    assert converted == ["to_tiles", "threshold_backward"]
    assert torch.equal(leaf.grad.to_dense_layout(), F.relu(draw()))


def test_gradients_of_gradients() -> None:
    x = draw().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: (to_tiles(x) * F.silu(to_tiles(x))).to_dense_layout(), x)


def test_modes() -> None:
    x = draw()
    with torch.no_grad():
        y = F.relu(to_tiles(x.clone().requires_grad_()))
        assert not y.requires_grad
    with torch.inference_mode():
        y = F.relu(to_tiles(x) * 2)
        assert torch.equal(y.to_dense_layout(), F.relu(x) * 2)
        assert torch.equal(y.flatten(1), (F.relu(x) * 2).flatten(1))
    assert torch.equal((y * 2).to_dense_layout(), F.relu(x) * 4)


def test_copies_and_files() -> None:
    x = draw()
    leaf = to_tiles(x).requires_grad_()
    (leaf * 2).sum().backward()
    twin = copy.deepcopy(leaf)
    assert isinstance(twin, BatchTiles)
    assert twin.requires_grad
    assert torch.equal(twin.grad.to_dense_layout(), torch.full_like(x, 2))
    with torch.no_grad():
        twin.zero_()
    assert torch.equal(leaf.detach().to_dense_layout(), x)
    with pytest.raises(RuntimeError, match="created explicitly"):
        copy.deepcopy(leaf * 2)
    file = io.BytesIO()
    torch.save(leaf, file)
    file.seek(0)
    for read in (torch.load(file, weights_only=True), pickle.loads(pickle.dumps(leaf))):
        assert torch.equal(read, x)
        assert read.requires_grad


def test_outside_torch() -> None:
    x = draw()
    t = to_tiles(x)
    assert (t.numpy() == x.numpy()).all()
    assert t.tolist() == x.tolist()
    assert repr(t) == repr(x).replace("tensor(", "BatchTiles(", 1)
    assert "ReluBackward0" in repr(F.relu(t.requires_grad_()))
    assert f"{t[0, 0, 0, 0]:.3f}" == f"{x[0, 0, 0, 0]:.3f}"
    assert (t.shape, t.ndim, len(t), t.is_cpu, t.stride()) == (x.shape, 4, 5, True, x.stride())


def test_borders_meet(converted: list[str]) -> None:
    x = draw().requires_grad_()
    narrow, wide = to_tiles(x, 0), to_tiles(x, 2)
    assert to_tiles(wide, 1) is wide
    assert to_tiles(narrow, 1).geometry.border == 1
    total = narrow + wide
    assert isinstance(total, BatchTiles)
    assert torch.equal((to_tiles(narrow, 1) + total).to_dense_layout(), 3 * x)
    (total * to_tiles(draw(), 3)).sum().backward()
    assert torch.allclose(x.grad, 2 * draw())
    assert converted.count("add") == 0


def test_a_plain_tensor_joins_the_tiles(converted: list[str]) -> None:
    x = draw().requires_grad_()
    t = to_tiles(x)
    total = t + x.exp()
    assert isinstance(total, BatchTiles)
    assert converted == ["to_tiles", "add"]
    converted.clear()
    total.relu().backward(to_tiles(torch.ones(SHAPE, dtype=torch.float64)))
    assert converted == ["to_tiles"] + ["gradient of the first tiles"] * 2
    assert torch.allclose(x.grad, (x + x.exp() > 0) * (1 + x.exp()))


def test_tiles_join_a_plain_tensor_in_place() -> None:
    plain, x = draw().clone(), draw().requires_grad_()
    plain += to_tiles(x)
    assert type(plain) is Tensor
    (plain * plain).sum().backward()
    assert torch.equal(plain, 2 * draw())
    assert torch.allclose(x.grad, 4 * draw())


def test_dropout() -> None:
    x = draw(40, 8, 8, 8).requires_grad_()
    t = nn.Dropout(0.25)(to_tiles(x))
    assert isinstance(t, BatchTiles)
    assert_zero_around(t)
    kept = t.to_dense_layout() != 0
    assert 0.73 < kept.double().mean() < 0.77
    assert torch.allclose(t.to_dense_layout(), torch.where(kept, x / 0.75, 0))
    t.sum().backward()
    assert torch.allclose(x.grad, kept.double() / 0.75)


def test_what_is_changed_below_is_noticed() -> None:
    x = to_tiles(draw().requires_grad_())
    y = x * 1
    z = y * y
    y.relu_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_an_empty_batch() -> None:
    x = torch.empty(0, 3, 4, 6, requires_grad=True)
    y = F.relu(to_tiles(x)) * 2
    assert y.flatten(1).shape == (0, 72)
    y.sum().backward()
    assert x.grad.shape == x.shape


def test_geometry() -> None:
    assert Geometry(17, 32, 32, 1).tiles == 2
    assert Geometry(17, 32, 32, 1).plane == 34 * 33 + 1
    assert Geometry(17, 8, 8, 0).plane == 65  # no multiple of 64


def test_what_is_written_to_is_written_back_and_nothing_else() -> None:
    x, y = to_tiles(draw(2, 3, 4, 4)), to_tiles(draw(2, 3, 4, 4).abs() + 1)
    version = y.buffer._version
    expected = x.to_dense_layout() / y.to_dense_layout()
    x.div_(y)
    assert torch.allclose(x.to_dense_layout(), expected)
    assert y.buffer._version == version
    y.div_(y)
    assert torch.equal(y.to_dense_layout(), torch.ones(2, 3, 4, 4))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.batch_norm(x, None, None, training=True),
        lambda x: F.max_pool2d(x, 2),
        lambda x: F.avg_pool2d(x, 2),
        lambda x: x.mean((2, 3)),
        lambda x: x * 1,
    ],
)
def test_buffers_may_begin_anywhere(function: Callable[[Tensor], Tensor]) -> None:
    x = draw(17, 3, 4, 6)

    def shifted(buffer: Tensor) -> Tensor:
        return torch.empty(buffer.numel() + 1, dtype=buffer.dtype)[1:].view(buffer.shape).copy_(buffer)

    found = []
    for given in (x.clone(), BatchTiles(shifted(tile(x)), to_tiles(x).geometry)):
        leaf = given.requires_grad_()
        # what was saved comes back where it begins elsewhere, as from numpy
        with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, shifted):
            y = function(leaf) + 0
            (y * y).sum().backward()
        found += [y + torch.zeros(y.shape, dtype=y.dtype), leaf.grad + torch.zeros_like(x)]
    assert torch.allclose(found[0], found[2])
    assert torch.allclose(found[1], found[3])
