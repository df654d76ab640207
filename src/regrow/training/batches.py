"""The batches of a run: in which order, changed how, held where."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from regrow.data import Augment, Tensors, order, prepared
from regrow.errors import RegrowValueError
from regrow.recipes import Recipe
from regrow.topology import generator

AT_ONCE = 2**22
"""A test batch holds about so many input values, but at least as many examples as a training batch."""


class Batches:
    """Training batches, each a pure function of (seed, step), and the batches of a test.

    With `validation` in the recipe, the share of training examples that it names is kept out of training and
    tested instead of the test set; which ones does not depend on the seed. `tested` is how many are tested.

    Raises:
        RegrowValueError: for an augmentation that does not fit the data, or too few examples.
    """

    def __init__(self, data: Tensors, recipe: Recipe, device: torch.device) -> None:
        self.data, self.device, self.seed, self.size = data, device, recipe.seed, recipe.batch_size
        self.augment = Augment(**recipe.augment)
        self.augment.check(data.train_inputs.shape[1:])
        self.inputs, self.targets = _resident(data.train_inputs, data.train_targets, device)
        count = len(self.inputs)
        self.validation = recipe.validation is not None
        self._chosen: Tensor | None = None  # of the training examples, those that train
        if recipe.validation is not None:
            held_out = max(1, round(count * recipe.validation))
            shuffled = torch.randperm(count, generator=generator(0, "validation", count))
            self._chosen, self._tested = shuffled[held_out:], shuffled[:held_out].sort().values
            self.test_inputs, self.test_targets = self.inputs, self.targets
        else:
            self._tested = torch.arange(len(data.test_inputs))
            self.test_inputs, self.test_targets = _resident(data.test_inputs, data.test_targets, device)
        self.examples = count if self._chosen is None else len(self._chosen)
        self.tested = len(self._tested)
        self.steps_per_epoch = self.examples // self.size
        if self.steps_per_epoch == 0:
            raise RegrowValueError(
                f"`batch_size` must be at most the {self.examples} training examples, got {self.size}"
            )
        self._epoch, self._order = -1, torch.empty(0)

    def train(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of `step`, on the run's device."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            indices = order(self.seed, epoch, self.examples)
            indices = indices if self._chosen is None else self._chosen[indices]
            self._epoch, self._order = epoch, indices.to(self.inputs.device)
        batch = self._order[position * self.size : (position + 1) * self.size]
        inputs = self.augment.train(self.inputs[batch].to(self.device), self.seed, step)
        return prepared(self.data, inputs), self.targets[batch].to(self.device, torch.int64)

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All that is tested, in order, on the run's device."""
        values = self.test_inputs[0].numel()
        size = min(1000, max(self.size, AT_ONCE // values))
        for some in self._tested.to(self.test_inputs.device).split(size):
            inputs = self.augment.test(self.test_inputs[some].to(self.device))
            yield prepared(self.data, inputs), self.test_targets[some].to(self.device, torch.int64)

    def example(self, count: int = 1) -> Tensor:
        """`count` test inputs as the model takes them, on the run's device."""
        return prepared(self.data, self.augment.test(self.data.test_inputs[:count].to(self.device)))


def _resident(inputs: Tensor, targets: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Both on `device`, or left where they are if they would take more than a quarter of its free memory."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if inputs.nbytes > free // 4:
            return inputs, targets
    return inputs.to(device), targets.to(device)
