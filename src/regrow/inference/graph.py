"""`Graph`: what a network computes, as a list of operations on named values; plain data, without code of the user's.

`trace` makes it, `passes` simplifies it, `reference` interprets it with torch's operators, `plan` lays it out for the
kernels, and `file` writes and reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from regrow._torch import Operator, schema_of
from regrow.inference.gaps import column_dtype
from regrow.inference.structure import Structure

CONV, LINEAR, AFFINE = "regrow.conv2d", "regrow.linear", "regrow.affine"
"""Operations that `passes` makes of torch's:

- ``regrow.conv2d(x, weight, bias, stride, padding, dilation, groups, residual, activation)``: a convolution of
  [N, C, H, W]; pairs of whole numbers, or four for a padding (top, bottom, left, right); `bias` a constant [out] or
  None.
- ``regrow.linear(x, weight, bias, residual, activation)``: of [..., in].
- ``regrow.affine(x, scale, shift, activation)``: ``x * scale + shift`` for each channel, dimension 1 of x.

`residual` is a value of the output's shape, added before the activation, or None; `activation` a name of `ACTIVATIONS`
or None. The first two may have the keyword arguments ``input_scale`` and ``input_signed`` (`rounding.Rounding`): the
input is then rounded to int8 first, and the weight is in int8 too.
"""
ACTIVATIONS = ("relu", "relu6", "silu", "gelu", "hardswish", "hardsigmoid", "sigmoid", "tanh")
"""GELU is the exact one."""


INTEGER_OPS = ("add", "sub", "mul", "floordiv", "mod")
"""Of sizes that depend on the batch: ``int.add`` and so on."""
TEXTS = {"approximate", "equation", "mode", "rounding_mode", "padding", "norm", "reduce", "indexing"}
"""Arguments of torch's operators that are strings."""
UNFIT = {
    torch.Tag.nondeterministic_seeded,
    torch.Tag.data_dependent_output,
    torch.Tag.dynamic_output_shape,
    torch.Tag.maybe_aliasing_or_mutating,
    torch.Tag.inplace_view,
}
"""Tags of operators whose output is random, or of a shape that the values decide, or not a value at all."""
SELDOM_RANDOM = {"scaled_dot_product_attention", "gru", "lstm", "rnn_tanh", "rnn_relu"}
"""Operators that are random only with a dropout, which `trace` refuses."""
INDEXED = "index"
"""Operator whose shape depends on values only with a mask for an index, which `trace` refuses."""
PRIVATE = {
    "_native_batch_norm_legit_no_training",
    "_to_copy",
    "_softmax",
    "_log_softmax",
    "_weight_norm",
    "_weight_norm_interface",
}
"""Operators with a leading underscore that check their arguments; others need not."""
LAYOUT = {
    "as_strided",
    "resize",
    "set",
    "empty_like",
    "new_empty",
    "new_empty_strided",
    "is_set_to",
    "item",
    "data",
}
"""Operators that read the layout or the memory behind a tensor."""


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

    @classmethod
    def of(cls, shape: tuple[int, ...], rows: Tensor, columns: Tensor, values: Tensor) -> Connections:
        """Make them of rows and columns, both [nnz] and ascending, and float32 `values` [nnz].

        What is zero is not a connection.
        """
        there = values != 0
        if not there.all():
            rows, columns, values = rows[there], columns[there], values[there]
        crow = torch.zeros(shape[0] + 1, dtype=torch.int32, device="cpu")
        crow[1:] = torch.bincount(rows, minlength=shape[0]).cumsum(0)
        columns = columns.to(column_dtype(torch.Size(shape[1:]).numel()))
        return cls(tuple(shape), crow, columns, values.contiguous())

    @classmethod
    def of_dense(cls, weight: Tensor) -> Connections:
        """Make them of a dense weight [out, ...], with whatever is not zero."""
        matrix = weight.reshape(len(weight), -1)
        rows, columns = matrix.nonzero(as_tuple=True)
        return cls.of(tuple(weight.shape), rows, columns, matrix[rows, columns].float())

    def rows(self) -> Tensor:
        """Return the row of each connection, int64 [nnz]."""
        return torch.repeat_interleave(torch.arange(self.shape[0], device="cpu"), self.crow.diff())

    def floats(self) -> Tensor:
        """Return the values as float32, scaled."""
        values = self.values.float()
        return values if self.scale is None else values * self.scale[self.rows()]

    def dense(self) -> Tensor:
        """Return the dense weight in float32."""
        out = torch.zeros(self.shape[0], self.columns, dtype=torch.float32, device="cpu")
        out[self.rows(), self.col.int()] = self.floats()
        return out.reshape(self.shape)


Weight = Tensor | Connections


def weight_of(dense: Tensor) -> Weight:
    """Return a dense weight as connections if at least half of it is zero, or as it is."""
    return Connections.of_dense(dense) if 2 * int(dense.count_nonzero()) <= dense.numel() else dense


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

    def refs(self) -> list[Ref]:
        """Return the names of what it reads, as often as it reads it."""
        return list(refs_in([*self.args, *self.kwargs.values()]))


def refs_in(values: Any) -> Iterator[Ref]:
    """Yield the references in nested arguments."""
    if isinstance(values, Ref):
        yield values
    elif isinstance(values, list | tuple):
        for each in values:
            yield from refs_in(each)


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
    signature: Structure
    """How the inputs are handed over: a tuple of the positional arguments and a dictionary of the others."""
    structure: Structure
    """How the outputs are handed back."""
    dynamic: bool = True
    """Whether the first dimension of each input may be of another size than in `shapes`."""
    cut: dict[str, int] = field(default_factory=dict)
    """Outputs that `prune` has cut, by layer."""
    precision: str = "float32"
    """Of the values of connections: float32, bfloat16 or int8."""


@cache
def operator(op: str) -> Any:
    """Return torch's operator ``aten.NAME.OVERLOAD``, or None if there is none of that name that a graph may hold.

    A graph holds functions of tensors: nothing that writes to its arguments, draws random numbers, makes tensors of
    nothing, depends on the values for its output's shape, or reads the layout or the memory behind a tensor.
    """
    space, _, rest = op.partition(".")
    name, _, overload = rest.partition(".")
    if space != "aten" or (name.startswith("_") and name not in PRIVATE) or name in LAYOUT or not overload:
        return None
    found = getattr(getattr(torch.ops.aten, name, None), overload, None)
    if not isinstance(found, Operator):
        return None
    schema = schema_of(found)
    texts = [each.name for each in schema.arguments if "str" in str(each.type)]
    tensors = any("Tensor" in str(each.type) for each in schema.arguments)
    written = schema.is_mutable or any(
        each.alias_info and each.alias_info.is_write for each in schema.arguments
    )
    unfit = UNFIT & set(found.tags) and name not in {*SELDOM_RANDOM, INDEXED}
    return None if written or unfit or not tensors or not TEXTS.issuperset(texts) else found


def allowed(op: str) -> bool:
    """Return whether a graph may hold the operation `op`; see `Node.op`."""
    kind, _, name = op.partition(".")
    if kind == "int":
        return name in INTEGER_OPS
    return op in ("getitem", CONV, LINEAR, AFFINE) or operator(op) is not None
