"""How good a network is, and how good the tickets are that it was made of."""

from __future__ import annotations

import statistics
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn

import regrow
from regrow.app.tasks import Task
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
    with closing(outputs(model, batches, precision)) as pairs:
        found = task.evaluate(pairs)
    names = [metric.name for metric in task.measures.metrics]
    if found.keys() != set(names):
        raise RegrowValueError(
            f"`evaluate` of task {task.measures.task} must return {', '.join(names)}, got {', '.join(found)}"
        )
    return {name: float(found[name]) for name in names}


def outputs(model: nn.Module, batches: Data, precision: str) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Yield what `model` returns in evaluation mode for each batch, in float32 or better, and the targets."""
    before = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for inputs, targets in batches:
                with torch.autocast(inputs.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                    found = model(inputs)
                yield found.to(torch.promote_types(found.dtype, torch.float32)), targets
    finally:
        model.train(before)


def predictions(task: Task, model: nn.Module, batches: Data, precision: str) -> Tensor:
    """Return the predictions of `model`, one after the other."""
    return torch.cat([task.prediction(found) for found, _ in outputs(model, batches, precision)])


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
