"""`TiledConv2d`: torch's convolution, in batch tiles."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from regrow.nn import BatchTiles, TiledConv2d
from regrow.ops import native

pytestmark = pytest.mark.skipif(not native.available(), reason="the kernels were not built")


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 18), st.integers(1, 4), st.integers(7, 12), st.integers(7, 12)),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 2)),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    outputs=st.integers(1, 9),
    wanted=st.booleans(),
)
def test_it_is_torchs_convolution(shape, kernel, stride, padding, dilation, bias, outputs, wanted) -> None:
    conv = nn.Conv2d(shape[1], outputs, kernel, stride, padding, dilation, bias=bias).double()
    twin, x = copy.deepcopy(conv), torch.randn(shape, dtype=torch.float64)
    tiled = TiledConv2d.from_conv(conv)
    assert tiled.weight is conv.weight
    results = []
    for layer in (twin, tiled):
        images = x.clone().requires_grad_(wanted)
        try:
            y = layer(images)
        except RuntimeError as error:  # a kernel larger than the image
            results.append(str(error))
            continue
        assert isinstance(y, BatchTiles) is (layer is tiled)
        (y * y).sum().backward()
        results.append([y.detach() * 1.0, images.grad, *[p.grad for p in layer.parameters()]])
    if isinstance(results[0], str):
        assert results[0] == results[1]
        return
    for one, other in zip(*results, strict=True):
        assert (one is None) is (other is None)
        if one is not None:
            assert torch.allclose(one, other.to_dense_layout() if isinstance(other, BatchTiles) else other)


def test_what_stays_torchs() -> None:
    conv = nn.Conv2d(3, 4, 3, padding=1)
    for refused in (
        nn.Conv2d(9, 4, 3),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(3, 4, 3, padding="same"),
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"),
    ):
        assert not TiledConv2d.pays(refused)
    assert TiledConv2d.pays(conv)
    tiled, x = TiledConv2d.from_conv(conv), torch.randn(2, 3, 8, 8)
    assert torch.equal(tiled(x[0]), conv(x[0]))  # one image
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tiled(x), conv(x))
    with pytest.raises(RuntimeError, match="expected input"):
        tiled(x[:, :2])
    assert type(tiled.to_conv()) is nn.Conv2d


def test_inference_comes_before_training() -> None:
    layer, x = TiledConv2d.from_conv(nn.Conv2d(2, 7, 3)), torch.randn(2, 2, 8, 8)
    with torch.inference_mode():
        layer(x)
    layer(x).sum().backward()
    assert layer.weight.grad is not None


def test_compiled_it_is_torchs() -> None:
    layer, x = TiledConv2d.from_conv(nn.Conv2d(3, 4, 3)), torch.randn(2, 3, 8, 8)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(x), layer(x).to_dense_layout(), atol=1e-5)


def test_what_it_keeps_is_of_no_transform_mode_or_device() -> None:
    torch.manual_seed(0)
    conv, x = nn.Conv2d(2, 11, 3), torch.randn(2, 2, 8, 8)
    tiled = TiledConv2d.from_conv(conv)
    values = dict(conv.named_parameters())
    expected, found = (
        torch.func.grad(lambda values, layer=layer: torch.func.functional_call(layer, values, (x,)).sum())(
            values
        )
        for layer in (conv, tiled)
    )
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
    with (
        FakeTensorMode(allow_non_fake_inputs=True) as mode,
        pytest.raises(RuntimeError, match="regrow_native"),
    ):
        tiled(mode.from_tensor(x))
    with torch.device("meta"):
        y = tiled(x)
    assert torch.allclose(y.to_dense_layout(), conv(x), atol=1e-5)
    y.sum().backward()
