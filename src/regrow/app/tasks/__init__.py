"""Tasks: what a network is trained for, how good it is at that, and which of two is better."""

from __future__ import annotations

from regrow.app.tasks.carried import Carried, require_state
from regrow.app.tasks.classification import CLASSIFICATION, Classification, cross_entropy
from regrow.app.tasks.language import Language
from regrow.app.tasks.measures import Measures, Metric
from regrow.app.tasks.of_data import measures_of, task_of
from regrow.app.tasks.task import Model, Task, outputs

__all__ = [
    "CLASSIFICATION",
    "Carried",
    "Classification",
    "Language",
    "Measures",
    "Metric",
    "Model",
    "Task",
    "cross_entropy",
    "measures_of",
    "outputs",
    "require_state",
    "task_of",
]
