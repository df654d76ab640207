"""The batches of a run: in which order, changed how, held where."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from regrow._random import generator
from regrow.app.recipes import OWN, Recipe
from regrow.app.tasks import task_of
from regrow.data import Augment, Tensors, has_validation, in_files, order, prepared, streams
from regrow.errors import RegrowValueError

AT_ONCE = 2**22
"""A test batch holds about so many input values, but at least as many examples as a training batch."""


@dataclass(frozen=True)
class Examples:
    """What a network is tested on."""

    name: str
    """``validation`` or ``test``."""
    inputs: Tensor
    targets: Tensor
    chosen: Tensor
    """Which of `inputs` and `targets`, ascending."""

    def __len__(self) -> int:
        return len(self.chosen)


class Batches:
    """Training batches, each a pure function of (seed, step), and the batches of a test.

    With `validation` in the recipe, the share of training examples that it names is kept out of training; which ones
    does not depend on the seed. Or it says that the data have a part of their own for that.

    Windows of a text in streams come side by side: row b of a batch goes on where row b of the last batch ended.

    Attributes:
        task: of the data.
        during: what is tested during the run: the examples held out, or the test set where there are none.
        streams: whether batches are of windows side by side.
        final: what its result is tested on, as the recipe says.

    Raises:
        RegrowValueError: for an augmentation that does not fit the data, or too few examples.
    """

    def __init__(self, data: Tensors, recipe: Recipe, device: torch.device) -> None:
        self.data, self.device, self.seed, self.size = data, device, recipe.seed, recipe.batch_size
        self.task = task_of(data)
        self.streams = bool(getattr(data, "streams", False))
        self.test_size = recipe.test_batch_size
        self.augment = Augment(**recipe.augment)
        self.augment.check(data.train_inputs.shape[1:])
        if in_files(data.train_inputs) and (self.augment.crop or not self.augment.resized_crop):
            raise RegrowValueError(
                "`data.whole` is true, but `augment` cuts no parts out of whole images\n"
                "Give `augment.resized_crop`, without `augment.crop`, or leave `data.whole` out."
            )
        self.inputs, self.targets = _resident(data.train_inputs, data.train_targets, device)
        count = len(self.inputs)
        self._chosen: Tensor | None = None  # of the training examples, those that train
        held_out = None
        _check_validation(data, recipe)
        if recipe.validation == OWN:
            tested = _resident(data.validation_inputs, data.validation_targets, device)  # type: ignore[attr-defined]
            held_out = Examples("validation", *tested, torch.arange(len(tested[0]), device="cpu"))
        elif recipe.validation is not None:
            share = held_out_of(recipe, count)
            shuffled = torch.randperm(count, generator=generator(0, "validation", count), device="cpu")
            self._chosen = shuffled[share:]
            held_out = Examples("validation", self.inputs, self.targets, shuffled[:share].sort().values)
        if held_out is None or recipe.tested_on == "test":
            tested = _resident(data.test_inputs, data.test_targets, device)
            self.final = Examples("test", *tested, torch.arange(len(data.test_inputs), device="cpu"))
        else:
            self.final = held_out
        self.during = held_out or self.final
        self.examples = count if self._chosen is None else len(self._chosen)
        self.steps_per_epoch = epoch_of(recipe, self.examples)
        if self.examples < self.size:
            shorter = (
                "\nGive a longer text, or a smaller `batch_size` or `data.length`." if self.streams else ""
            )
            raise RegrowValueError(
                f"`batch_size` must be at most the {self.examples} training examples, got {self.size}{shorter}"
            )
        self._epoch, self._order = -1, torch.empty(0, device="cpu")

    def train(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the inputs and targets of `step`, on the run's device."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            if self.streams:
                indices = streams(self.seed, epoch, self.examples, self.size)
            else:
                indices = order(self.seed, epoch, self.examples)
            indices = indices if self._chosen is None else self._chosen[indices]
            self._epoch, self._order = epoch, indices.to(self.inputs.device)
        batch = self._order[position * self.size : (position + 1) * self.size]
        images = self.inputs[batch]
        given = images if in_files(images) else self._whole(images)
        inputs = self.augment.train(given, self.seed, step).to(self.device)
        return prepared(self.data, inputs), self.task.targets(self.targets[batch].to(self.device))

    def test(self, examples: Examples | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all `examples` (default: `during`) in order, on the run's device.

        In streams, the last batch may have fewer targets than inputs: those of the streams that have a window left.
        """
        tested = examples or self.during
        if self.streams:
            for some, left in side_by_side(len(tested), min(self.test_size or self.size, len(tested))):
                chosen = some.to(tested.inputs.device)
                targets = tested.targets[chosen[:left]].to(self.device)
                yield (
                    prepared(self.data, tested.inputs[chosen].to(self.device)),
                    self.task.targets(targets),
                )
            return
        size = self.test_size or min(1000, max(self.size, AT_ONCE // math.prod(tested.inputs.shape[1:])))
        for some in tested.chosen.to(tested.inputs.device).split(size):
            inputs = self.augment.test(self._whole(tested.inputs[some]))
            yield prepared(self.data, inputs), self.task.targets(tested.targets[some].to(self.device))

    def epoch(self, step: int) -> Iterator[Tensor]:
        """Yield the inputs of an epoch of training batches, beginning with that of `step`."""
        for later in range(step, step + self.steps_per_epoch):
            yield self.train(later)[0]

    def example(self, count: int = 1) -> Tensor:
        """Return `count` test inputs as the model takes them, on the run's device."""
        return prepared(self.data, self.augment.test(self._whole(self.data.test_inputs[:count])))

    def _whole(self, inputs: Tensor) -> Tensor:
        """Put `inputs` on the run's device; prepare them if that goes by whole images, which augmentation cuts."""
        inputs = inputs.to(self.device)
        return prepared(self.data, inputs) if getattr(self.data, "per_image", False) else inputs


def side_by_side(size: int, count: int) -> Iterator[tuple[Tensor, int]]:
    """Yield batches of `size` windows of a text in `count` streams, each window once, and how many streams go on there.

    Streams are as equally long as can be, the longer ones first; those that have ended repeat a window.
    """
    steps = -(-size // count)
    longer = size - (steps - 1) * count
    rows = torch.arange(count, device="cpu")
    starts = rows * (steps - 1) + rows.clamp(max=longer)
    for step in range(steps):
        yield (starts + step).clamp(max=size - 1), count if step < steps - 1 else longer


def _check_validation(data: Tensors, recipe: Recipe) -> None:
    """Refuse a `validation` that the data cannot have, and what else windows in streams cannot have."""
    if recipe.validation == OWN and not has_validation(data):
        raise RegrowValueError(
            f"`validation` is {OWN}, but `data` {recipe.data.name} has no part of its own for that\n"
            "Hold out a share of the training examples: `validation: 0.1`."
        )
    if not getattr(data, "streams", False):
        return
    if recipe.validation not in (None, OWN):
        raise RegrowValueError(
            f"`validation` is {recipe.validation}, but `data` {recipe.data.name} is a text in streams, from which no "
            f"single examples can be taken\nTest the text's own part: `validation: {OWN}`."
        )
    if not recipe.drop_last:
        raise RegrowValueError(
            "`drop_last` is false, but the batches of a text in streams are all of one size\nLeave it out."
        )


def held_out_of(recipe: Recipe, count: int) -> int:
    """Say how many of `count` training examples `validation` keeps out of training."""
    return 0 if recipe.validation in (None, OWN) else max(1, round(count * recipe.validation))


def epoch_of(recipe: Recipe, examples: int) -> int:
    """Say how many steps an epoch of so many `examples` has."""
    return examples // recipe.batch_size if recipe.drop_last else math.ceil(examples / recipe.batch_size)


def _resident(inputs: Tensor, targets: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Move both to `device`, unless they would take more than a quarter of its free memory."""
    kept = in_files(inputs)
    if device.type == "cuda" and not kept:
        free, _ = torch.cuda.mem_get_info(device)
        kept = inputs.nbytes > free // 4
    if kept:
        return inputs, targets
    return inputs.to(device), targets.to(device)
