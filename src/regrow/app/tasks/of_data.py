"""Which task a data set has, and what is measured in a run of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from regrow.app.tasks.classification import CLASSIFICATION, Classification
from regrow.app.tasks.language import Language
from regrow.app.tasks.measures import Measures
from regrow.app.tasks.task import Task
from regrow.arguments import require_instance
from regrow.data import Text


def task_of(data: Any) -> Task:
    """Return the task of a data set: its own, the modelling of a text in its vocabulary, or the classification of its
    `classes`.

    Raises:
        RegrowValueError: an attribute `task` that is not a `Task`.
    """
    own = getattr(data, "task", None)
    if own is None and isinstance(data, Text):
        return Language(data.classes, data.vocabulary.unit, data.streams)
    if own is None:
        return Classification(data.classes)
    return require_instance(
        "data.task", own, Task, "a regrow.app.tasks.Task", "Derive its class from that one."
    )


def measures_of(summary: Mapping[str, Any]) -> Measures:
    """Return what was measured in the run of this summary; nothing else is needed, no data and no code."""
    own = summary.get("task")
    return CLASSIFICATION if own is None else Measures.from_dict(own)
