"""What a data set is to the training loop, and the order in which it is seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from regrow.errors import RegrowValueError
from regrow.topology import generator


@runtime_checkable
class Tensors(Protocol):
    """The small protocol a user's own data follows: four tensors and a number, as attributes."""

    @property
    def train_inputs(self) -> Tensor:
        """[N, ...], what the model takes."""

    @property
    def train_targets(self) -> Tensor:
        """[N], int64 class numbers."""

    @property
    def test_inputs(self) -> Tensor:
        """[M, ...]."""

    @property
    def test_targets(self) -> Tensor:
        """[M], int64 class numbers."""

    @property
    def classes(self) -> int:
        """Class numbers are 0 .. classes - 1."""


@dataclass(frozen=True)
class Dataset:
    """A data set resident in memory.

    Args:
        name: what to call it.
        train_inputs, test_inputs: float32, [N, C, H, W] for images, already normalised.
        train_targets, test_targets: int64 [N], 0 .. classes - 1.
        mean, std: what was subtracted and divided by, so that pictures can be shown in the data's own unit.
    """

    name: str
    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    classes: int
    mean: float = 0.0
    std: float = 1.0


def check_dataset(data: object, where: str) -> Tensors:
    """`data`, once it is known to follow `Tensors`.

    Raises:
        RegrowValueError: for a missing attribute, lengths that differ, or targets that are no class numbers.
    """
    fields = ("train_inputs", "train_targets", "test_inputs", "test_targets", "classes")
    missing = [name for name in fields if not hasattr(data, name)]
    if missing or not isinstance(data, Tensors):
        raise RegrowValueError(
            f"`data` {where} returned a {type(data).__name__} without {', '.join(missing)}\n"
            f"Return an object with the attributes {', '.join(fields)}, for example a regrow.data.Dataset."
        )
    for split in ("train", "test"):
        inputs, targets = getattr(data, f"{split}_inputs"), getattr(data, f"{split}_targets")
        if len(inputs) != len(targets) or len(inputs) == 0:
            raise RegrowValueError(
                f"`data` {where}: {split} inputs and targets must be equally many and at least one, "
                f"got {len(inputs)} and {len(targets)}"
            )
        if targets.dtype != torch.int64 or targets.dim() != 1:
            raise RegrowValueError(
                f"`data` {where}: {split}_targets must be int64 class numbers of shape [N], "
                f"got {targets.dtype} of shape {list(targets.shape)}"
            )
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= data.classes:
            raise RegrowValueError(
                f"`data` {where}: {split}_targets must be in 0 .. {data.classes - 1}, got {low} .. {high}"
            )
    return data


def order(seed: int, epoch: int, size: int) -> Tensor:
    """The order in which an epoch sees its examples, int64 [size]: a pure function of its arguments."""
    return torch.randperm(size, generator=generator(seed, "data order", epoch))
