"""`Part`: what stands in for a weight, or for a part of one, where methods choose their moves."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from regrow.weights.base import SparseWeight
from regrow.weights.reading import ReadWeight
from regrow.weights.record import Record


class Part(ReadWeight):
    """A view of a weight as it is now, which methods take for a weight: what they choose is translated by `in_whole`.

    Args:
        whole: the weight.
    """

    start: int = 0
    """Its first position in the weight."""

    def __init__(self, whole: SparseWeight) -> None:
        self.whole = whole

    @abstractmethod
    def in_whole(self, drop: Tensor, grow: Tensor) -> tuple[Tensor, Tensor]:
        """Translate which of its connections go, and the positions that come, into those of the weight."""

    @property
    def record(self) -> Record:
        return self.whole.record

    @property
    def name(self) -> str:
        return self.whole.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.whole.shape

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter of the whole weight."""
        return self.whole.parameter

    @cached_property
    def _all(self) -> Tensor:
        """The positions of the weight's connections."""
        return self.whole.positions()

    def is_zero(self, noted: Any) -> bool:
        return self.whole.is_zero(noted)

    def note(self, gradient: Tensor, left: list[Any]) -> Any:
        return self.whole.note(gradient, left)

    def add(self, before: Any, noted: Any) -> Any:
        return self.whole.add(before, noted)

    def nothing(self) -> Any:
        return self.whole.nothing()
