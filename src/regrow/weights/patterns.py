"""Patterns: where the connections of a weight may be together, whatever drops and grows them.

A weight is [outputs, inputs, *kernel]. A pattern says what a topology must be like (`Pattern.holds`) and makes one to
begin with (`draw`, `best`). Methods, which know of none, see a weight with one by a view (`regrow.weights.patterned`).
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regrow._random import sample
from regrow.arguments import said
from regrow.errors import RegrowValueError
from regrow.growth.groups import Groups, Noise
from regrow.growth.scores import as_score
from regrow.growth.search import best_of_groups
from regrow.ops.select import top, top_of_rows
from regrow.weights.reading import as_matrix

Shape = tuple[int, ...]
AS_IT_IS = as_score(lambda scores, *_: scores)


class Pattern(ABC):
    """What the topology of a weight keeps to; its text, which files hold, is ``str(pattern)``."""

    size: int = 1
    """Connections that come and go together: those of a block."""
    density: float | None = None
    """The density that it gives every weight, where it gives one."""
    keeps_counts: bool = True
    """Whether the weight keeps its number of connections."""

    @abstractmethod
    def why_not(self, shape: Shape) -> str | None:
        """Say why no weight of this shape has the pattern, or return None."""

    @abstractmethod
    def holds(self, shape: Shape, positions: Tensor) -> bool:
        """Return whether connections at `positions` [nnz] of a weight of this shape have the pattern."""

    def units(self, shape: Shape) -> Shape:
        """Return the shape of what connections are counted in: of blocks, else the weight's."""
        return shape

    def pool(self, scores: Tensor) -> Tensor:
        """Return the scores [*units] of what connections are counted in, of scores of the weight's shape."""
        return scores

    @abstractmethod
    def draw(self, shape: Shape, count: int, generator: torch.Generator) -> Tensor:
        """Draw a topology with the pattern: positions, ascending, int64 [count * size]."""

    @abstractmethod
    def best(self, scores: Tensor, count: int) -> Tensor:
        """Find the topology with the pattern whose `count` units have the best `scores`, of the weight's shape."""


