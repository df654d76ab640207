"""`SparseConv2d`: torch's Conv2d with a compressed weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regrow.arguments import require_count, require_instance, require_sequence, require_tensor
from regrow.errors import RegrowRuntimeError, RegrowValueError
from regrow.nn.base import LIMIT, SparseModule
from regrow.nn.tracing import is_traced, is_watched, leaf
from regrow.ops.backends import CONV, use_kernel
from regrow.ops.images import sparse_conv2d
from regrow.ops.window import Window
from regrow.tiles.conv import on_tiles
from regrow.tiles.tensor import plain_of, to_tiles, without_dispatch

Size = int | tuple[int, int]


class SparseConv2d(SparseModule):
    """A convolution with a weight in compressed storage: time and memory follow the connections.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size, stride, padding, dilation: as for `torch.nn.Conv2d`, ``"same"`` and ``"valid"`` included.
        groups: 1; other convolutions stay dense or masked.
        bias: whether there is a bias.
        padding_mode: ``"zeros"``.
        positions: flat positions of the connections in the dense weight [out_channels, in_channels, kh, kw],
            ascending, int64 [nnz].
        values: their values [nnz].

    Shape:
        Input (N, in_channels, H, W), output (N, out_channels, H', W'); one image without N works too. On the kernels
        the output is a `regrow.nn.BatchTiles`, which shows that shape; an input that is none is converted first.

    Attributes:
        summed: the caller adds something of the output's shape to the output, and does nothing else with it: the sum is
            done as the output is written. `regrow.fuse` sets it.

    Raises:
        RegrowValueError: sizes, positions or arguments that are not allowed.
        RegrowRuntimeError: an input whose shape or dtype does not fit.
    """

    summed: bool = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        positions: Tensor,
        values: Tensor,
    ) -> None:
        in_channels = require_count("in_channels", in_channels)
        out_channels = require_count("out_channels", out_channels)
        for name, given, allowed in (("groups", groups, 1), ("padding_mode", padding_mode, "zeros")):
            if given != allowed:
                raise RegrowValueError(
                    f"`{name}` must be {allowed!r}, got {given!r}: such a convolution has no compressed form.\n"
                    "Use storage='masked' for it."
                )
        kernel, step = _sizes("kernel_size", kernel_size), _sizes("stride", stride)
        spread = _sizes("dilation", dilation)
        shape = (out_channels, in_channels, *kernel)
        sizes = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "in_channels * kernel_size": in_channels * kernel[0] * kernel[1],
        }
        super().__init__(shape, sizes, bias, positions, values)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size: tuple[int, int] = kernel
        self.stride: tuple[int, int] = step
        self.padding: tuple[int, int] | str = (
            padding if isinstance(padding, str) else _sizes("padding", padding, least=0)
        )
        self.dilation: tuple[int, int] = spread
        self.groups = groups
        self.padding_mode = padding_mode
        self._window = Window(kernel, step, self._paddings(), spread)

    def _paddings(self) -> tuple[int, int, int, int]:
        """Return the padding: rows above and below, columns left and right."""
        if self.padding == "valid":
            return (0, 0, 0, 0)
        if self.padding == "same" and self.stride == (1, 1):
            down, across = (d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True))
            return (down // 2, down - down // 2, across // 2, across - across // 2)
        if isinstance(self.padding, str):
            raise RegrowValueError(
                f"`padding` must be a number, a pair, 'valid', or 'same' where the stride is 1, got {self.padding!r} "
                f"with stride {self.stride}"
            )
        return (self.padding[0], self.padding[0], self.padding[1], self.padding[1])

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, positions: Tensor, values: Tensor | None = None) -> SparseConv2d:
        """Keep the connections at `positions` of a dense layer, with the layer's own bias parameter.

        Their `values` [nnz] are the layer's, unless they are given.
        """
        require_instance("conv", conv, nn.Conv2d, "a torch.nn.Conv2d")
        require_tensor("positions", positions, floating=False)
        if values is None:
            values = conv.weight.detach().reshape(-1)[positions]
        sparse = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            bias=False,
            padding_mode=conv.padding_mode,
            positions=positions,
            values=values,
        )
        sparse._take_from(conv)
        return sparse

    def to_conv(self, dense: Tensor) -> nn.Conv2d:
        """Make a dense layer of weight `dense` [out_channels, in_channels, kh, kw], this layer's bias parameter."""
        conv = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            bias=False,
            device="meta",
        )
        self._give_to(conv, dense)
        return conv

    def forward(self, input: Tensor) -> Tensor:
        if is_traced(input):
            return leaf(self, input)
        with without_dispatch(input):
            return self._forward(input)

    def _forward(self, input: Tensor) -> Tensor:
        if input.dim() == 3:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        if input.dim() != 4 or input.shape[1] != self.in_channels:
            raise RegrowRuntimeError(
                f"`input` must be (N, {self.in_channels}, H, W) or ({self.in_channels}, H, W), "
                f"got shape {tuple(input.shape)}"
            )
        window, size = self._window, (input.shape[2], input.shape[3])
        if 0 in size or min(window.size(0, size[0]), window.size(1, size[1])) < 1:
            raise RegrowRuntimeError(
                f"`input` must be as large as the kernel once it is padded: {size} with padding {self.padding} is "
                f"smaller than {window.span(0)} x {window.span(1)}"
            )
        input, values, bias = self.operands("weight", input, self.bias)
        if not torch.compiler.is_compiling() and use_kernel(CONV, values):
            tiles = to_tiles(input, operation="SparseConv2d")
            later = self.summed and not is_watched(self)
            return on_tiles(tiles, values, bias, self._index, window, self._listener, later)
        output: Tensor = sparse_conv2d(plain_of(input, "SparseConv2d"), values, bias, *self._index, *window)
        return output

    def extra_repr(self) -> str:
        parts = [
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        ]
        if self.padding != (0, 0):
            parts.append(f"padding={self.padding!r}")
        if self.dilation != (1, 1):
            parts.append(f"dilation={self.dilation}")
        if self.summed:
            parts.append("summed=True")
        parts.append(f"bias={self.bias is not None}, {self._connections()}")
        return ", ".join(parts)


def _sizes(name: str, value: object, *, least: int = 1) -> tuple[int, int]:
    """Return a size for each of two dimensions, from one for both or from a pair."""
    if not isinstance(value, tuple | list):
        size = require_count(name, value, least=least, most=LIMIT)
        return size, size
    pair = require_sequence(name, value, "a number or a pair", count=2)
    first, second = (require_count(f"{name}[{d}]", pair[d], least=least, most=LIMIT) for d in (0, 1))
    return first, second
