"""`SparseConv2d` is torch's Conv2d to whoever uses it."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from machine import using
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import regrow
from regrow import BatchTiles, SparseConv2d
from regrow._random import generator, sample
from regrow.errors import RegrowRuntimeError, RegrowValueError
from regrow.ops import native


def cut(conv: nn.Conv2d, density: float = 0.4) -> tuple[SparseConv2d, nn.Conv2d]:
    """A sparse layer, and the dense one with the same weight."""
    size = conv.weight.numel()
    sparse = SparseConv2d.from_conv(conv, sample(round(density * size), size, generator(0, "cut")))
    return sparse, sparse.to_conv(sparse.weight.to_dense())


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(1, "input"), dtype=torch.float64)


ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"padding": 1, "bias": False},
    {"padding": "same"},
    {"padding": "same", "dilation": (2, 1), "kernel_size": (2, 4)},
    {"padding": "valid", "stride": 2},
    {"padding": (2, 0), "stride": (1, 3), "kernel_size": (3, 1)},
    {"padding": 4, "kernel_size": 7, "dilation": 2},
    {"kernel_size": 1, "stride": 2},
]


@pytest.mark.filterwarnings(
    "ignore:Using padding='same' with even kernel lengths"
)  # torch's, of its own layer
@pytest.mark.parametrize("given", ARGUMENTS, ids=str)
@pytest.mark.parametrize("kernels", [True, False])
def test_as_the_dense_layer(given: dict[str, Any], kernels: bool) -> None:
    conv = nn.Conv2d(3, 8, **{"kernel_size": 3, **given}).double()
    sparse, dense = cut(conv)
    x, reference_x = (double(5, 3, 9, 11).requires_grad_() for _ in range(2))
    expected = dense(reference_x)
    gradient = double(*expected.shape)
    expected.backward(gradient)
    if kernels:
        output = sparse(x)
        output.backward(gradient)
        assert isinstance(output, BatchTiles) == native.available()
    else:
        with using("reference"):
            output = sparse(x)
            output.backward(gradient)
        assert type(output) is Tensor
    torch.testing.assert_close(output + 0 * expected, expected)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, reference_x.grad)
    assert sparse.weight_values.grad is not None
    assert dense.weight.grad is not None
    torch.testing.assert_close(
        sparse.weight_values.grad[: len(sparse.weight.values()), 0],
        dense.weight.grad[sparse.weight.to_dense() != 0],
    )
    if dense.bias is not None:
        assert sparse.bias is not None
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
        assert getattr(sparse, name) == getattr(conv, name)
    assert f"kernel_size={conv.kernel_size}" in repr(sparse)
    assert f"connections={len(sparse.weight.values())}" in repr(sparse)


@pytest.mark.parametrize("batch", [1, 7, 16, 33])
def test_any_batch_in_any_layout(batch: int) -> None:
    sparse, dense = cut(nn.Conv2d(3, 8, 3, padding=1).double())
    x = double(batch, 3, 6, 7)
    layouts = [
        x,
        x.to(memory_format=torch.channels_last),
        x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    ]
    for laid_out in (*layouts, torch.stack([x, x], -1)[..., 0]):
        torch.testing.assert_close(sparse(laid_out) * 1 + torch.zeros_like(dense(x)), dense(x))


def test_an_empty_batch_and_a_single_image() -> None:
    sparse, dense = cut(nn.Conv2d(3, 8, 3, padding=1).double())
    empty = double(0, 3, 6, 7).requires_grad_()
    output = sparse(empty)
    assert output.shape == (0, 8, 6, 7)
    output.sum().backward()
    assert empty.grad is not None
    assert empty.grad.shape == empty.shape
    assert sparse.weight_values.grad is not None
    assert not sparse.weight_values.grad.any()
    image = double(3, 6, 7)
    torch.testing.assert_close(sparse(image) * 1 + torch.zeros(8, 6, 7).double(), dense(image))


def test_layers_in_a_row_share_the_layout() -> None:
    layers = [cut(nn.Conv2d(3, 8, 5).double()), cut(nn.Conv2d(8, 4, 3, 2, padding=3).double())]
    sparse, dense = (nn.Sequential(*stack) for stack in zip(*layers, strict=True))
    x = double(18, 3, 9, 10)
    torch.testing.assert_close(sparse(x) * 1 + torch.zeros_like(dense(x)), dense(x))
    sparse(x).square().sum().backward()
    dense(x).square().sum().backward()
    for found, expected in zip(sparse, dense, strict=True):
        mask = found.weight.to_dense() != 0  # type: ignore[union-attr,operator]
        torch.testing.assert_close(found.weight.grad[mask], expected.weight.grad[mask])  # type: ignore[index,union-attr]


def test_weight_shows_the_dense_one() -> None:
    sparse, dense = cut(nn.Conv2d(3, 8, (3, 2)))
    weight = sparse.weight
    assert (weight.shape, weight.dtype, weight.device) == (
        dense.weight.shape,
        torch.float32,
        torch.device("cpu"),
    )
    assert torch.equal(weight.to_dense(), dense.weight)
    with pytest.raises(RegrowRuntimeError, match="`weight` of a layer in compressed storage is read-only"):
        sparse.weight = torch.zeros(8, 3, 3, 2)  # type: ignore[misc]


def test_autocast_computes_in_bfloat16() -> None:
    sparse, dense = cut(nn.Conv2d(3, 8, 3))
    x = torch.randn(4, 3, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        output = sparse(x)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float() * 1 + torch.zeros(4, 8, 4, 4), dense(x), rtol=0.05, atol=0.05)
    output.sum().backward()
    assert sparse.weight_values.grad is not None
    assert sparse.weight_values.grad.dtype == torch.float32


def test_flops_follow_the_connections() -> None:
    sparse, _ = cut(nn.Conv2d(3, 8, 3, padding=1))
    x = torch.randn(4, 3, 6, 6, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        sparse(x).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * len(sparse.weight.values()) * 4 * 36


def test_copies_and_pickles() -> None:
    sparse, _ = cut(nn.Conv2d(3, 8, 3))
    x = torch.randn(4, 3, 6, 6)
    for other in (copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse))):
        assert torch.equal(other(x).to_dense_layout(), sparse(x).to_dense_layout())


def test_a_frozen_weight_and_an_input_without_gradient() -> None:
    sparse, dense = cut(nn.Conv2d(3, 8, 3).double())
    x = double(4, 3, 6, 6)
    sparse(x).sum().backward()
    assert sparse.weight_values.grad is not None
    sparse.requires_grad_(False)
    x.requires_grad_()
    assert torch.allclose(
        torch.autograd.grad(sparse(x).sum(), x)[0], torch.autograd.grad(dense(x).sum(), x)[0]
    )
    with torch.no_grad():
        assert not sparse(x).requires_grad


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 4, 6, 6), r"`input` must be \(N, 3, H, W\) or \(3, H, W\), got shape \(2, 4, 6, 6\)"),
        ((3, 6), r"`input` must be \(N, 3, H, W\)"),
        ((2, 3, 2, 6), r"as large as the kernel.*\(2, 6\) with padding \(0, 0\) is smaller than 3 x 3"),
        ((2, 3, 0, 6), "as large as the kernel"),
    ],
)
def test_input_that_does_not_fit(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(RegrowRuntimeError, match=message):
        cut(nn.Conv2d(3, 8, 3))[0](torch.zeros(shape))


def test_input_of_another_dtype() -> None:
    with pytest.raises(RegrowRuntimeError, match=r"of the weight's dtype torch.float32, got torch.float64"):
        cut(nn.Conv2d(3, 8, 3))[0](double(2, 3, 6, 6))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"groups": 2}, "`groups` must be 1, got 2.*\nUse storage='masked'"),
        ({"padding_mode": "circular"}, "`padding_mode` must be 'zeros', got 'circular'"),
        ({"padding": "same", "stride": 2}, r"'same' where the stride is 1, got 'same' with stride \(2, 2\)"),
        ({"padding": -1}, "`padding` must be a whole number from 0 to 2147483647, got -1"),
        ({"stride": 0}, "`stride` must be a whole number from 1 to 2147483647, got 0"),
        ({"kernel_size": (3, 0)}, r"`kernel_size\[1\]` must be"),
        ({"in_channels": 2**30}, r"`in_channels \* kernel_size` must be in"),
    ],
)
def test_arguments_that_are_not_allowed(given: dict[str, Any], message: str) -> None:
    empty = torch.empty(0, dtype=torch.int64)
    arguments = {"in_channels": 4, "out_channels": 4, "kernel_size": 3, **given}
    with pytest.raises(RegrowValueError, match=message):
        SparseConv2d(**arguments, positions=empty, values=empty.float())


@pytest.mark.parametrize(
    ("conv", "reason"),
    [
        (nn.Conv2d(4, 4, 3, groups=2), "a convolution with groups=2 has no compressed form"),
        (
            nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
            "a convolution with padding_mode='reflect' has no compressed form",
        ),
        (nn.Conv1d(4, 4, 3), "Conv1d has no compressed form"),
        (nn.ConvTranspose2d(4, 4, 3), "ConvTranspose2d has no compressed form"),
    ],
)
def test_convolutions_without_a_compressed_form(conv: nn.Module, reason: str) -> None:
    model = nn.Sequential(conv, nn.ReLU())
    with pytest.raises(RegrowValueError, match=reason):
        regrow.sparsify(model, 0.5, storage="compressed")
    regrow.sparsify(model, 0.5)
    assert regrow.summary(model).rows[0].reason == reason


def test_kernels_of_which_no_block_fits_a_cache() -> None:
    """The patch embedding of a vision transformer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 24, 16, stride=16))
    dense = copy.deepcopy(regrow.sparsify(model, 0.5, storage="compressed"))
    regrow.densify(dense)
    x = torch.randn(3, 3, 32, 32)
    assert torch.allclose(model(x).to_dense_layout(), dense(x), atol=1e-5)