class Grouping(Pattern):
    """Each group of positions has a number of connections of its own, which it keeps."""

    @abstractmethod
    def groups(self, shape: Shape) -> Groups:
        """Return the groups of a weight of this shape."""

    @abstractmethod
    def shares(self, groups: int, count: int) -> Tensor:
        """Share `count` connections among so many groups, int64 [groups]."""

    @abstractmethod
    def allows(self, counts: Tensor) -> bool:
        """Return whether groups with so many connections [groups] have the pattern."""

    def holds(self, shape: Shape, positions: Tensor) -> bool:
        return self.allows(self.groups(shape).counts(positions, shape[0]))

    def draw(self, shape: Shape, count: int, generator: torch.Generator) -> Tensor:
        groups, (rows, columns) = self.groups(shape), as_matrix(shape)
        counts = self.shares(rows * columns // groups.size, count)
        none = torch.empty(0, dtype=torch.int64, device="cpu")
        noise = Noise(rows, columns, generator, none.device)
        return best_of_groups(noise, counts, none, AS_IT_IS, groups)

    def best(self, scores: Tensor, count: int) -> Tensor:
        groups, matrix = self.groups(tuple(scores.shape)), as_matrix(scores.shape)
        split = groups.split(scores.reshape(matrix))
        counts = self.shares(len(split), count).to(scores.device)
        return groups.join(top_of_rows(split, counts, torch.ones_like(split, dtype=torch.bool)))


@dataclass(frozen=True)
class FanIn(Grouping):
    """Equally many connections in each row, at most one more in some; rows without any are not counted."""

    def __str__(self) -> str:
        return "fan-in"

    def why_not(self, shape: Shape) -> str | None:
        return None

    def groups(self, shape: Shape) -> Groups:
        columns = as_matrix(shape)[1]
        return Groups(columns, columns)

    def shares(self, groups: int, count: int) -> Tensor:
        each, more = divmod(count, groups)
        return each + (torch.arange(groups, device="cpu") < more).long()

    def allows(self, counts: Tensor) -> bool:
        used = counts[counts > 0]
        return len(used) == 0 or int(used.max() - used.min()) <= 1


@dataclass(frozen=True)
class NM(Grouping):
    """`n` connections of each `m` inputs that follow each other, as sparse tensor cores read 2:4."""

    n: int
    m: int

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def density(self) -> float:  # type: ignore[override]
        return self.n / self.m

    def why_not(self, shape: Shape) -> str | None:
        return None if shape[1] % self.m == 0 else f"its {shape[1]} inputs are no multiple of {self.m}"

    def groups(self, shape: Shape) -> Groups:
        return Groups(as_matrix(shape)[1], self.m, math.prod(shape[2:]))

    def shares(self, groups: int, count: int) -> Tensor:
        return torch.full((groups,), self.n, dtype=torch.int64, device="cpu")

    def allows(self, counts: Tensor) -> bool:
        return bool((counts == self.n).all())


@dataclass(frozen=True)
class Blocks(Pattern):
    """Blocks of `rows` outputs by `inputs` inputs, at one place of the kernel: each is there or not."""

    rows: int
    inputs: int
    keeps_counts = False

    def __str__(self) -> str:
        return f"{self.rows}x{self.inputs}"

    @property
    def size(self) -> int:  # type: ignore[override]
        return self.rows * self.inputs

    def why_not(self, shape: Shape) -> str | None:
        if shape[0] % self.rows:
            return f"its {shape[0]} outputs are no multiple of {self.rows}"
        return (
            None if shape[1] % self.inputs == 0 else f"its {shape[1]} inputs are no multiple of {self.inputs}"
        )

    def units(self, shape: Shape) -> Shape:
        return (shape[0] // self.rows, shape[1] // self.inputs, *shape[2:])

    def pool(self, scores: Tensor) -> Tensor:
        """Return the mean of each block [outputs / rows, inputs / inputs, *kernel] of a tensor of whole rows."""
        outputs, inputs, *kernel = self.units(tuple(scores.shape))
        return scores.reshape(outputs, self.rows, inputs, self.inputs, *kernel).mean((1, 3))

    def of(self, shape: Shape, positions: Tensor) -> Tensor:
        """Return the number of the block of each position, int64 [n]."""
        (_, columns), kernel = as_matrix(shape), math.prod(shape[2:])
        row, inside = positions // columns, positions % columns
        column = inside // kernel // self.inputs
        return (row // self.rows * (shape[1] // self.inputs) + column) * kernel + inside % kernel

    def positions(self, shape: Shape, blocks: Tensor) -> Tensor:
        """Return the positions of each of `blocks` [n], int64 [n, size]."""
        kernel, inputs = math.prod(shape[2:]), shape[1] // self.inputs
        place, block = blocks % kernel, blocks // kernel
        corner = (block // inputs * self.rows * shape[1] + block % inputs * self.inputs) * kernel + place
        down, along = (torch.arange(n, device=blocks.device) for n in (self.rows, self.inputs))
        return corner[:, None] + ((down[:, None] * shape[1] + along) * kernel).view(-1)

    def holds(self, shape: Shape, positions: Tensor) -> bool:
        return len(self.of(shape, positions).unique()) * self.size == len(positions)

    def draw(self, shape: Shape, count: int, generator: torch.Generator) -> Tensor:
        blocks = sample(count, math.prod(self.units(shape)), generator)
        return self.positions(shape, blocks).view(-1).sort().values

    def best(self, scores: Tensor, count: int) -> Tensor:
        blocks = top(self.pool(scores).reshape(-1), count)
        return self.positions(tuple(scores.shape), blocks).view(-1).sort().values


def pattern_of(text: str) -> Pattern | None:
    """Return the pattern whose text this is; None if it is of none."""
    if text == str(FanIn()):
        return FanIn()
    if found := re.fullmatch(r"([1-9]\d{0,5}):([1-9]\d{0,5})", text):
        n, m = map(int, found.groups())
        return NM(n, m) if n < m else None
    if found := re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text):
        rows, inputs = map(int, found.groups())
        return Blocks(rows, inputs) if rows * inputs > 1 else None
    return None


def require_pattern(name: str, value: object) -> Pattern | None:
    """Return the pattern that `value` means: None, ``"fan-in"``, ``"N:M"``, or a block ``(rows, inputs)``.

    Raises:
        RegrowValueError: naming the argument, what was given and what is allowed.
    """
    if value is None:
        return None
    text = value
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2:
        text = "x".join(str(side) for side in value)
    found = pattern_of(text) if isinstance(text, str) else None
    if found is None:
        raise RegrowValueError(
            f'`{name}` must be "fan-in", N of M inputs with N below M such as "2:4", a block of (rows, inputs) such as '
            f"(1, 4), or None, got {said(value)}"
        )
    return found


def require_held(name: str, pattern: Pattern, shape: Shape, positions: Tensor) -> None:
    """Refuse connections at `positions` [nnz] of a weight of this shape that have not the pattern.

    Raises:
        RegrowValueError: naming what holds them.
    """
    if not pattern.holds(shape, positions):
        raise RegrowValueError(
            f"`{name}` must have the pattern {pattern} of the weight, got other connections\n"
            "Make the weight sparse without `pattern`, which takes any."
        )
