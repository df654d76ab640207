"""What torch's FLOP counters are told of the operators and of the kernels, which they meet where no operator stands."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import register_flop_formula

from regrow.ops import native
from regrow.ops.tiles import Geometry
from regrow.ops.window import Window


def _product(input: Tensor, values: Tensor, crow: Tensor) -> int:
    """A multiplication and an addition for each connection and example; where `crow` has no data, for each place."""
    connections = len(values) if isinstance(crow, FakeTensor) or crow.is_meta else int(crow[-1])
    return int(2 * connections * input.shape[:-1].numel())


def _linear(input: Tensor, values: Tensor, bias: Tensor | None, crow: Tensor, *_: Any, **__: Any) -> int:
    return _product(input, values, crow)


def _linear_backward(
    gradient: Tensor, input: Tensor, kept: Tensor | None, values: Tensor, crow: Tensor, *rest: Any, **__: Any
) -> int:
    *_, need_input, need_values, _ = rest
    return int(need_input + need_values) * _product(input, values, crow)


def count_linear_operators() -> None:
    """Register the operators of `regrow.ops.linear`."""
    register_flop_formula(torch.ops.regrow.sparse_linear, get_raw=True)(_linear)
    register_flop_formula(torch.ops.regrow.sparse_linear_backward, get_raw=True)(_linear_backward)


@cache
def count_linear_kernels() -> None:
    """Register its kernels, where there are some."""
    if native.available():
        register_flop_formula(torch.ops.regrow_native.linear_forward, get_raw=True)(_linear)
        register_flop_formula(torch.ops.regrow_native.linear_backward, get_raw=True)(_linear_backward)


def _conv(values: Any, geometry: Sequence[int], window: Sequence[Any], products: int) -> int:
    """Two for each connection, image and pixel of the output, in each product."""
    output = Window(*window).output(Geometry(*geometry))
    return 2 * int(values[0]) * output.images * output.height * output.width * products


def count_conv_operators() -> None:
    """Register the operators of `regrow.ops.images`."""

    @register_flop_formula(torch.ops.regrow.sparse_conv2d)
    def _(*args: Any, **_: Any) -> int:
        (images, _, *size), values = args[:2]
        return _conv(values, (images, *size, 0), args[8:12], 1)

    @register_flop_formula(torch.ops.regrow.sparse_conv2d_backward)
    def _(*args: Any, **_: Any) -> int:
        (images, _, *size), values = args[1:3]
        return _conv(values, (images, *size, 0), args[8:12], args[12] + args[13])


@cache
def count_conv_kernels() -> None:
    """Register the kernels of `regrow.ops.conv`, once they are loaded."""

    @register_flop_formula(torch.ops.regrow_native.conv_forward)
    def _(*args: Any, **_: Any) -> int:
        return _conv(args[5], args[1:5], args[9:13], 1)

    @register_flop_formula(torch.ops.regrow_native.conv_backward)
    def _(*args: Any, **_: Any) -> int:
        return _conv(args[7], args[3:7], args[11:15], args[15] + args[16])
