"""Compressed storage: the active values as the parameter, and the index of a CSR matrix beside it.

A module with a compressed weight ``weight`` owns the parameter ``weight_values`` [capacity + 5, 1], whose last entries
are a stamp (`regrow.weights.stamp`), and the attributes ``weight_crow`` and ``weight_col``, with their mirrored index
``weight_crow_t``, ``weight_row_t`` and ``weight_order``, which is rebuilt and never saved. `regrow.ops.linear` says
what each holds; a weight of more than two dimensions is the matrix of its first dimension and all the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from regrow.errors import RegrowRuntimeError
from regrow.growth.among import Among
from regrow.ops import index
from regrow.ops.listener import Operands, belongs_to, listen
from regrow.ops.select import Best, floor_of
from regrow.weights import stamp
from regrow.weights.base import (
    NonFiniteGradientError,
    Reduce,
    Score,
    SparseWeight,
    as_matrix,
    gradient_magnitude,
)
from regrow.weights.hook import hook_of
from regrow.weights.stamped import StampedWeight

if TYPE_CHECKING:
    from regrow.weights.storages import Form

INDEX = ("crow", "col")
MIRROR = ("crow_t", "row_t", "order")
TILE = 1 << 19  # elements of the dense gradient that exist at a time; four times as many where rows are long


@cache
def _names(parameter_name: str) -> tuple[str, ...]:
    """Of what holds the topology: every forward pass asks for them."""
    return tuple(f"{parameter_name}_{part}" for part in (*INDEX, *MIRROR))


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
        return index.positions(self._part("crow"), self._part("col"), as_matrix(self.shape)[1])

    def survivors(self, drop: Tensor) -> Tensor:
        return index.positions(self._part("crow"), self._part("col"), as_matrix(self.shape)[1], drop)

    def take(self, tensor: Tensor) -> Tensor:
        return tensor[: self.nnz, 0].clone()

    def take_former(self, tensor: Tensor, before: Tensor) -> Tensor:
        return tensor[: len(before), 0]

    def magnitudes(self) -> Tensor:
        return self.parameter.detach()[: self.nnz, 0].abs()

    def restrict(self, gradient: Tensor) -> Tensor:
        return gradient  # the backward operator leaves what is no connection at zero

    def clean(self, gradient: Tensor, *, edited: bool = True) -> None:
        gradient.detach()[self.nnz :] = 0

    def is_zero(self, noted: list[Operands]) -> bool:
        found = [(each, those) for each in noted if len(those := each.rows())]
        if not found:
            return True
        noted = [each for each, _ in found]
        rows, columns = as_matrix(self.shape)
        height = min(rows, max(16, TILE // columns))
        exact = torch.promote_types(self.parameter.dtype, torch.float32)
        memory = torch.empty(height, columns, dtype=exact, device=self.parameter.device)
        some = found[0][1][:16]
        few = [each.in_rows(some) for each in noted]  # nearly always enough
        if self._dense_gradient(few, 0, len(some), None, memory).any():
            return False
        return not any(
            self._dense_gradient(noted, start, min(start + height, rows), None, memory).any()
            for start in range(0, rows, height)
        )

    def prepare(self) -> None:
        if torch._C._are_functorch_transforms_active() or torch._C._get_tracing_state() is not None:
            raise unseen(self.name)
        belongs_to(self._part("crow"), self.record)
        hook = hook_of(self.parameter)
        if hook is not None:
            listen(self._part("crow"), hook)

    def note(self, gradient: Tensor) -> list[Operands]:
        hook = hook_of(self.parameter)
        assert hook is not None
        own = hook.left()
        if not own:
            raise RegrowRuntimeError(
                f"`{self.name}`: the backward operator has not left its operands. The model was moved in memory since "
                "it was compiled.\nCall torch.compile on it anew."
            )
        return own

    def add(self, before: list[Operands], noted: list[Operands]) -> list[Operands]:
        return before + noted

    def nothing(self) -> list[Operands]:
        return []

    def best(
        self,
        count: int,
        survivors: Tensor,
        score: Score,
        reduce: Reduce | None = None,
        gradient: Tensor | None = None,
        among: Among | None = None,
    ) -> Tensor:
        if gradient is not None:
            raise RegrowRuntimeError(
                f"`{self.name}` is stored compressed: there is no dense tensor beside it"
            )
        if among is None:
            return self.best_of(self.stashed, count, survivors, score, reduce)
        operands = [each.among(among.chosen) for each in self.stashed]
        found = self.best_of(operands, count, among.narrow(survivors), score, reduce, among.chosen)
        return among.widen(found)

    def best_of(
        self,
        operands: list[Operands],
        count: int,
        survivors: Tensor,
        score: Score,
        reduce: Reduce | None = None,
        numbers: Tensor | None = None,
    ) -> Tensor:
        """`best` by the dense gradient that these operands have, whose columns have these `numbers` (None: all)."""
        if numbers is None:
            numbers = torch.arange(as_matrix(self.shape)[1], device=self.parameter.device)
        floor = -math.inf
        if count and score is gradient_magnitude and self.shape[0] * len(numbers) > TILE:
            floor = self._floor(operands, count, survivors, len(numbers), reduce)
        found = self._search(operands, count, survivors, score, reduce, numbers, floor)
        if found.filled < count and floor > -math.inf:  # the sample was no good guide
            found = self._search(operands, count, survivors, score, reduce, numbers, -math.inf)
        return found.positions()

    def _search(
        self,
        operands: list[Operands],
        count: int,
        survivors: Tensor,
        score: Score,
        reduce: Reduce | None,
        numbers: Tensor,
        floor: float,
    ) -> Best:
        """The best of what reaches `floor`, tile by tile."""
        device = self.parameter.device
        rows, columns = self.shape[0], len(numbers)
        found = Best(count, device, floor)
        height = max(1, TILE // columns, min(512, 4 * TILE // columns))  # few rows make a slow product
        exact = torch.promote_types(self.parameter.dtype, torch.float32)
        memory = torch.empty(min(height, rows), columns, dtype=exact, device=device)
        for start in range(0, rows, height):
            stop = min(start + height, rows)
            tile = self._dense_gradient(operands, start, stop, reduce, memory)
            excluded, offset = _between(survivors, start * columns, stop * columns), start * columns
            if score is gradient_magnitude:
                finite = found.add_magnitude(tile, excluded, offset)
            else:
                finite = bool(tile.isfinite().all())
                if finite:
                    row = torch.arange(start, stop, device=device)[:, None]
                    found.add(score(tile, row, numbers[None, :]), excluded, offset)
            if not finite:
                raise NonFiniteGradientError("the dense gradient is not finite")
        return found

    def _floor(
        self, operands: list[Operands], count: int, survivors: Tensor, columns: int, reduce: Reduce | None
    ) -> float:
        """A magnitude that more than `count` candidates are likely to reach, from a few of the rows."""
        rows, device = self.shape[0], self.parameter.device
        number = max(1, min(max(16, rows // 32), 64, rows, 8 * TILE // columns))
        chosen = (torch.arange(number, device=device) * rows + rows // 2) // number
        exact = torch.promote_types(self.parameter.dtype, torch.float32)
        memory = torch.empty(number, columns, dtype=exact, device=device)
        some = [each.in_rows(chosen) for each in operands]
        sample = self._dense_gradient(some, 0, number, reduce, memory)
        return floor_of(sample, chosen, survivors, count / (rows * columns - len(survivors)))

    def _dense_gradient(
        self, operands: list[Operands], start: int, stop: int, reduce: Reduce | None, memory: Tensor
    ) -> Tensor:
        """Rows `start` to `stop` of the dense gradient, in `memory` [rows, columns], of float32 or better."""
        tile = memory[: stop - start]
        if not operands:
            tile.zero_()
        for i, each in enumerate(operands):
            each.put_rows(tile, start, add=i > 0)
        return reduce(tile) if reduce else tile

    def update(self, drop: Tensor, grow: Tensor, companions: Sequence[Tensor] = ()) -> int:
        crow, col = self._part("crow"), self._part("col")
        new_crow, new_col, source, new = index.rewire(crow, col, as_matrix(self.shape)[1], drop, grow)
        if len(source) > self.capacity:
            raise RegrowRuntimeError(
                f"`{self.name}` has room for {self.capacity} connections in compressed storage and would get "
                f"{len(source)}: a method whose count grows needs storage='masked'"
            )
        self.forget()
        index.move(source, self.parameter.detach(), *companions)
        self._write_index(new_crow, new_col)
        return new

    def explored(self, before: Tensor | None, positions: Tensor | None = None) -> Tensor:
        if positions is not None:
            return super().explored(before, positions)
        return index.explored(self._part("crow"), self._part("col"), as_matrix(self.shape)[1], before)

    def fill(self, positions: Tensor, values: Tensor, tensor: Tensor | None = None) -> None:
        into = self.parameter.detach() if tensor is None else tensor
        into[torch.searchsorted(self.positions(), positions), 0] = values

    def assign(self, positions: Tensor, values: Tensor, *, keep_shape: bool = False) -> None:
        crow, col = index.from_positions(positions, *as_matrix(self.shape))
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
        return index.fingerprint(self._part("crow"), self._part("col"), as_matrix(self.shape)[1])

    def is_consistent(self) -> bool:
        crow, col, *mirrored = (self._part(part) for part in (*INDEX, *MIRROR))
        expected = index.mirror(crow, col, as_matrix(self.shape)[1])
        return all(torch.equal(*pair) for pair in zip(mirrored, expected, strict=True))

    def rebuild_mirror(self) -> None:
        """Rebuild the mirrored index from the index, in place, and note the topology as known."""
        for part, like, entries in (
            ("crow_t", "crow", as_matrix(self.shape)[1] + 1),
            ("row_t", "col", len(self.parameter)),
            ("order", "col", len(self.parameter)),
        ):
            if len(self._part(part)) != entries:
                self.module.__dict__[f"{self.parameter_name}_{part}"] = self._part(like).new_empty(entries)
        fingerprint = index.mirror_into(*(self._part(part) for part in (*INDEX, *MIRROR)))
        stamp.write(self.parameter, fingerprint, self.record.clock)
        self.remember(fingerprint)

    def _adopt_index(self, other: SparseWeight) -> None:
        """Take over the topology of `other`, a copy."""
        assert isinstance(other, CompressedWeight)
        self.forget()
        for part in (*INDEX, *MIRROR):
            mine, theirs = self._part(part), other._part(part)
            if mine.shape == theirs.shape and not mine.is_inference():
                mine.copy_(theirs)  # in place: a compiled model has the tensor itself
            else:
                self.module.__dict__[f"{self.parameter_name}_{part}"] = theirs.to(mine.device, copy=True)
        self.remember(other.record.fingerprint)


def to_csr(
    base: str, shape: tuple[int, ...], positions: Tensor, values: Tensor, capacity: int | None = None
) -> dict[str, Tensor]:
    """Keys and tensors of a compressed weight in a state dict, from its positions and values [nnz].

    With a `capacity`, values and columns are padded with zeros up to it, and a stamp follows, as a module has them.
    """
    crow, col = index.from_positions(positions, *as_matrix(shape))
    if capacity is None:
        return {f"{base}_values": values.view(-1, 1), f"{base}_crow": crow, f"{base}_col": col}
    padding = (0, capacity + stamp.SIZE - len(positions))
    values, col = pad(values, padding).view(-1, 1), pad(col, padding)
    stamp.write(values, index.fingerprint(crow, col, as_matrix(shape)[1]))
    return {f"{base}_values": values, f"{base}_crow": crow, f"{base}_col": col}


def unseen(name: str) -> RegrowRuntimeError:
    """The error where `name` is to be run by what does not see through the kernels."""
    return RegrowRuntimeError(
        f"`{name}` is in compressed storage, which transforms of torch.func (grad, vmap, jvp), torch.jit and ONNX "
        "cannot run.\nUse sparsify(..., storage='masked'), or a dense copy: regrow.densify(copy.deepcopy(model))"
    )


def _between(positions: Tensor, first: int, end: int) -> Tensor:
    """Those of the ascending `positions` that are in [first, end)."""
    low, high = torch.searchsorted(positions, torch.tensor([first, end], device=positions.device)).tolist()
    return positions[low:high]
