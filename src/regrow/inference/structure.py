"""What a network takes and gives, as plain data: nested tuples, lists and dictionaries around tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

Structure = dict[str, Any]
"""One of ``{"tensor": number}``, ``{"tuple": [...]}``, ``{"list": [...]}``, ``{"dict": {name: ...}}`` and ``{"value":
...}``, the last a number, a string, a truth value or None."""

VALUES = (type(None), bool, int, float, str)


def flatten(value: Any, tensors: list[Tensor]) -> Structure:
    """Return the structure of `value`, whose tensors are appended to `tensors`.

    Raises:
        TypeError: something else is in it; the message names its type.
    """
    kind = type(value)
    if isinstance(value, Tensor):
        tensors.append(value)
        return {"tensor": len(tensors) - 1}
    if kind in (tuple, list):
        return {kind.__name__: [flatten(each, tensors) for each in value]}
    if kind is dict and all(isinstance(key, str) for key in value):
        return {"dict": {key: flatten(each, tensors) for key, each in value.items()}}
    if kind in VALUES:
        return {"value": value}
    raise TypeError(f"{kind.__name__}, which is neither a tensor nor a tuple, list or dictionary of tensors")


def unflatten(structure: Structure, tensors: Sequence[Any]) -> Any:
    """Return what `flatten` has taken apart, with other `tensors` in the same places."""
    ((kind, content),) = structure.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: unflatten(each, tensors) for key, each in content.items()}
    if kind == "value":
        return content
    parts = [unflatten(each, tensors) for each in content]
    return tuple(parts) if kind == "tuple" else parts
