"""`Task`: loss, metrics and targets of what a network is trained for."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from typing import Any, Self

import torch
from torch import Tensor, nn

from regrow.app.tasks.measures import Measures
from regrow.errors import RegrowValueError

Batches = Iterable[tuple[Tensor, Tensor]]
Model = Callable[[Tensor], Tensor]


class Task:
    """What a network is trained for. A data set names its own as its attribute ``task``.

    A subclass sets `measures` and has `loss` and `evaluate`; all else has a default. `step` and `measure` are for what
    needs the network itself, such as an attack on its inputs.
    """

    measures: Measures
    """The metrics, of which the first says which of two networks is better."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch, a single number: the mean over its examples. SNIP goes by it too."""
        raise NotImplementedError

    def step(self, model: Model, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss that a training step goes down, of `model` in training mode and a batch.

        What it computes by `torch.autograd.grad` on the way leaves no trace in the gradients of the parameters.
        """
        return self.loss(model(inputs), targets)

    def smoothed(self, smoothing: float, *, others: bool = False) -> Self:
        """Return the task whose `loss` spreads so much of each target over all classes: the recipe's `label_smoothing`.

        Args:
            smoothing: the share.
            others: over the other classes alone, as the trick label-smoothing does.

        Raises:
            RegrowValueError: the task has no classes.
        """
        raise RegrowValueError(
            f"`label_smoothing` is {smoothing}, but task {self.measures.task} has no classes\nLeave it out."
        )

    def evaluate(self, batches: Batches) -> dict[str, float]:
        """Return each metric by name, of a network's outputs (float32 or better) and the targets, batch by batch."""
        raise NotImplementedError

    def measure(self, model: Model, batches: Batches) -> dict[str, float]:
        """Return each metric by name: `evaluate` of what `model` returns.

        Args:
            model: in evaluation mode; takes inputs in the recipe's precision and returns float32 or better.
            batches: inputs and targets, once; gradients are recorded unless this turns them off, as it does.
        """
        with closing(outputs(model, batches)) as pairs:
            return self.evaluate(pairs)

    def targets(self, targets: Tensor) -> Tensor:
        """Return the `targets` of a batch, as the data keep them, as `loss` takes them."""
        return targets

    def check(self, outputs: Tensor, targets: Tensor, model: str, data: str) -> None:
        """Refuse a network whose `outputs` on two examples of the data have no loss.

        Raises:
            RegrowValueError: naming both sides.
        """
        shapes = f"outputs {list(outputs.shape)} of `model` {model} and targets {list(targets.shape)} of `data` {data}"
        try:
            loss: Any = self.loss(outputs, targets)
        except (RuntimeError, TypeError, ValueError) as error:
            raise RegrowValueError(f"{shapes} do not fit task {self.measures.task}: {error}") from error
        if not isinstance(loss, Tensor) or loss.dim() or not loss.is_floating_point():
            raise RegrowValueError(
                f"`loss` of task {self.measures.task} must be a single number, got "
                f"{list(loss.shape) if isinstance(loss, Tensor) else loss!r} of {shapes}"
            )

    def carrying(self, network: nn.Module, *, compiled: bool = False) -> Model:
        """Return what a pass over the data in their order calls for each batch: `network`, or what torch.compile makes
        of it; a `Carried` where each batch goes on from the state that the last one left.
        """
        return torch.compile(network) if compiled else network

    def ensemble(self, networks: Sequence[nn.Module]) -> nn.Module:
        """Return one network that predicts as `networks` do together.

        Raises:
            RegrowValueError: the task says nothing on how they do.
        """
        raise RegrowValueError(
            f"task {self.measures.task} has no `ensemble`, so that several networks cannot predict as one\n"
            "Give it one, or take tickets that are superposed."
        )

    def prediction(self, outputs: Tensor) -> Tensor:
        """Return what `differences` compares, of the outputs for one batch."""
        return outputs

    def differences(self, predictions: Sequence[Tensor]) -> dict[str, float]:
        """Return each of `measures.differences` by name, of the predictions of several networks."""
        return {}


def outputs(model: Model, batches: Batches) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Yield what `model` returns for the inputs of each batch, in inference mode, and the targets."""
    with torch.inference_mode():
        for inputs, targets in batches:
            yield model(inputs), targets
