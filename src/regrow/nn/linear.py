"""`SparseLinear`: torch's Linear with a compressed weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regrow.errors import RegrowRuntimeError, RegrowValueError
from regrow.ops.index import mirror
from regrow.ops.linear import linear
from regrow.ops.reference import ACTIVATIONS, csr
from regrow.weights.loading import to_csr

LIMIT = 2**31 - 1
INDEX = ("weight_crow", "weight_col", "weight_crow_t", "weight_row_t", "weight_order")


class SparseLinear(nn.Module):
    """``y = activation(x W^T + b)`` with W in compressed storage: time and memory follow the connections.

    Args:
        in_features: size of the last dimension of the input.
        out_features: size of the last dimension of the output.
        bias: whether there is a bias.
        activation: what is applied to the output on its way to memory: ``"relu"``, ``"gelu"`` (exact, as torch's
            default), ``"silu"`` or None.
        positions: flat positions of the connections in the dense weight [out_features, in_features],
            ascending, int64 [nnz].
        values: their values [nnz].

    Shape:
        Input (..., in_features), output (..., out_features). The output is laid out with the batch innermost.

    Raises:
        RegrowValueError: rows, columns or connections at or beyond 2^31; positions that do not ascend or fit.
        RegrowRuntimeError: an input whose last dimension, or whose dtype, does not fit.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        positions: Tensor,
        values: Tensor,
        activation: str | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("in_features", in_features), ("out_features", out_features)):
            if not 0 < size <= LIMIT:
                raise RegrowValueError(f"`{name}` must be in [1, 2^31 - 1], got {size}")
        if len(positions) > LIMIT:
            raise RegrowValueError(
                f"`positions` must hold at most 2^31 - 1 connections, got {len(positions)}"
            )
        _check_positions(positions, in_features * out_features)
        if values.shape != positions.shape or not values.is_floating_point():
            raise RegrowValueError(
                f"`values` must be floating point of shape {tuple(positions.shape)}, as `positions`, "
                f"got {values.dtype} of shape {tuple(values.shape)}"
            )
        if activation is not None and activation not in ACTIVATIONS:
            raise RegrowValueError(
                f"`activation` must be one of {', '.join(ACTIVATIONS)} or None, got {activation!r}"
            )
        self.activation = activation
        self.in_features = in_features
        self.out_features = out_features
        positions = positions.to(values.device)
        tensors = to_csr("weight", (out_features, in_features), positions, values)
        self.weight_values = nn.Parameter(tensors["weight_values"])
        crow, col = tensors["weight_crow"], tensors["weight_col"]
        self.register_buffer("weight_crow", crow)
        self.register_buffer("weight_col", col)
        crow_t, row_t, order = mirror(crow, col, in_features)
        self.register_buffer("weight_crow_t", crow_t, persistent=False)
        self.register_buffer("weight_row_t", row_t, persistent=False)
        self.register_buffer("weight_order", order, persistent=False)
        empty = torch.zeros(out_features, dtype=values.dtype, device=values.device) if bias else None
        self.register_parameter("bias", nn.Parameter(empty) if empty is not None else None)

    @classmethod
    def from_linear(cls, linear: nn.Linear, positions: Tensor, values: Tensor | None = None) -> SparseLinear:
        """The connections at `positions` of a dense layer, with the layer's own bias parameter.

        Their `values` [nnz] are the layer's, unless they are given.
        """
        if values is None:
            values = linear.weight.detach().reshape(-1)[positions]
        sparse = cls(linear.in_features, linear.out_features, bias=False, positions=positions, values=values)
        sparse.register_parameter("bias", linear.bias)
        sparse.weight_values.requires_grad_(linear.weight.requires_grad)
        return sparse.train(linear.training)

    def to_linear(self, dense: Tensor) -> nn.Linear:
        """The dense layer with weight `dense` [out_features, in_features] and this layer's bias parameter."""
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        linear.weight = nn.Parameter(dense, requires_grad=self.weight_values.requires_grad)
        linear.register_parameter("bias", self.bias)
        return linear.train(self.training)

    @property
    def weight(self) -> Tensor:
        """The weight as a `torch.sparse_csr` tensor [out_features, in_features] over the same memory, read-only."""
        crow: Tensor = self.weight_crow  # type: ignore[assignment]
        col: Tensor = self.weight_col  # type: ignore[assignment]
        return csr(crow, col, self.weight_values.detach()[: int(crow[-1]), 0], self.in_features)

    def forward(self, input: Tensor) -> Tensor:
        values: Tensor = self.weight_values
        bias: Tensor | None = self.bias
        if input.shape[-1] != self.in_features:
            raise RegrowRuntimeError(
                f"`input` must have {self.in_features} as its last dimension, got shape {tuple(input.shape)}"
            )
        kind = input.device.type
        if torch.is_autocast_enabled(kind) and values.dtype != torch.float64:
            dtype = torch.get_autocast_dtype(kind)
            input, values = input.to(dtype), values.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        if input.dtype != values.dtype:
            raise RegrowRuntimeError(
                f"`input` must be of the weight's dtype {values.dtype}, got {input.dtype}"
            )
        crow, col, crow_t, row_t, order = (self._buffers[name] for name in INDEX)
        index = (crow, col, crow_t, row_t, order)
        return linear(input, values, bias, *index, self.activation or "none")  # type: ignore[arg-type]

    def _replicate_for_data_parallel(self) -> SparseLinear:
        raise RegrowRuntimeError(
            "nn.DataParallel copies the model in every pass, and what a backward pass leaves with a copy is lost.\n"
            "Use torch.nn.parallel.DistributedDataParallel."
        )

    def extra_repr(self) -> str:
        weight = self.weight
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, connections={len(weight.values())}"
            + (f", activation={self.activation}" if self.activation else "")
        )


def _check_positions(positions: Tensor, size: int) -> None:
    if positions.dim() != 1:
        raise RegrowValueError(f"`positions` must have one dimension, got shape {tuple(positions.shape)}")
    inside = len(positions) == 0 or (int(positions[0]) >= 0 and int(positions[-1]) < size)
    if positions.dtype != torch.int64 or (positions[1:] <= positions[:-1]).any() or not inside:
        raise RegrowValueError(f"`positions` must be int64, ascending without repetition, in [0, {size})")
