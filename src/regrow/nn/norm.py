"""Batch norm on `BatchTiles`, and `FusedBatchNorm2d`: with an addition and ReLU behind it, as one module."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regrow._torch import apply
from regrow.nn.tracing import is_traced, is_watched, leaf
from regrow.ops.backends import NORM, use_kernel
from regrow.ops.norm import norm_backward, norm_forward
from regrow.ops.twice import gradients_of
from regrow.tiles.sums import gradient_left, is_reader, read
from regrow.tiles.tensor import BatchTiles, Pending, buffer_of, native, plain_of, to_tiles, without_dispatch


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
        pending: Callable[[Callable[[], Tensor]], Pending] | None,
    ) -> BatchTiles:
        buffer, geometry = input.buffer, input.geometry
        added = None if residual is None else buffer_of(residual, geometry, "batch_norm")
        statistics: list[Tensor] = []

        def compute() -> Tensor:
            output, *statistics[:] = norm_forward(
                buffer,
                geometry,
                added,
                weight,
                bias,
                running_mean,
                running_var,
                training,
                momentum,
                eps,
                relu,
            )
            return output

        if pending is None:
            output = BatchTiles(compute(), geometry)
        else:
            output = BatchTiles.later(pending(compute), buffer.shape[1], buffer, geometry)
        ctx.save_for_backward(input, output.buffer if relu and residual is not None else None, weight, bias)
        ctx.statistics, ctx.geometry, ctx.training, ctx.relu = statistics, geometry, training, relu
        ctx.eps = eps
        ctx.added = residual is not None
        ctx.set_materialize_grads(False)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        gradient, left = gradients[0], gradient_left(ctx)
        if gradient is None:
            return left, *[None] * 10
        if torch.is_grad_enabled():
            return _differentiable_gradients(ctx, gradient)
        given = buffer_of(gradient, ctx.geometry, "gradient of batch_norm")
        passed = None if left is None else buffer_of(left, ctx.geometry, "gradient of batch_norm")
        input, gate, weight, bias = ctx.saved_tensors
        buffer = buffer_of(input, ctx.geometry, "input of batch_norm")
        mean, invstd = ctx.statistics
        into, residual, into_weight, into_bias = norm_backward(
            given, buffer, ctx.geometry, gate, passed, weight, bias, mean, invstd, ctx.training, ctx.relu
        )
        if gate is not None or not isinstance(gradient, BatchTiles):
            gradient = BatchTiles(given if gate is None else residual, ctx.geometry)
        return (
            BatchTiles(into, ctx.geometry),
            gradient if ctx.added else None,  # itself where it can be: autograd sees who else has it
            None if weight is None else into_weight,
            None if bias is None else into_bias,
            *[None] * 7,
        )


def _differentiable_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """What `_Norm.backward` finds, to be differentiated again: by torch's own batch norm, on plain images."""
    input, gate, weight, bias = ctx.saved_tensors
    if gate is not None:  # after the sum
        gradient = torch.ops.aten.threshold_backward(gradient, BatchTiles(gate, ctx.geometry), 0)
    affine = [x for x in (weight, bias) if x is not None]

    def normed(images: Tensor, *affine: Tensor) -> Tensor:
        own = iter(affine)
        scale, offset = (None if x is None else next(own) for x in (weight, bias))
        if ctx.training:
            output = F.batch_norm(images, None, None, scale, offset, True, 0.0, ctx.eps)
        else:
            mean, invstd = (x[:, None, None] for x in ctx.statistics)
            output = (images - mean) * invstd
            output = output if scale is None else output * scale[:, None, None]
            output = output if offset is None else output + offset[:, None, None]
        return F.relu(output) if ctx.relu and gate is None else output

    operation = "second derivative of batch_norm"
    images, above = (plain_of(x, operation) for x in (input, gradient))
    into, *rest = gradients_of(normed, [images, *affine], above)
    found = iter(rest)
    of_affine = [None if x is None else next(found) for x in (weight, bias)]
    return (into, gradient if ctx.added else None, *of_affine, *[None] * 7)


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
    later: bool = False,
) -> Any:
    """`torch.nn.functional.batch_norm` of tiles, then `residual` (tiles or plain) added, then ReLU.

    With `later`, pending tiles: what is added to them comes before the ReLU.
    """
    others = (weight, bias, running_mean, running_var, residual)
    if not isinstance(input, BatchTiles) or not use_kernel(NORM, input.buffer, *others):
        return NotImplemented
    if input.numel() <= input.shape[1]:  # nothing, or one value to a channel, which torch refuses in training
        return NotImplemented
    if residual is not None:
        if residual.shape != input.shape:  # plain tensors broadcast
            return NotImplemented
        residual = read(to_tiles(residual, input.geometry.border, "batch_norm"))
    given = read(input)
    settings = (weight, bias, running_mean, running_var, training, momentum, eps)

    def run(residual: BatchTiles | None, relu: bool, pending: Any = None) -> BatchTiles:
        output: BatchTiles = apply(_Norm, given, residual, *settings, relu, pending)
        is_reader(output, input)
        return output

    if not later:
        return run(residual, relu)
    return run(
        None, False, partial(Pending, lambda added: _rectified(run(added, relu)), torch.is_grad_enabled())
    )


def _rectified(tiles: BatchTiles) -> BatchTiles:
    """`tiles`, which a ReLU to come finds done."""
    tiles.rectified = None if tiles.buffer.is_inference() else tiles.buffer._version
    return tiles


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
        """With the very parameters, buffers and hooks of `norm`."""
        fused = cls.__new__(cls)
        fused.__dict__ = {**norm.__dict__, "followed": followed or summed, "summed": summed, "tiled": tiled}
        return fused

    def to_batch_norm(self) -> nn.BatchNorm2d:
        """Torch's batch norm, without what follows it, with the very parameters, buffers and hooks of this one."""
        norm = nn.BatchNorm2d.__new__(nn.BatchNorm2d)
        own = ("followed", "summed", "tiled")
        norm.__dict__ = {key: value for key, value in self.__dict__.items() if key not in own}
        return norm

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Output (N, C, H, W) of `input` and `residual`, both of that shape."""
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
        """As `forward`, with statistics kept as `torch.nn.BatchNorm2d` does; NotImplemented without a kernel for it."""
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
        output = _batch_norm(
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
        return _rectified(output) if self.followed and relu and not later else output

    def extra_repr(self) -> str:
        plain: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{plain}, followed={self.followed}, summed={self.summed}, tiled={self.tiled}"
