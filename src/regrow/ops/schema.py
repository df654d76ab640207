"""Named tuples as arguments of operators, whose schemas know none: there, their parts stand one by one."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from itertools import pairwise
from typing import Any, TypeVar

from regrow.ops.csr import Csr
from regrow.ops.window import Window

CSR = ", ".join(f"Tensor {name}" for name in Csr._fields)
WINDOW = ", ".join(f"SymInt[] {name}" for name in Window._fields)

T = TypeVar("T")


def unflatten(at: int, *kinds: Callable[..., Any]) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Decorate the function of an operator: from argument number `at` on, it is given named tuples of these
    `kinds`.
    """
    ends = [at]
    for kind in kinds:
        ends.append(ends[-1] + len(kind._fields))  # type: ignore[attr-defined]
    spans = [(kind, slice(*bounds)) for kind, bounds in zip(kinds, pairwise(ends), strict=True)]

    def decorate(function: Callable[..., T]) -> Callable[..., T]:
        @wraps(function)
        def flat(*args: Any) -> T:
            return function(*args[:at], *[kind(*args[span]) for kind, span in spans], *args[ends[-1] :])

        return flat

    return decorate
