"""`FusedBatchNorm2d`: batch norm with an addition and ReLU behind it, as one module."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from regrow.nn.tracing import is_traced, is_watched, leaf
from regrow.ops.backends import NORM, use_kernel
from regrow.tiles.norm import batch_norm
from regrow.tiles.tensor import BatchTiles, to_tiles, without_dispatch


class FusedBatchNorm2d(nn.BatchNorm2d):
    """``relu(batch_norm(x) + residual)``, in two passes over the data each way where `x` is in batch tiles.

    On a plain tensor it is torch's operations. Arguments, parameters and buffers are those of `torch.nn.BatchNorm2d`.

    Args:
        num_features: C of an input (N, C, H, W).
        followed: the caller applies ReLU to the output, and does nothing else with it. In tiles that ReLU finds its
            work done; on a plain tensor the work is left to it.
        summed: before that ReLU, the caller adds something of the output's shape to the output.
        tiled: whoever reads the output wants it in batch tiles, so that a plain input is converted rather than the
            output.
    """

    followed: bool
    summed: bool
    tiled: bool

    def __init__(
        self,
        num_features: int,
        *args: Any,
        followed: bool = False,
        summed: bool = False,
        tiled: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_features, *args, **kwargs)
        self.followed, self.summed, self.tiled = followed or summed, summed, tiled

    @classmethod
    def from_batch_norm(
        cls, norm: nn.BatchNorm2d, followed: bool = False, summed: bool = False, tiled: bool = False
    ) -> FusedBatchNorm2d:
        """Make one with the very parameters, buffers and hooks of `norm`."""
        fused = cls.__new__(cls)
        fused.__dict__ = {**norm.__dict__, "followed": followed or summed, "summed": summed, "tiled": tiled}
        return fused

    def to_batch_norm(self) -> nn.BatchNorm2d:
        """Return torch's batch norm, without what follows it, with the very parameters, buffers and hooks."""
        norm = nn.BatchNorm2d.__new__(nn.BatchNorm2d)
        own = ("followed", "summed", "tiled")
        norm.__dict__ = {key: value for key, value in self.__dict__.items() if key not in own}
        return norm

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return the output (N, C, H, W) of `input` and `residual`, both of that shape."""
        if is_traced(input):
            return leaf(self, input) if residual is None else leaf(self, input, residual)
        if (
            self.tiled
            and not isinstance(input, BatchTiles)
            and input.dim() == 4
            and use_kernel(NORM, input, self.weight)
        ):
            input = to_tiles(input, operation="FusedBatchNorm2d")
        if isinstance(input, BatchTiles):
            with without_dispatch(input):
                output: Tensor = self._on_tiles(input, residual)
            if output is not NotImplemented:
                return output
        plain = super().forward(input)
        plain = plain if residual is None else plain + residual
        return plain if self.followed else F.relu(plain)

    def _on_tiles(self, input: BatchTiles, residual: Tensor | None) -> Any:
        """Do as `forward`, with statistics kept as `torch.nn.BatchNorm2d` does; NotImplemented without a kernel."""
        later = self.summed and residual is None and not is_watched(self)
        relu = later or not (self.followed and self.summed)
        kept = not self.training or self.track_running_stats
        statistics = (self.running_mean, self.running_var) if kept else (None, None)
        counted = self.num_batches_tracked if self.training and self.track_running_stats else None
        if counted is not None:
            counted.add_(1)  # first, as torch does: what checkpoints compute again may end in the kernel
        factor = self.momentum
        if factor is None:
            factor = 0.0 if counted is None else 1.0 / int(counted)
        training = self.training or self.running_mean is None
        output = batch_norm(
            input,
            *statistics,
            self.weight,
            self.bias,
            training,
            factor,
            self.eps,
            residual=residual,
            relu=relu,
            later=later,
        )
        if output is NotImplemented:
            if counted is not None:
                counted.sub_(1)  # torch's will count
            return output
        if self.followed and relu and not later:
            output.contents.mark_rectified()
        return output

    def extra_repr(self) -> str:
        plain: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{plain}, followed={self.followed}, summed={self.summed}, tiled={self.tiled}"
