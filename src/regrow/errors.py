"""The errors that regrow raises on purpose. Each is also the built-in error a caller would expect."""

from __future__ import annotations

import contextlib
import copy
import difflib
import functools
import os
import sys
import warnings
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec


class RegrowError(Exception):
    """Base of every error raised on purpose by regrow."""


class RegrowValueError(RegrowError, ValueError):
    """An argument, a recipe or a file holds something that is not allowed."""


class RegrowRuntimeError(RegrowError, RuntimeError):
    """Something was used in an order or in a state in which it cannot work."""


_BETWEEN = ("regrow", "torch", "lightning", "pytorch_lightning", "accelerate", "transformers")
"""Packages that call regrow for the user."""


@cache
def _inside() -> tuple[str, ...]:
    """Find where the files lie whose lines are never the user's."""
    found = [os.path.join(package, "") for name in _BETWEEN for package in _folders(name)]
    return (*found, *(str(module.__file__) for module in (contextlib, copy, functools)))


def _folders(package: str) -> list[str]:
    spec = find_spec(package)
    return list(spec.submodule_search_locations or []) if spec is not None else []


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line that led here from outside of regrow, whatever is called on the way, hooks of torch included."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_inside()):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """Find the choice most like `word`, if one is."""
    by_lower_case = {choice.lower(): choice for choice in choices}
    match = difflib.get_close_matches(word.lower(), by_lower_case, n=1)
    return by_lower_case[match[0]] if match else None


def closest(word: str, choices: Iterable[str], before: str = "") -> str:
    """Ask ``", did you mean `x`?"`` for the choice most like `word`, with what stands `before` it, or nothing."""
    match = nearest(word, choices)
    return "" if match is None else f", did you mean `{before}{match}`?"
