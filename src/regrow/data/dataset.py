"""What a data set is to the training loop, and the order in which it is seen."""

from __future__ import annotations

import math
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from regrow._random import generator
from regrow.arguments import require_count, require_seed, require_tensor, said
from regrow.errors import RegrowValueError

LARGE = 2**28
"""Sets with more values are looked at in part where only a mean is wanted: they may lie on disk."""


@runtime_checkable
class Tensors(Protocol):
    """The small protocol a user's own data follows: four tensors and a number, as attributes.

    Optional are a method ``prepare(inputs) -> Tensor``: what the model takes, of a batch of the inputs as they are
    kept, without which they are the same; and an attribute ``task``, a `regrow.app.tasks.Task`, for data that are not
    to be classified: targets are then whatever it takes, and there are no `classes`. So are ``validation_inputs`` and
    ``validation_targets``, which a recipe tests with ``validation: own``; and a true ``streams``, for examples that are
    windows of a text in its order: batches then are those of places that move on through it together.
    """

    @property
    def train_inputs(self) -> Tensor:
        """[N, ...]."""

    @property
    def train_targets(self) -> Tensor:
        """int64 class numbers [N], or [N, T] with one at each of T places; uint8 will do as well."""

    @property
    def test_inputs(self) -> Tensor:
        """[M, ...]."""

    @property
    def test_targets(self) -> Tensor:
        """[M] or [M, T]."""

    @property
    def classes(self) -> int:
        """Class numbers are 0 .. classes - 1."""


@dataclass(frozen=True)
class Dataset:
    """A data set resident in memory.

    Args:
        name: what to call it.
        train_inputs, test_inputs: [N, C, H, W] for images, float32 and normalised, or bytes (uint8), of which each
            batch is normalised: a quarter of the memory.
        train_targets, test_targets: int64 [N], 0 .. classes - 1.
        mean, std: what is subtracted from pixels in [0, 1] and divided by, one number or one a channel; so that
            pictures can be shown in the data's own unit.
        per_image: normalise each image kept in bytes by the mean and deviation of all its own values instead, as
            TensorFlow's ``per_image_standardization``. Batches then do so before they augment, when it is still whole.
    """

    name: str
    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    classes: int
    mean: float | Sequence[float] = 0.0
    std: float | Sequence[float] = 1.0
    per_image: bool = False

    def prepare(self, inputs: Tensor) -> Tensor:
        """Return a batch of `inputs` as the model takes it: bytes become normalised float32, all else stays."""
        if inputs.dtype != torch.uint8:
            return inputs
        if self.per_image:
            return standardized(inputs)
        mean, std = (torch.as_tensor(v, device=inputs.device).view(-1, 1, 1) for v in (self.mean, self.std))
        return inputs.float().div_(255).sub_(mean).div_(std)

    def in_bytes(self, images: Tensor) -> Tensor:
        """Return images of the set [N, C, H, W] as bytes, also where it keeps them normalised; `prepare` takes
        them back.
        """
        if images.dtype == torch.uint8:
            return images
        mean, std = (torch.as_tensor(v, device=images.device).view(-1, 1, 1) for v in (self.mean, self.std))
        return (images * std + mean).mul(255).round_().clamp_(0, 255).to(torch.uint8)


def standardized(images: Tensor) -> Tensor:
    """Turn images in bytes [N, C, H, W] into float32, each less its mean and divided by its deviation over all values.

    A deviation counts as 1 / sqrt(values) at least, on the scale of 0 to 255, so that a plain image is zeros.
    """
    values = images.float()
    mean = values.mean((1, 2, 3), keepdim=True)
    std = values.std((1, 2, 3), correction=0, keepdim=True)
    return values.sub_(mean).div_(std.clamp(min=math.prod(images.shape[1:]) ** -0.5))


def prepared(data: Tensors, inputs: Tensor) -> Tensor:
    """Return a batch of `inputs` as the model takes it, by the method `prepare` where `data` has one."""
    prepare = getattr(data, "prepare", None)
    return inputs if prepare is None else prepare(inputs)


