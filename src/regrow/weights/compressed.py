"""Compressed storage: the active values as the parameter, and the index of a CSR matrix beside it.

A module with a compressed weight ``weight`` owns the parameter ``weight_values`` [capacity + 5, 1], whose last entries
are a stamp (`regrow.weights.stamp`), and the attributes ``weight_crow`` and ``weight_col``, with their mirrored index
``weight_crow_t``, ``weight_row_t`` and ``weight_order``, which is rebuilt and never saved: a `regrow.ops.csr.Csr`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from regrow._torch import tracing_state, transforms_active
from regrow.errors import RegrowRuntimeError
from regrow.growth.gradient import Computed, Reduce
from regrow.ops import csr
from regrow.ops.csr import Csr
from regrow.ops.listener import Operands, belongs_to
from regrow.weights import stamp
from regrow.weights.base import SparseWeight
from regrow.weights.hook import hook_of
from regrow.weights.reading import as_matrix
from regrow.weights.stamped import StampedWeight

if TYPE_CHECKING:
    from regrow.weights.storages import Form

INDEX = Csr._fields[:2]  # what is saved


@cache
def _names(parameter_name: str) -> tuple[str, ...]:
    """Return the names of what holds the topology, which every forward pass asks for."""
    return tuple(f"{parameter_name}_{part}" for part in Csr._fields)


class CompressedWeight(StampedWeight):
    """A sparse weight whose time, memory and optimizer state follow its connections."""

    storage: ClassVar[str] = "compressed"
    is_dense: ClassVar[bool] = False
    forms: ClassVar[
        dict[type[nn.Module], Form] | None
    ] = {}  # filled where the modules are, `regrow.nn.forms`

    def _part(self, part: str) -> Tensor:
        tensor: Tensor = self.module.__dict__[f"{self.parameter_name}_{part}"]
        return tensor

    @property
    def stored_name(self) -> str:
        return f"{self.parameter_name}_values"

    @property
    def _index(self) -> Csr:
        return Csr(*(self._part(part) for part in Csr._fields))

    @property
    def _matrix(self) -> tuple[Tensor, Tensor, int]:
        """Row pointers, columns and the number of columns, as functions of the topology take them."""
        return self._part("crow"), self._part("col"), as_matrix(self.shape)[1]

    @property
    def topology(self) -> dict[str, Tensor]:
        own = self.module.__dict__
        return {name: own[name] for name in _names(self.parameter_name)}

    def saved(self) -> dict[str, Tensor]:
        return {f"{self.parameter_name}_{part}": self._part(part) for part in INDEX}

    def loadable(self, base: str, positions: Tensor, values: Tensor, capacity: int) -> dict[str, Tensor]:
        if self.capacity != capacity:
            self.resize(capacity)
        return to_csr(base, self.shape, positions, values, capacity)

    @property
    def nnz(self) -> int:
        return int(self._part("crow")[-1])

    @property
    def capacity(self) -> int:
        """Connections there is room for: the length of the parameter but for the stamp."""
        return len(self.parameter) - stamp.SIZE

    def positions(self) -> Tensor:
        return csr.positions(*self._matrix)

    def survivors(self, drop: Tensor) -> Tensor:
        return csr.positions(*self._matrix, drop)

    def take(self, tensor: Tensor) -> Tensor:
        return tensor[: self.nnz, 0].clone()

    def take_former(self, tensor: Tensor, before: Tensor) -> Tensor:
        return tensor[: len(before), 0]

    def magnitudes(self) -> Tensor:
        return self.parameter.detach()[: self.nnz, 0].abs()

    def restrict(self, gradient: Tensor) -> Tensor:
        return gradient  # the backward operator leaves what is not a connection at zero

    def clean(self, gradient: Tensor, *, edited: bool = True) -> None:
        gradient.detach()[self.nnz :] = 0

    def is_zero(self, noted: list[Operands]) -> bool:
        return self._computed(noted).is_zero()

    def prepare(self) -> None:
        if transforms_active() or tracing_state() is not None:
            raise unseen(self.name)
        record = self.record
        belongs_to(self._part("crow"), record)
        hook = hook_of(self.parameter)
        if (
            hook is not None
        ):  # else something stands in for the parameter, whose hook is to see it all the same
            record.listener = hook

    def note(self, gradient: Tensor, left: list[Operands]) -> list[Operands]:
        if not left:
            raise RegrowRuntimeError(
                f"`{self.name}`: the backward operator has not left its operands. The model was moved in memory since "
                "it was compiled.\nCall torch.compile on it again."
            )
        return left

    def add(self, before: list[Operands], noted: list[Operands]) -> list[Operands]:
        return before + noted

    def nothing(self) -> list[Operands]:
        return []

    def dense_gradient(self, reduce: Reduce | None = None, given: Tensor | None = None) -> Computed:
        if given is not None:
            raise RegrowRuntimeError(
                f"`{self.name}` is stored compressed: there is no dense tensor beside it"
            )
        return self._computed(self.stashed, reduce)

    def _computed(self, operands: list[Operands], reduce: Reduce | None = None) -> Computed:
        """Give the dense gradient of these operands."""
        rows, columns = as_matrix(self.shape)
        numbers = torch.arange(columns, device=self.parameter.device)
        exact = torch.promote_types(self.parameter.dtype, torch.float32)
        return Computed(operands, rows, numbers, exact, reduce)

    def update(self, drop: Tensor, grow: Tensor, companions: Sequence[Tensor] = ()) -> int:
        crow, col, source, new = csr.rewire(*self._matrix, drop, grow)
        if len(source) > self.capacity:
            raise RegrowRuntimeError(
                f"`{self.name}` has room for {self.capacity} connections in compressed storage and would get "
                f"{len(source)}: a method whose count grows needs storage='masked'"
            )
        self.forget()
        csr.move(source, self.parameter.detach(), *companions)
        self._write_index(crow, col)
        return new

    def explored(self, before: Tensor | None, positions: Tensor | None = None) -> Tensor:
        if positions is not None:
            return super().explored(before, positions)
        return csr.explored(*self._matrix, before)

    def fill(self, positions: Tensor, values: Tensor, tensor: Tensor | None = None) -> None:
        into = self.parameter.detach() if tensor is None else tensor
        into[torch.searchsorted(self.positions(), positions), 0] = values

    def assign(self, positions: Tensor, values: Tensor, *, keep_shape: bool = False) -> None:
        crow, col = csr.from_positions(positions, *as_matrix(self.shape))
        self.forget()
        if len(positions) > self.capacity or (len(positions) < self.capacity and not keep_shape):
            self.resize(len(positions))
        own = self.parameter.detach()
        own[: len(values), 0] = values
        own[len(values) :] = 0
        self._write_index(crow, col)

    def resize(self, capacity: int) -> None:
        """Give the parameter, which stays the same object, and its index room for `capacity` connections."""
        room = capacity + stamp.SIZE
        self.parameter.data = self.parameter.detach().new_zeros(room, 1)
        self.parameter.grad = None
        for part in ("col", "row_t", "order"):
            self.module.__dict__[f"{self.parameter_name}_{part}"] = self._part(part).new_zeros(room)

    def _write_index(self, crow: Tensor, col: Tensor) -> None:
        self._part("crow").copy_(crow)
        own = self._part("col")
        own[: len(col)] = col
        own[len(col) :] = 0
        self.rebuild_mirror()

    def fingerprint(self) -> int:
        return csr.fingerprint(*self._matrix)

    def is_consistent(self) -> bool:
        return all(torch.equal(*pair) for pair in zip(self._index, Csr.of(*self._matrix), strict=True))

    def rebuild_mirror(self) -> None:
        """Rebuild the mirrored index from the index, in place, and note the topology as known."""
        for part, like, entries in (
            ("crow_t", "crow", as_matrix(self.shape)[1] + 1),
            ("row_t", "col", len(self.parameter)),
            ("order", "col", len(self.parameter)),
        ):
            if len(self._part(part)) != entries:
                self.module.__dict__[f"{self.parameter_name}_{part}"] = self._part(like).new_empty(entries)
        fingerprint = self._index.rebuild_mirror()
        stamp.write(self.parameter, fingerprint, self.record.clock)
        self.remember(fingerprint)

    def _adopt_index(self, other: SparseWeight) -> None:
        """Take over the topology of `other`, a copy."""
        assert isinstance(other, CompressedWeight)
        self.forget()
        for part in Csr._fields:
            mine, theirs = self._part(part), other._part(part)
            if mine.shape == theirs.shape and not mine.is_inference():
                mine.copy_(theirs)  # in place: a compiled model has the tensor itself
            else:
                self.module.__dict__[f"{self.parameter_name}_{part}"] = theirs.to(mine.device, copy=True)
        self.remember(other.record.fingerprint)


def to_csr(
    base: str, shape: tuple[int, ...], positions: Tensor, values: Tensor, capacity: int | None = None
) -> dict[str, Tensor]:
    """Return keys and tensors of a compressed weight in a state dict, from its positions and values [nnz].

    With a `capacity`, values and columns are padded with zeros up to it, and a stamp follows, as a module has them.
    """
    crow, col = csr.from_positions(positions, *as_matrix(shape))
    if capacity is None:
        return {f"{base}_values": values.view(-1, 1), f"{base}_crow": crow, f"{base}_col": col}
    padding = (0, capacity + stamp.SIZE - len(positions))
    values, col = pad(values, padding).view(-1, 1), pad(col, padding)
    stamp.write(values, csr.fingerprint(crow, col, as_matrix(shape)[1]))
    return {f"{base}_values": values, f"{base}_crow": crow, f"{base}_col": col}


def unseen(name: str) -> RegrowRuntimeError:
    """Make the error where `name` is to be run by what does not see through the kernels."""
    return RegrowRuntimeError(
        f"`{name}` is in compressed storage, which transforms of torch.func (grad, vmap, jvp), torch.jit and ONNX "
        "cannot run.\nUse sparsify(..., storage='masked'), or a dense copy: regrow.densify(copy.deepcopy(model))"
    )
