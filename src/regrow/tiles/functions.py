"""What is known of torch's functions by their names: which these are, and which change an argument."""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from regrow._torch import nn_functions


def named(names: str) -> set[Any]:
    """Return all of torch's functions and methods with these names, in-place forms included."""
    every = {form for name in names.split() for form in (name, f"{name}_")}
    owners: tuple[Any, ...] = (torch, Tensor, F, nn_functions)
    return {vars(owner)[name] for owner in owners for name in every & vars(owner).keys()} | {
        getattr(Tensor, name) for name in every if hasattr(Tensor, name)
    }


_VALUES = {"T", "mT", "H", "mH", "real", "imag"}


def attributes() -> set[Any]:
    """Return what reads an attribute that says something about a tensor, and what sets or deletes any."""
    kinds = (types.GetSetDescriptorType, property)
    every = {**vars(Tensor.__base__), **vars(Tensor)}
    found = {name: value for name, value in every.items() if isinstance(value, kinds)}
    reads = {value.__get__ for name, value in found.items() if name not in _VALUES}
    return reads | {form for value in found.values() for form in (value.__set__, value.__delete__)}


_IN_PLACE = {
    "__setitem__",
    "__iadd__",
    "__isub__",
    "__imul__",
    "__itruediv__",
    "__ifloordiv__",
    "__imod__",
} | {f"__i{name}__" for name in ("pow", "and", "or", "xor", "lshift", "rshift")}


def is_in_place(func: Any) -> bool:
    """Return whether a function changes its first argument."""
    name = short_name(func)
    return (name.endswith("_") and not name.endswith("__")) or name in _IN_PLACE


def short_name(func: Any) -> str:
    """Return the name of a function, or of an operator without its overload."""
    return str(getattr(func, "__name__", func)).partition(".")[0]
