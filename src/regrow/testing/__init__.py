"""`check_method`: the common suite that every method passes, for authors of methods.

As scikit-learn's `check_estimator`: run it on your own class. Each check is a function ``(case)`` in `CHECKS`, so
that a test suite can run them one by one; each raises `AssertionError`, with what was expected, where it fails.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from regrow.arguments import said
from regrow.errors import RegrowValueError
from regrow.methods import Method
from regrow.testing.checks import (
    check_both_storages,
    check_calendar,
    check_copies,
    check_detach,
    check_invariants,
    check_learns,
    check_micro_batches,
    check_reproducible,
    check_resume,
    check_thrown_away,
)
from regrow.testing.contract import check_counts, check_options, check_refusals
from regrow.testing.runs import EVERY, OPTIMIZERS, STEPS, Case, Run, batch, network

__all__ = [
    "CHECKS",
    "EVERY",
    "OPTIMIZERS",
    "STEPS",
    "Case",
    "Run",
    "batch",
    "check_both_storages",
    "check_calendar",
    "check_copies",
    "check_counts",
    "check_detach",
    "check_invariants",
    "check_learns",
    "check_method",
    "check_micro_batches",
    "check_options",
    "check_refusals",
    "check_reproducible",
    "check_resume",
    "check_thrown_away",
    "network",
]

CHECKS: tuple[Callable[[Case], None], ...] = (
    check_invariants,
    check_calendar,
    check_reproducible,
    check_resume,
    check_micro_batches,
    check_thrown_away,
    check_both_storages,
    check_learns,
    check_copies,
    check_detach,
    check_counts,
    check_options,
    check_refusals,
)


def check_method(cls: type[Method], *, pattern: str | tuple[int, int] | None = None, **options: Any) -> None:
    """Run the common suite on a method, on every storage that it runs on.

    Args:
        cls: a subclass of `Method`, made like ``cls(model, optimizer, total_steps=...)``.
        pattern: of `regrow.sparsify`, that the networks are to have, so that updates are checked to keep it.
        options: further arguments for its constructor.

    Raises:
        AssertionError: saying which check failed, where, and what was expected.
    """
    given: object = cls
    if not (isinstance(given, type) and issubclass(given, Method)):
        raise RegrowValueError(
            f"`cls` must be a subclass of regrow.Method, got {said(cls)}\n"
            "Give the class itself, not a method that was made."
        )
    for storage in Case(cls).storages:
        for check in CHECKS:
            try:
                check(Case(cls, storage, options, pattern))
            except AssertionError as error:
                raise AssertionError(f"{check.__name__}, {storage} storage: {error}") from error
