"""The kernels' own operators refuse sizes, types and ranges that would take them outside of their operands."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from regrow.errors import RegrowRuntimeError
from regrow.ops import csr, native
from regrow.ops.csr import Csr
from regrow.ops.images import sparse_conv2d
from regrow.ops.tiles import plane

pytestmark = pytest.mark.skipif(not native.available(), reason="the kernels were not built")


def ops() -> Any:
    return torch.ops.regrow_native


def ints(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


NONE = ints()
CONV = ([3, 3], [1, 1], [1, 1, 1, 1], [1, 1])
POOL = (2, 4, 4, 1)  # of 2 images, 4 x 4, border 1


def buffer(channels: int = 3, tiles: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(tiles, channels, plane(4, 4, 1), 16, dtype=dtype)


def conv(**changes: Any) -> None:
    crow, col = csr.from_positions(torch.tensor([0, 30, 60, 100]), 4, 27)
    given: dict[str, Any] = {
        "buffer": buffer(), "images": 2, "height": 4, "width": 4, "border": 1, "values": torch.ones(4, 1), "bias": None,
        "crow": crow, "col": col, "kernel": [3, 3], "stride": [1, 1], "padding": [1] * 4, "dilation": [1, 1],
        "out_border": 1, "residual": None,
    }  # fmt: skip
    ops().conv_forward(*{**given, **changes}.values())


def conv_backward(**changes: Any) -> None:
    index = Csr.of(*csr.from_positions(torch.tensor([0, 30, 60, 100]), 4, 27), 27)
    given: dict[str, Any] = {
        "gradient": buffer(4), "out_border": 1, "buffer": buffer(), "images": 2, "height": 4, "width": 4, "border": 1,
        "values": torch.ones(4, 1), "crow_t": index.crow_t, "row_t": index.row_t, "order": index.order,
        "kernel": [3, 3], "stride": [1, 1], "padding": [1] * 4, "dilation": [1, 1],
        "need_input": True, "need_values": True, "need_bias": True, "passed": None,
    }  # fmt: skip
    ops().conv_backward(*{**given, **changes}.values())


def linear(**changes: Any) -> None:
    crow, col = csr.from_positions(torch.tensor([0, 3, 9]), 3, 4)
    given: dict[str, Any] = {
        "input": torch.ones(2, 4), "values": torch.ones(3, 1), "bias": None, "crow": crow, "col": col,
        "activation": 0, "keep": False,
    }  # fmt: skip
    ops().linear_forward(*{**given, **changes}.values())


def pool(images: int = 2, border: int = 1, out: tuple[int, ...] = (2, 2, 1), **window: int) -> None:
    given = {"kernel": 2, "kernel_width": 2, "stride": 2, "stride_width": 2, "pad": 0, "pad_width": 0}
    rest = {**given, **window}
    ops().max_pool(buffer(), images, 4, 4, border, *out, *rest.values(), False, 0)


def floor(share: float) -> None:
    ops().floor(torch.ones(2, 3), torch.tensor([0, 1]), torch.tensor([], dtype=torch.int64), share)


def norm(given: Tensor, images: int) -> None:
    channels = [torch.ones(3) for _ in range(4)]
    ops().norm_forward(given, None, *channels, images, 4, 4, 1, True, 0.1, 1e-5, True)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (conv, None),
        (conv_backward, None),
        (linear, None),
        (pool, None),
        (lambda: floor(0.5), None),
        (lambda: norm(buffer(), 2), None),
        # as many channels, taps and columns as the index has
        (lambda: conv(buffer=buffer(0), crow=ints(0, 0), col=NONE, values=torch.ones(0, 1)), "at least one channel"),
        (lambda: conv(crow=ints(0), col=NONE, values=torch.ones(0, 1)), "at least one channel"),
        (lambda: conv(kernel=[1, 1], padding=[0] * 4), r"`col` must be in \[0, 3\)"),
        (lambda: conv(buffer=buffer(2)), r"`col` must be in \[0, 18\)"),
        (lambda: conv(col=ints(0, 3, -1, 19)), r"`col` must be in \[0, 27\)"),
        (lambda: conv(crow=ints(0, 3, 1, 4, 4)), "`crow` must ascend"),
        (lambda: conv_backward(order=ints(0, 1, 2, 10**6)), r"`order` must be in \[0, 4\)"),
        (lambda: conv_backward(row_t=ints(0, 1, 2, 4)), r"`row_t` must be in \[0, 4\)"),
        (lambda: conv_backward(gradient=buffer(0)), "at least one channel"),
        (lambda: linear(input=torch.ones(2, 0), crow=ints(0, 0), col=NONE), "at least one row and one column"),
        (lambda: linear(crow=ints(0), col=NONE), "at least one row and one column"),
        # types
        (lambda: linear(values=torch.ones(3, 1).double()), "`values` must be of the input's dtype"),
        (lambda: linear(values=torch.ones(1, 3)), "in one column"),
        (lambda: linear(bias=torch.ones(3).double()), "`bias` must be of the input's dtype"),
        (lambda: conv(values=torch.ones(4, 1).double()), "`values` must be of the input's dtype"),
        (lambda: conv(residual=buffer(4).double()), "`residual` must be of the buffer's dtype"),
        (lambda: conv_backward(gradient=buffer(4).double()), "`gradient` must be of the buffer's dtype"),
        (lambda: ops().lay_out(torch.ones(2, 3, dtype=torch.int8)), "float32, float64 and bfloat16"),
        # images
        (lambda: conv(images=-3), "`images`, `height`, `width` and `border` must not be negative"),
        (lambda: conv(out_border=-1), "must not be negative, got 2, 4, 4 and -1"),
        (lambda: ops().untile(buffer(3, 0), -5, 4, 4, 1, False), "must not be negative, got -5"),
        (lambda: ops().reborder(buffer(), 2, 4, 4, 1, -1), "must not be negative"),
        (lambda: ops().tile(torch.ones(2, 3, 4, 4), -1), "`input` must be"),
        (lambda: norm(buffer(3, 0), 0), "at least one image"),
        # windows
        (lambda: pool(border=-1), "must not be negative"),
        (lambda: pool(kernel=0), "kernel and stride must be positive"),
        (lambda: pool(stride=0), "kernel and stride must be positive"),
        (lambda: pool(pad=-1), "kernel and stride must be positive"),
        (lambda: pool(pad=2), "at most half the kernel"),
        (lambda: pool(out=(2, -2, 1)), "must not be negative"),
        (lambda: pool(out=(4, 2, 1)), "windows would begin behind the image"),
        (lambda: ops().image_means_backward(torch.ones(2, 3), 2, -4, -4, 1), "must not be negative"),
        # the search
        (lambda: floor(-0.1), r"`share` must be in \[0, 1\], got -0.1"),
        (lambda: floor(1.5), r"`share` must be in \[0, 1\]"),
        (lambda: floor(float("nan")), r"`share` must be in \[0, 1\]"),
        (
            lambda: ops().outside(torch.ones(1, 1).expand(9, 9), torch.ones(1, 1, dtype=torch.bool).expand(9, 9)),
            "without gaps",
        ),
    ],
)  # fmt: skip
def test_operators(run: Any, message: str | None) -> None:
    if message is None:
        run()
        return
    with pytest.raises(RuntimeError, match=message):
        run()


def test_nothing_is_nothing() -> None:
    """No image, no channel: what there is of them is empty."""
    for shape in ((0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4), (2, 3, 4, 0)):
        tiles = ops().tile(torch.ones(shape), 1)
        assert not tiles.any()
        assert ops().untile(tiles, shape[0], *shape[2:], 1, False).shape == shape
    assert ops().max_pool(buffer(3, 0), 0, 4, 4, 1, 2, 2, 1, 2, 2, 2, 2, 0, 0, False, 0).shape[0] == 0
    assert ops().image_means(buffer(3, 0), 0, 4, 4, 1).shape == (0, 3)
    crow, col = csr.from_positions(torch.tensor([0, 3, 9]), 3, 4)
    y, _ = ops().linear_forward(torch.ones(0, 4), torch.ones(3, 1), None, crow, col, 0, False)
    assert y.shape == (0, 3)


def test_torchs_own_message_of_too_little_memory_arrives() -> None:
    with pytest.raises(RuntimeError, match="allocate"):
        ops().tile(torch.ones(1, 1, 1, 1), 1 << 24)
    with pytest.raises(RuntimeError, match="allocate"):
        ops().lay_out(torch.ones(1, 1).expand(1 << 24, 1 << 20))


@pytest.mark.parametrize("threads", ["1", "3"])
def test_an_unknown_instruction_set_is_named(threads: str) -> None:
    """By the first operator that runs, within its threads."""
    code = (
        "import torch; from regrow.ops import native; native.load(); "
        "torch.ops.regrow_native.lay_out(torch.ones(3000, 3000))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "REGROW_ISA": "sse9", "OMP_NUM_THREADS": threads},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert "REGROW_ISA must be one of " in run.stderr.splitlines()[-1]
    assert run.stderr.endswith("got sse9\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": [0, 3]}, r"`kernel` must be 2 numbers of 1 or more, got \[0, 3\]"),
        ({"padding": [1, 1]}, r"`padding` must be 4 numbers of 0 or more, got \[1, 1\]"),
        ({"kernel": [1, 1]}, r"`input` must be \[N, 27, H, W\], got \[2, 3, 4, 4\]"),
        ({"kernel": [2, 2]}, "`crow_t` must have 4 taps for each of one or more channels, plus 1"),
        ({"kernel": [3, 3], "dilation": [9, 1]}, "`input` must be as large as the kernel"),
        ({"input": torch.ones(2, 3, 0, 4)}, "`input` must be as large as the kernel"),
        ({"values": torch.ones(4, 1).double()}, "`input` must be of the weight's dtype torch.float64"),
        ({"order": ints(0)}, r"`order` must be int32 of shape \(4,\)"),
        ({"bias": torch.ones(3)}, r"`bias` must have shape \(4,\)"),
    ],
)
def test_the_operator_of_convolutions(change: dict[str, Any], message: str) -> None:
    index = Csr.of(*csr.from_positions(torch.tensor([0, 30, 60, 100]), 4, 27), 27)
    given: dict[str, Any] = {
        "input": torch.ones(2, 3, 4, 4), "values": torch.ones(4, 1), "bias": None, **index._asdict(),
        "kernel": [3, 3], "stride": [1, 1], "padding": [1] * 4, "dilation": [1, 1],
    }  # fmt: skip
    assert sparse_conv2d(**given).shape == (2, 4, 4, 4)
    with pytest.raises(RegrowRuntimeError, match=message):
        sparse_conv2d(**{**given, **change})
