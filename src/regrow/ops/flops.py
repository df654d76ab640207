"""What torch's FLOP counters are told of the operators and of the kernels, which they meet where no operator stands."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from regrow._torch import FakeTensor
from regrow.ops import native
from regrow.ops.tiles import Geometry
from regrow.ops.window import Window


def _connections(values: Tensor, crow: Tensor) -> int:
    """Count them; where `crow`, of the matrix or its transpose, has no data, the places for them."""
    return len(values) if isinstance(crow, FakeTensor) or crow.is_meta else int(crow[-1])


def _product(input: Tensor, values: Tensor, crow: Tensor) -> int:
    """Count a multiplication and an addition for each connection and example."""
    return int(2 * _connections(values, crow) * input.shape[:-1].numel())


def _linear(input: Tensor, values: Tensor, bias: Tensor | None, crow: Tensor, *_: Any, **__: Any) -> int:
    return _product(input, values, crow)


def _linear_backward(
    gradient: Tensor, input: Tensor, kept: Tensor | None, values: Tensor, crow: Tensor, *rest: Any, **__: Any
) -> int:
    need_input, need_values, _ = rest[-1]
    return int(need_input + need_values) * _product(input, values, crow)


def _linear_backward_kernel(*args: Any, **rest: Any) -> int:
    return _linear_backward(*args[:-3], args[-3:], **rest)


def count_linear_operators() -> None:
    """Register the operators of `regrow.ops.linear`."""
    register_flop_formula(torch.ops.regrow.sparse_linear, get_raw=True)(_linear)
    register_flop_formula(torch.ops.regrow.sparse_linear_backward, get_raw=True)(_linear_backward)


@cache
def count_linear_kernels() -> None:
    """Register its kernels, if there are any."""
    if native.library() is not None:  # once for all, so whether or not they are turned off now
        register_flop_formula(torch.ops.regrow_native.linear_forward, get_raw=True)(_linear)
        register_flop_formula(torch.ops.regrow_native.linear_backward, get_raw=True)(_linear_backward_kernel)


def count_scan_operators() -> None:
    """Register the operators of `regrow.ops.recurrent`."""

    @register_flop_formula(torch.ops.regrow.sparse_scan, get_raw=True)
    def _(
        gates: Tensor, h: Tensor, c: Any, values: Tensor, bias: Any, crow: Tensor, *_: Any, **__: Any
    ) -> int:
        return _product(gates, values, crow)

    @register_flop_formula(torch.ops.regrow.sparse_scan_backward, get_raw=True)
    def _(gradient: Tensor, *args: Any, **_: Any) -> int:
        gates, values, crow, needs = args[1], args[4], args[6], args[-1]
        return int(1 + needs[3]) * _product(gates, values, crow)


def _conv(connections: int, geometry: Sequence[int], window: Sequence[Any], products: int) -> int:
    """Count two for each connection, image and pixel of the output, in each product."""
    output = Window(*window).output(Geometry(*geometry))
    return 2 * connections * output.images * output.height * output.width * products


def count_conv_operators() -> None:
    """Register the operators of `regrow.ops.images`."""

    @register_flop_formula(torch.ops.regrow.sparse_conv2d, get_raw=True)
    def _(input: Tensor, values: Tensor, bias: Any, crow: Tensor, *rest: Any, **_: Any) -> int:
        images, _channels, *size = input.shape
        return _conv(_connections(values, crow), (images, *size, 0), rest[4:8], 1)

    @register_flop_formula(torch.ops.regrow.sparse_conv2d_backward, get_raw=True)
    def _(gradient: Tensor, input: Tensor, values: Tensor, crow: Tensor, *rest: Any, **_: Any) -> int:
        images, _channels, *size = input.shape
        return _conv(_connections(values, crow), (images, *size, 0), rest[4:8], sum(rest[8][:2]))


@cache
def count_conv_kernels() -> None:
    """Register the kernels of `regrow.ops.conv`, once they are loaded."""

    @register_flop_formula(torch.ops.regrow_native.conv_forward, get_raw=True)
    def _(*args: Any, **_: Any) -> int:
        return _conv(_connections(args[5], args[7]), args[1:5], args[9:13], 1)

    @register_flop_formula(torch.ops.regrow_native.conv_backward, get_raw=True)
    def _(*args: Any, **_: Any) -> int:
        return _conv(_connections(args[7], args[8]), args[3:7], args[11:15], args[15] + args[16])
