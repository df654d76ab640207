"""How good a network is, and how good the tickets are that it was made of."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import regrow
from regrow.app.tasks import Model, Task, outputs
from regrow.errors import RegrowValueError
from regrow.tickets import overlap

Data = Iterable[tuple[Tensor, Tensor]]
Evaluation = Mapping[str, float]
"""Each metric of the task, by name, of one network on one data set."""


def evaluate(task: Task, model: nn.Module, batches: Data, precision: str) -> Evaluation:
    """Test `model` in evaluation mode; it is in the mode it was in afterwards.

    Args:
        task: what is measured.
        model: the network.
        batches: inputs and targets, on the model's device.
        precision: ``float32``, or ``bfloat16`` for torch.autocast.

    Raises:
        RegrowValueError: a task that measures something else than it says.
    """
    with in_evaluation(task, model, precision) as tested:
        found = task.measure(tested, batches)
    names = [metric.name for metric in task.measures.metrics]
    if found.keys() != set(names):
        asked = "evaluate" if type(task).measure is Task.measure else "measure"
        raise RegrowValueError(
            f"`{asked}` of task {task.measures.task} must return {', '.join(names)}, got {', '.join(found)}"
        )
    return {name: float(found[name]) for name in names}


@contextmanager
def in_evaluation(task: Task, model: nn.Module, precision: str) -> Iterator[Model]:
    """Put `model` into evaluation mode, and give what runs it in this precision and returns float32 or better.

    In streams it goes on from call to call, and begins without a state.
    """
    called = task.carrying(model)

    def tested(inputs: Tensor) -> Tensor:
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            found: Tensor = called(inputs)
        return found.to(torch.promote_types(found.dtype, torch.float32))

    before = model.training
    model.eval()
    try:
        yield tested
    finally:
        model.train(before)


def predictions(task: Task, model: nn.Module, batches: Data, precision: str) -> Tensor:
    """Return the predictions of `model`, one after the other."""
    with in_evaluation(task, model, precision) as tested:
        return torch.cat([task.prediction(found) for found, _ in outputs(tested, batches)])


def mean(evaluations: Sequence[Evaluation]) -> dict[str, float]:
    """Return the mean over several networks of each metric."""
    return {name: statistics.fmean(one[name] for one in evaluations) for name in evaluations[0]}


def differences(task: Task, tickets: Sequence[nn.Module], found: Sequence[Tensor]) -> dict[str, Any]:
    """Return how different several networks are: ``overlap`` and what the task measures, None where there is none.

    Args:
        task: what is measured between two.
        tickets: the networks.
        found: the `predictions` of each.
    """
    sparse = bool(tickets) and all(regrow.is_sparse(ticket) for ticket in tickets)
    return {
        "overlap": overlap(tickets).tolist() if sparse else None,
        **dict.fromkeys(metric.name for metric in task.measures.differences),
        **(task.differences(found) if len(tickets) > 1 else {}),
    }
