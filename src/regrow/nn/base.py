"""What modules with a compressed weight have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from regrow.errors import RegrowRuntimeError, RegrowValueError
from regrow.ops.index import are_positions, mirror
from regrow.weights.compressed import unseen
from regrow.weights.loading import to_csr
from regrow.weights.views import ensure_hooks, views

LIMIT = 2**31 - 1
INDEX = ("weight_crow", "weight_col", "weight_crow_t", "weight_row_t", "weight_order")


class SparseModule(nn.Module):
    """A module that owns one compressed weight, called ``weight``, and may own a bias.

    Args:
        shape: of the dense weight, outputs first.
        sizes: what users call its rows and columns, and how large they are.
        bias: whether there is a bias, zero at first.
        positions: flat positions of the connections in the dense weight, ascending, int64 [nnz].
        values: their values [nnz].

    Raises:
        RegrowValueError: rows, columns or connections at or beyond 2^31; positions that do not ascend or fit.
    """

    bias: nn.Parameter | None

    def __init__(
        self, shape: tuple[int, ...], sizes: Mapping[str, int], bias: bool, positions: Tensor, values: Tensor
    ) -> None:
        super().__init__()
        for name, size in sizes.items():
            if not 0 < size <= LIMIT:
                raise RegrowValueError(f"`{name}` must be in [1, 2^31 - 1], got {size}")
        if len(positions) > LIMIT:
            raise RegrowValueError(
                f"`positions` must hold at most 2^31 - 1 connections, got {len(positions)}"
            )
        _check_positions(positions, math.prod(shape))
        if values.shape != positions.shape or not values.is_floating_point():
            raise RegrowValueError(
                f"`values` must be floating point of shape {tuple(positions.shape)}, as `positions`, "
                f"got {values.dtype} of shape {tuple(values.shape)}"
            )
        tensors = to_csr("weight", shape, positions.to(values.device), values)
        self.weight_values = nn.Parameter(tensors["weight_values"])
        crow, col = tensors["weight_crow"], tensors["weight_col"]
        self.register_buffer("weight_crow", crow)
        self.register_buffer("weight_col", col)
        for name, tensor in zip(INDEX[2:], mirror(crow, col, math.prod(shape[1:])), strict=True):
            self.register_buffer(name, tensor, persistent=False)
        empty = torch.zeros(shape[0], dtype=values.dtype, device=values.device) if bias else None
        self.register_parameter("bias", nn.Parameter(empty) if empty is not None else None)

    def _take_from(self, dense: nn.Module) -> None:
        """Take over the bias parameter and the ways of a dense module."""
        bias: nn.Parameter | None = dense.bias  # type: ignore[assignment]
        self.register_parameter("bias", bias)
        weight: Tensor = dense.weight  # type: ignore[assignment]
        self.weight_values.requires_grad_(weight.requires_grad)
        self.train(dense.training)

    def _give_to(self, dense: nn.Module, weight: Tensor) -> None:
        """Give a dense module `weight`, this module's bias parameter and its ways."""
        dense.register_parameter(
            "weight", nn.Parameter(weight, requires_grad=self.weight_values.requires_grad)
        )
        dense.register_parameter("bias", self.bias)
        dense.train(self.training)

    def _replicate_for_data_parallel(self) -> SparseModule:
        raise RegrowRuntimeError(
            "nn.DataParallel copies the model in every pass, and what a backward pass leaves with a copy is lost.\n"
            "Use torch.nn.parallel.DistributedDataParallel."
        )

    def __prepare_scriptable__(self) -> nn.Module:
        raise unseen(next(views(self)).name)

    @property
    def _index(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """``crow, col, crow_t, row_t, order`` as `regrow.ops.linear` describes them."""
        buffers = self._buffers
        return tuple([buffers[name] for name in INDEX])  # type: ignore[return-value]

    def _operands(self, input: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Input, values and bias in the dtype to compute in; what a pass forward needs is seen to (`ensure_hooks`).

        Raises:
            RegrowRuntimeError: an input of another dtype than the weight's, or a topology that other code has changed.
        """
        ensure_hooks(self)
        values: Tensor = self._parameters["weight_values"]  # type: ignore[assignment]  # in less time than by attribute
        bias: Tensor | None = self.bias
        kind = input.device.type
        if torch.is_autocast_enabled(kind) and values.dtype != torch.float64:
            dtype = torch.get_autocast_dtype(kind)
            input = input if input.dtype == dtype else input.to(dtype)  # batch tiles would be converted
            values = values.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        if input.dtype != values.dtype:
            raise RegrowRuntimeError(
                f"`input` must be of the weight's dtype {values.dtype}, got {input.dtype}"
            )
        return input, values, bias


def _check_positions(positions: Tensor, size: int) -> None:
    if positions.dim() != 1:
        raise RegrowValueError(f"`positions` must have one dimension, got shape {tuple(positions.shape)}")
    if not are_positions(positions, size):
        raise RegrowValueError(f"`positions` must be int64, ascending without repetition, in [0, {size})")
