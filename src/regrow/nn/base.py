"""What modules with a compressed weight have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from regrow.arguments import require_flag, require_tensor
from regrow.errors import RegrowValueError
from regrow.nn.owner import CompressedModule
from regrow.ops.csr import Csr, are_positions
from regrow.ops.listener import Listener

LIMIT = 2**31 - 1
INDEX = tuple(f"weight_{part}" for part in Csr._fields)


class SparseModule(CompressedModule):
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
    weight_values: nn.Parameter
    weight_crow: Tensor
    weight_col: Tensor
    weight_crow_t: Tensor
    weight_row_t: Tensor
    weight_order: Tensor

    def __init__(
        self, shape: tuple[int, ...], sizes: Mapping[str, int], bias: bool, positions: Tensor, values: Tensor
    ) -> None:
        super().__init__()
        self._weight_shape = torch.Size(shape)
        for name, size in sizes.items():
            if not 0 < size <= LIMIT:
                raise RegrowValueError(f"`{name}` must be in [1, 2^31 - 1], got {size}")
        require_flag("bias", bias)
        require_values(require_positions(math.prod(shape), positions), values)
        self.own("weight", shape, positions, values)
        empty = torch.zeros(shape[0], dtype=values.dtype, device=values.device) if bias else None
        self.register_parameter("bias", nn.Parameter(empty) if empty is not None else None)

    @property
    def weight(self) -> Tensor:
        """The weight in its dense shape, read-only (`regrow.nn.weight.WeightView`); gradients reach the values."""
        return self.view_of("weight")

    def shape_of(self, name: str) -> torch.Size:
        return self._weight_shape

    def reset_parameters(self) -> None:
        """Draw the values of the connections, and the bias, as the dense layer draws them; the topology stays."""
        bound = 1 / math.sqrt(self._weight_shape[1:].numel())
        with torch.no_grad():
            self.weight_values[: int(self.weight_crow[-1])].uniform_(-bound, bound)
            if self.bias is not None:
                self.bias.uniform_(-bound, bound)

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

    @property
    def _index(self) -> Csr:
        # `index_of("weight")` in less time: each forward pass asks
        return Csr(
            self.weight_crow, self.weight_col, self.weight_crow_t, self.weight_row_t, self.weight_order
        )

    @property
    def _listener(self) -> Listener | None:
        """Who wants the operands of backward passes, in eager mode; registered operators find it by themselves."""
        return self.listener_of("weight")

    def _connections(self) -> str:
        """Return what `extra_repr` says of them; they cannot be counted on the meta device."""
        crow = self.weight_crow
        return f"connections={'?' if crow.is_meta else int(crow[-1])}"


def require_positions(size: int, positions: object, of: str = "") -> Tensor:
    """Return `positions` if they are those of connections among so many; `of` follows the argument's name in messages.

    Raises:
        RegrowValueError: positions that do not ascend or fit.
    """
    positions = require_tensor(f"positions{of}", positions, floating=False)
    if positions.dim() != 1:
        raise RegrowValueError(f"`positions{of}` must have one dimension, got shape {tuple(positions.shape)}")
    if len(positions) > LIMIT:
        raise RegrowValueError(
            f"`positions{of}` must hold at most 2^31 - 1 connections, got {len(positions)}"
        )
    if not are_positions(positions, size):
        raise RegrowValueError(f"`positions{of}` must be int64, ascending without repetition, in [0, {size})")
    return positions


def require_values(positions: Tensor, values: object, of: str = "") -> Tensor:
    """Return `values` if they are those of the connections at `positions`; `of` as for `require_positions`.

    Raises:
        RegrowValueError: values that do not belong to them.
    """
    values = require_tensor(f"values{of}", values)
    if values.shape != positions.shape or not values.is_floating_point():
        raise RegrowValueError(
            f"`values{of}` must be floating point of shape {tuple(positions.shape)}, as `positions{of}`, "
            f"got {values.dtype} of shape {tuple(values.shape)}"
        )
    return values
