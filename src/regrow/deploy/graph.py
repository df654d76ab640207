"""`Graph`: what a network computes, as a list of operations on named values; plain data, without code of the user's.

`trace` makes it, `passes` simplifies it, `reference` interprets it with torch's operators, `plan` lays it out for the
kernels, and `file` writes and reads it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

CONV, LINEAR, AFFINE = "regrow.conv2d", "regrow.linear", "regrow.affine"
"""Operations that `passes` makes of torch's:

- ``regrow.conv2d(x, weight, bias, stride, padding, dilation, groups, residual, activation)``: a convolution of
  [N, C, H, W]; pairs of whole numbers; `bias` a constant [out] or None.
- ``regrow.linear(x, weight, bias, residual, activation)``: of [..., in].
- ``regrow.affine(x, scale, shift, activation)``: ``x * scale + shift`` for each channel, dimension 1 of x.

`residual` is a value of the output's shape, added before the activation, or None; `activation` a name of `ACTIVATIONS`
or None.
"""
ACTIVATIONS = ("relu", "relu6", "silu", "gelu", "hardswish", "hardsigmoid", "sigmoid", "tanh")
"""GELU is the exact one."""


class Ref(str):
    """The name of a value: of an input, of the result of a node, of a constant or of a weight."""

    __slots__ = ()


@dataclass(frozen=True)
class Connections:
    """The connections of a weight [out, ...], row by row: a CSR matrix of the first dimension and all the others."""

    shape: tuple[int, ...]
    """Of the dense weight."""
    crow: Tensor
    """Row pointers, int32 [out + 1]."""
    col: Tensor
    """Column of each connection, ascending within a row, uint16 or (more than 65,536 columns) int32 [nnz]."""
    values: Tensor
    """float32, bfloat16 or int8 [nnz]."""
    scale: Tensor | None = None
    """What the values of a row are multiplied by, float32 [out]; only of int8."""

    @property
    def columns(self) -> int:
        """The number of columns of the matrix."""
        return torch.Size(self.shape[1:]).numel()

    @property
    def density(self) -> float:
        """The share of the weight's positions that are connections."""
        return len(self.values) / max(1, torch.Size(self.shape).numel())

    def rows(self) -> Tensor:
        """Return the row of each connection, int64 [nnz]."""
        return torch.repeat_interleave(torch.arange(self.shape[0]), self.crow.diff())

    def floats(self) -> Tensor:
        """Return the values as float32, scaled."""
        values = self.values.float()
        return values if self.scale is None else values * self.scale[self.rows()]

    def dense(self) -> Tensor:
        """Return the dense weight in float32."""
        out = torch.zeros(self.shape[0], self.columns)
        out[self.rows(), self.col.int()] = self.floats()
        return out.reshape(self.shape)


Weight = Tensor | Connections


@dataclass
class Node:
    """One operation: ``name = op(*args, **kwargs)``."""

    name: str
    op: str
    """``aten.NAME.OVERLOAD`` for torch's operators, ``int.NAME`` (add, sub, mul, floordiv, mod) for sizes, ``getitem``,
    or one of regrow's own above.
    """
    args: tuple[Any, ...]
    """References, numbers, strings, None, dtypes, and lists of them."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    layer: str = ""
    """Name of the module that it comes from, for explanations and errors."""


@dataclass
class Graph:
    """A network in evaluation mode."""

    inputs: list[Ref]
    outputs: list[Ref]
    nodes: list[Node]
    """In an order in which they can run."""
    constants: dict[str, Tensor]
    """What nodes refer to besides other nodes: buffers, biases, dense tensors of any use."""
    weights: dict[str, Weight]
    """Weights of convolutions and linear layers."""
    shapes: list[tuple[int, ...]]
    """Of each input, for the example."""
    dtypes: list[torch.dtype]
    """Of each input."""
    dynamic: bool = True
    """Whether the first dimension of each input may be of another size than in `shapes`."""
    precision: str = "float32"
    """Of the values of connections: float32, bfloat16 or int8."""
    ranges: dict[str, float] = field(default_factory=dict)
    """With int8: the largest magnitude of each value that a layer of connections reads, in the calibration batches."""


def allowed(op: str) -> bool:
    """Return whether a program may hold the operation `op`."""
    room, _, name = op.partition(".")
    safe = room == "aten" and not name.split(".")[0].endswith("_") and name.split(".")[0] != "from_file"
    return op in (CONV, LINEAR, AFFINE) or safe