def check_dataset(data: object, where: str) -> Tensors:
    """Return `data`, once it is known to follow `Tensors`.

    Raises:
        RegrowValueError: for a missing attribute, lengths that differ, or targets that are no class numbers.
    """
    tensors = ("train_inputs", "train_targets", "test_inputs", "test_targets")
    classified = getattr(data, "task", None) is None
    fields = (*tensors, "classes") if classified else tensors
    missing = [name for name in fields if not hasattr(data, name)]
    if missing:
        raise RegrowValueError(
            f"`data` {where} returned a {type(data).__name__} without {', '.join(missing)}\n"
            f"Return an object with the attributes {', '.join(fields)}, for example a regrow.data.Dataset."
        )
    found = cast(Tensors, data)
    classes = require_count("classes", found.classes) if classified else 0
    parts = ["train", "test", *(["validation"] if has_validation(found) else [])]
    for split in parts:
        inputs, targets = getattr(data, f"{split}_inputs"), getattr(data, f"{split}_targets")
        require_tensor(f"{split}_targets", targets)
        if not isinstance(inputs, Sized):
            raise RegrowValueError(f"`{split}_inputs` must be a tensor, got {said(inputs)}")
        if len(inputs) != len(targets) or len(inputs) == 0:
            raise RegrowValueError(
                f"`data` {where}: `{split}_inputs` and `{split}_targets` must be equally many and at least one, "
                f"got {len(inputs)} and {len(targets)}"
            )
        if not classified:
            continue
        if targets.dtype not in (torch.int64, torch.int32, torch.uint8) or targets.dim() not in (1, 2):
            raise RegrowValueError(
                f"`data` {where}: `{split}_targets` must be int64 class numbers of shape [N] or [N, T], "
                f"got {targets.dtype} of shape {list(targets.shape)}"
            )
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= classes:
            raise RegrowValueError(
                f"`data` {where}: `{split}_targets` must be in 0 .. {classes - 1}, got {low} .. {high}"
            )
    return found


def has_validation(data: Tensors) -> bool:
    """Return whether `data` have a part of their own for validation."""
    return getattr(data, "validation_inputs", None) is not None


def order(seed: int, epoch: int, size: int) -> Tensor:
    """Return the order in which an epoch sees its examples, int64 [size]: a pure function of its arguments."""
    seed, epoch = require_seed("seed", seed), require_count("epoch", epoch, least=0)
    size = require_count("size", size, least=0)
    return torch.randperm(size, generator=generator(seed, "data order", epoch), device="cpu")


def streams(seed: int, epoch: int, size: int, count: int) -> Tensor:
    """Return the order in which an epoch sees windows of a text in `count` streams side by side: a pure function.

    The text is a ring, cut into `count` stretches of ``S = size // count`` windows, from a place on that differs from
    epoch to epoch. Row b of batch s is window s of stretch b, so that row b of the next batch goes on where it ends.

    Returns:
        int64 [S * count], batch after batch; ``size % count`` windows are left out.
    """
    seed, epoch = require_seed("seed", seed), require_count("epoch", epoch, least=0)
    size, count = require_count("size", size), require_count("count", count)
    steps = size // count
    first = torch.randint(size, (1,), generator=generator(seed, "streams", epoch), device="cpu")
    starts = first + steps * torch.arange(count, device="cpu")
    return ((starts + torch.arange(steps, device="cpu")[:, None]) % size).flatten()


def spread(tensor: Tensor) -> Tensor:
    """Return `tensor`, or so many of its examples, evenly spaced, that they hold no more than `LARGE` values."""
    every = -(-tensor.numel() // LARGE)
    return tensor[::every].to("cpu")  # images in files are decoded


def statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of each channel of `images` in bytes [N, C, H, W], on the scale of 0 to 1.

    Exact for sets of up to 2^28 values; of a larger one, images evenly spaced in it.

    Raises:
        RegrowValueError: for a channel in which all pixels have one value.
    """
    counts = torch.zeros(images.shape[1], 256, dtype=torch.float64, device="cpu")
    for some in spread(images).split(2000):
        for channel in range(images.shape[1]):
            counts[channel] += torch.bincount(some[:, channel].flatten(), minlength=256)
    values = torch.arange(256, dtype=torch.float64, device="cpu") / 255
    share = counts / counts.sum(1, keepdim=True)
    mean = share @ values
    std = (share @ values.square() - mean.square()).clamp(min=0).sqrt()
    if not bool((std > 1e-6).all()):
        raise RegrowValueError("all pixels of the training images have the same value in a channel")
    return tuple(mean.tolist()), tuple(std.tolist())
