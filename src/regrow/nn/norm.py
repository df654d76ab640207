"""Batch norm on `BatchTiles`, and `FusedBatchNorm2d`: with an addition and ReLU behind it, as one module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from regrow.nn.tiles import BatchTiles, buffer_of, native, to_tiles
from regrow.ops.norm import norm_backward, norm_forward
from regrow.ops.tiles import serves


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: BatchTiles,
        residual: BatchTiles | None,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        training: bool,
        momentum: float,
        eps: float,
        relu: bool,
    ) -> BatchTiles:
        buffer, geometry = input.buffer, input.geometry
        added = None if residual is None else buffer_of(residual, geometry, "batch_norm")
        output, mean, invstd = norm_forward(
            buffer, geometry, added, weight, bias, running_mean, running_var, training, momentum, eps, relu
        )
        gate = output if relu and residual is not None else None
        ctx.save_for_backward(buffer, gate, weight, bias, mean, invstd)
        ctx.geometry, ctx.training, ctx.relu, ctx.added = geometry, training, relu, residual is not None
        return BatchTiles(output, geometry)

    @staticmethod
    @once_differentiable  # a second derivative is refused, not left out in silence
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        buffer, gate, weight, bias, mean, invstd = ctx.saved_tensors
        gradient = buffer_of(gradients[0], ctx.geometry, "gradient of batch_norm")
        into, residual, into_weight, into_bias = norm_backward(
            gradient, buffer, ctx.geometry, gate, weight, bias, mean, invstd, ctx.training, ctx.relu
        )
        if gate is None:
            residual = gradient
        return (
            BatchTiles(into, ctx.geometry),
            BatchTiles(residual, ctx.geometry) if ctx.added else None,
            None if weight is None else into_weight,
            None if bias is None else into_bias,
            *[None] * 6,
        )


@native(F.batch_norm)
def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Any:
    """`torch.nn.functional.batch_norm` of tiles, then `residual` (tiles or plain) added, then ReLU."""
    others = (weight, bias, running_mean, running_var, residual)
    if not isinstance(input, BatchTiles) or not serves(input.buffer, *others):
        return NotImplemented
    if input.numel() <= input.shape[1]:  # nothing, or one value to a channel, which torch refuses in training
        return NotImplemented
    if residual is not None:
        if residual.shape != input.shape:  # plain tensors broadcast
            return NotImplemented
        residual = to_tiles(residual, input.geometry.border, "batch_norm")
    return _Norm.apply(  # type: ignore[no-untyped-call]
        input, residual, weight, bias, running_mean, running_var, training, momentum, eps, relu
    )


class _Followed:
    """What `torch.nn.BatchNorm2d.forward` takes for its input, so that what follows it is done in one go with it."""

    def __init__(self, input: Tensor, residual: Tensor | None, relu: bool) -> None:
        self.input, self.residual, self.relu = input, residual, relu
        self.dim, self.size = input.dim, input.size

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given, kwargs = args[0], kwargs or {}
        output = _batch_norm(given.input, *args[1:], residual=given.residual, relu=given.relu, **kwargs)
        if output is NotImplemented:
            output = func(given.input, *args[1:], **kwargs)
            output = output if given.residual is None else output + given.residual
            output = F.relu(output) if given.relu else output
        return output


class FusedBatchNorm2d(nn.BatchNorm2d):
    """``relu(batch_norm(x) + residual)``, in two passes over the data each way where `x` is in batch tiles.

    On a plain tensor it is torch's operations. Arguments, parameters and buffers are those of `torch.nn.BatchNorm2d`.

    Args:
        num_features: C of an input (N, C, H, W).
        followed: the caller applies ReLU to the output, and does nothing else with it. In tiles that ReLU finds its
            work done; on a plain tensor the work is left to it.
    """

    followed: bool

    def __init__(self, num_features: int, *args: Any, followed: bool = False, **kwargs: Any) -> None:
        super().__init__(num_features, *args, **kwargs)
        self.followed = followed

    @classmethod
    def from_batch_norm(cls, norm: nn.BatchNorm2d, followed: bool = False) -> FusedBatchNorm2d:
        """With the very parameters, buffers and hooks of `norm`."""
        fused = cls.__new__(cls)
        fused.__dict__ = {**norm.__dict__, "followed": followed}
        return fused

    def to_batch_norm(self) -> nn.BatchNorm2d:
        """Torch's batch norm, without what follows it, with the very parameters, buffers and hooks of this one."""
        norm = nn.BatchNorm2d.__new__(nn.BatchNorm2d)
        norm.__dict__ = {key: value for key, value in self.__dict__.items() if key != "followed"}
        return norm

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Output (N, C, H, W) of `input` and `residual`, both of that shape."""
        relu = not self.followed or isinstance(input, BatchTiles)
        output = super().forward(_Followed(input, residual, relu))  # type: ignore[arg-type]
        if self.followed and isinstance(output, BatchTiles) and not output.buffer.is_inference():
            output.rectified = output.buffer._version
        return output

    def extra_repr(self) -> str:
        plain: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{plain}, followed={self.followed}"
