"""Batch norm over batch tiles, with a residual added and ReLU behind it in the same passes.

``y = relu((x - mean) / sqrt(var + eps) * weight + bias + residual)``, ReLU and residual where asked for. Buffers are
contiguous float32 or float64, [T, C, P, 16] in one `Geometry`; all else is [C] of the same dtype. The reference is
torch's `batch_norm` on the images. These are the two passes alone; `regrow.nn.norm` gives them to autograd.
"""

from __future__ import annotations

import torch
from torch import Tensor

from regrow.ops.tiles import Geometry


def norm_forward(
    buffer: Tensor,
    geometry: Geometry,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output buffer, and the mean and 1 / sqrt(var + eps) [C] that were used.

    In training those are of the batch (more than one value to a channel), and the running statistics are updated in
    place, with the unbiased variance; else they are the running ones.
    """
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.regrow_native.norm_forward.default(
        buffer, residual, weight, bias, running_mean, running_var, *geometry, training, momentum, eps, relu
    )
    return found


def norm_backward(
    gradient: Tensor,
    buffer: Tensor,
    geometry: Geometry,
    output: Tensor | None,
    passed: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    training: bool,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of input, residual (empty without `output`), weight and bias.

    `output` is wanted where a residual went through the ReLU with the rest; else the input says what came through.
    `passed`, a buffer as the input, is added to the gradient of the input: that of another use.
    """
    found: tuple[Tensor, Tensor, Tensor, Tensor] = torch.ops.regrow_native.norm_backward.default(
        gradient, buffer, output, passed, weight, bias, mean, invstd, *geometry, training, relu
    )
    return found
