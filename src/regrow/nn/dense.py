"""`TiledConv2d`: torch's Conv2d, dense, in batch tiles."""

from __future__ import annotations

from functools import lru_cache
from typing import TypeGuard

import torch
from torch import Tensor, nn

from regrow._torch import transforms_active, without_modes
from regrow.nn.tracing import is_traced, leaf
from regrow.ops.backends import TILES, use_kernel
from regrow.ops.csr import Csr
from regrow.ops.tiles import BORDER
from regrow.ops.window import Window
from regrow.tiles.conv import on_tiles
from regrow.tiles.tensor import to_tiles, without_dispatch


class TiledConv2d(nn.Conv2d):
    """A dense convolution whose output is in batch tiles, by the kernels for sparse ones.

    For few input channels they are faster than torch's, which writes a large output for little work, and the output
    need not be converted for the sparse layers that read it. `regrow.fuse` puts it in the place of a `torch.nn.Conv2d`;
    its arguments, parameters and results are those. What the kernels do not serve is torch's own: autocast, other
    devices, `torch.compile`, transforms of `torch.func`.
    """

    MOST = 8
    """Input channels up to which it is taken; see docs/performance.md."""

    @classmethod
    def pays(cls, module: nn.Module) -> TypeGuard[nn.Conv2d]:
        """Return whether it is a convolution whose work the kernels can do, and faster."""
        if type(module) is not nn.Conv2d or module.in_channels > cls.MOST or module._forward_pre_hooks:
            return False
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)

    @classmethod
    def from_conv(cls, conv: nn.Conv2d) -> TiledConv2d:
        """Make one with the very parameters and hooks of `conv`."""
        tiled = cls.__new__(cls)
        tiled.__dict__ = dict(conv.__dict__)
        return tiled

    def to_conv(self) -> nn.Conv2d:
        """Return torch's convolution, with the very parameters and hooks of this one."""
        conv = nn.Conv2d.__new__(nn.Conv2d)
        conv.__dict__ = dict(self.__dict__)
        return conv

    def forward(self, input: Tensor) -> Tensor:
        """Return the output (N, out_channels, H', W') of `input` (N, in_channels, H, W)."""
        if is_traced(input):
            return leaf(self, input)
        weight, padding = self.weight, (int(p) for p in self.padding for _ in range(2))
        window = Window(self.kernel_size, self.stride, tuple(padding), self.dilation)
        fits = input.dim() == 4 and input.shape[1] == self.in_channels
        fits = fits and min(window.size(d, n) for d, n in enumerate(input.shape[2:])) > 0
        served = fits and use_kernel(TILES, input, weight, self.bias)
        if not served or transforms_active() or torch.is_autocast_enabled(input.device.type):
            return super().forward(input)
        index = _full_index(len(weight), weight[0].numel())
        with without_dispatch(input):
            tiles = to_tiles(input, max(BORDER, *window.padding), "TiledConv2d")
            return on_tiles(tiles, weight.reshape(-1, 1), self.bias, index, window)


@lru_cache
def _full_index(rows: int, columns: int) -> Csr:
    """Build the index of a matrix with all its connections."""
    # kept for all: not for inference alone, nor what modes make of tensors
    with torch.inference_mode(False), without_modes():
        crow = torch.arange(0, (rows + 1) * columns, columns, dtype=torch.int32, device="cpu")
        col = torch.arange(columns, dtype=torch.int32, device="cpu").repeat(rows)
        return Csr.of(crow, col, columns)
