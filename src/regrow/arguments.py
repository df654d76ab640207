"""The kinds of arguments that public functions take: one check for each, which gives the argument in its plain form.

Whole numbers in another type are those numbers: 3.0, ``numpy.int64(3)`` and ``torch.tensor(3)`` are 3. A bool is no
number, and a number no flag.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, TypeGuard, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.errors import RegrowValueError, closest

T = TypeVar("T")
LONG = 80
"""Characters beyond which a value is named by its type."""


def said(value: object) -> str:
    """Return `value` as a message names it: short, whatever it is."""
    if isinstance(value, Tensor):
        return f"a tensor of {str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    if isinstance(value, nn.Module | Optimizer):
        return type(value).__name__
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if inspect.isroutine(value):
        return f"the function {getattr(value, '__name__', '')}{_signature(value) or ''}"
    if isinstance(value, list | tuple | set | dict):
        inside = list(value.values() if isinstance(value, dict) else value)
        if not all(isinstance(each, str | Real | list | tuple | dict | None) for each in inside):
            return f"a {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= LONG and "\n" not in text else f"a {type(value).__name__}"


def number(value: object, *, nan: bool = False) -> float | int | None:
    """Return the plain number that `value` is, or None: a scalar of numpy or torch too, but no bool, and `nan` if
    allowed.
    """
    if isinstance(value, Tensor) or type(value).__module__ == "numpy":
        single = getattr(value, "ndim", 1) == 0 and not getattr(value, "is_meta", False)
        value = value.item() if single else None  # type: ignore[attr-defined]
    if isinstance(value, bool) or not isinstance(value, Real) or (math.isnan(value) and not nan):
        return None
    plain: float = value if isinstance(value, int | float) else float(value)  # type: ignore[redundant-expr,unreachable]
    return plain


def require_count(name: str, value: object, *, least: int = 1, most: int | None = None) -> int:
    """Return `value` as an int of at least `least`, and at most `most` if that is given.

    Raises:
        RegrowValueError: naming the argument, what was given and what is allowed.
    """
    found = number(value)
    whole = found is not None and math.isfinite(found) and found == int(found)
    if found is None or not whole or found < least or (most is not None and found > most):
        allowed = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise RegrowValueError(f"`{name}` must be a whole number {allowed}, got {said(value)}")
    return int(found)


def require_seed(name: str, value: object) -> int:
    """Return `value` as an int of at least 0.

    Raises:
        RegrowValueError: naming the argument, what was given and what is allowed.
    """
    return require_count(name, value, least=0)


def require_fraction(name: str, value: object, *, one: bool = False) -> float:
    """Return `value` as a float in [0, 1), or in [0, 1] where `one` is allowed.

    Raises:
        RegrowValueError: naming the argument, what was given and what is allowed.
    """
    allowed, found = "[0, 1]" if one else "[0, 1)", number(value)
    if found is None:
        raise RegrowValueError(f"`{name}` must be a number in {allowed}, got {said(value)}")
    if not (0 <= found < 1 or (one and found == 1)):
        raise RegrowValueError(f"`{name}` must be in {allowed}, got {said(value)}")
    return float(found)


def require_positive(name: str, value: object, *, zero: bool = False) -> float:
    """Return `value` as a finite float above 0, or of at least 0 where `zero` is allowed.

    Raises:
        RegrowValueError: naming the argument, what was given and what is allowed.
    """
    found = number(value)
    if not _is_positive(found, zero):
        allowed = "of at least 0" if zero else "above 0"
        raise RegrowValueError(f"`{name}` must be a number {allowed}, got {said(value)}")
    return float(found)


def _is_positive(found: float | None, zero: bool) -> TypeGuard[float]:
    return found is not None and (0 < found < math.inf or (zero and found == 0))


def require_sequence(name: str, value: object, what: str, *, count: int | None = None) -> Sequence[Any]:
    """Return `value`, a list or a tuple, of `count` entries if that is given; messages call it `what`.

    Raises:
        RegrowValueError: naming the argument, what was given and what is allowed.
    """
    listed = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    if not listed or (count is not None and len(value) != count):  # type: ignore[arg-type]
        raise RegrowValueError(f"`{name}` must be {what}, got {said(value)}")
    return value  # type: ignore[return-value]


def require_numbers(
    name: str, values: object, *, count: int | None = None, zero: bool = False
) -> tuple[float, ...]:
    """Return `values` as finite floats above 0, `count` of them or any number but none.

    Raises:
        RegrowValueError: naming the argument, what was given and what is allowed.
    """
    listed = list(values) if isinstance(values, Sequence) and not isinstance(values, str) else []
    found = [number(value) for value in listed]
    good = [v for v in found if _is_positive(v, zero)]
    if len(good) < len(listed) or not good or (count is not None and len(good) != count):
        kind = "numbers of at least 0" if zero else "positive numbers"
        raise RegrowValueError(
            f"`{name}` must be {kind if count is None else f'{count} {kind}'}, got {said(values)}"
        )
    return tuple(map(float, good))


def require_flag(name: str, value: object) -> bool:
    """Return `value`, True or False.

    Raises:
        RegrowValueError: naming the argument, what was given and what is allowed.
    """
    if type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0:
        value = value.item()  # type: ignore[attr-defined]
    if not isinstance(value, bool):
        raise RegrowValueError(f"`{name}` must be true or false, got {said(value)}")
    return value


def require_choice(name: str, value: object, allowed: Iterable[str], *, others: str = "") -> str:
    """Return `value`, a word in `allowed`; `others` says what else would have been taken.

    Raises:
        RegrowValueError: naming the argument, what was given and what is allowed, with the closest one.
    """
    words = list(allowed)
    if not isinstance(value, str) or value not in words:
        hint = closest(value, words) if isinstance(value, str) else ""
        raise RegrowValueError(f"`{name}` must be one of {', '.join(words)}{others}, got {said(value)}{hint}")
    return value


def require_text(name: str, value: object) -> str:
    """Return `value`, a word or more.

    Raises:
        RegrowValueError: naming the argument, what was given and what is allowed.
    """
    if not isinstance(value, str) or not value:
        raise RegrowValueError(f"`{name}` must be a text, got {said(value)}")
    return value


def require_path(name: str, value: object) -> str:
    """Return `value`, the name of a file or folder, as a text.

    Raises:
        RegrowValueError: naming the argument, what was given and what is allowed.
    """
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else ""
    if not isinstance(path, str) or not path:
        raise RegrowValueError(f"`{name}` must be a path, got {said(value)}")
    return path


def require_instance(name: str, value: object, kind: type[T], what: str = "", remedy: str = "") -> T:
    """Return `value`, a `kind`, which messages call `what`; `remedy` is a line of its own.

    Raises:
        RegrowValueError: naming the argument, what was given and what is allowed.
    """
    if not isinstance(value, kind):
        if isinstance(value, type) and issubclass(value, kind):
            remedy = f"Make one: {value.__name__}(...)."
        raise RegrowValueError(
            f"`{name}` must be {what or f'a {kind.__name__}'}, got {said(value)}{remedy and chr(10)}{remedy}"
        )
    return value


DEPLOYED = "_regrow_deployed"
"""Attribute of modules that are for inference alone, which functions that look for parameters would find empty."""


def require_model(name: str, value: object, *, runs: bool = False) -> nn.Module:
    """Return `value`, a torch module.

    Args:
        name: of the argument.
        value: anything.
        runs: whether it is only run, so that a deployed network, which has no parameters, will do.

    Raises:
        RegrowValueError: naming the argument, what was given and what is allowed.
    """
    model = require_instance(name, value, nn.Module, "a torch.nn.Module")
    if not runs and getattr(model, DEPLOYED, False):
        raise RegrowValueError(
            f"`{name}` is a deployed network, which runs and has no parameters\n"
            "Give the network that it was made from."
        )
    return model


def require_models(name: str, values: object, *, least: int = 1, runs: bool = False) -> list[nn.Module]:
    """Return `values`, several torch modules, as a list.

    Raises:
        RegrowValueError: naming the argument, what was given and what is allowed.
    """
    one = isinstance(values, nn.Module) and not isinstance(values, nn.ModuleList)
    if one or not isinstance(values, Iterable):
        raise RegrowValueError(f"`{name}` must be a list of torch.nn.Module, got {said(values)}")
    models = [require_model(f"{name}[{place}]", value, runs=runs) for place, value in enumerate(values)]
    if len(models) < least:
        few = "one network" if least == 1 else f"{least} networks"
        raise RegrowValueError(f"`{name}` must hold at least {few}, got {len(models) or 'none'}")
    return models


def require_optimizer(name: str, value: object) -> Optimizer:
    """Return `value`, a torch optimizer.

    Raises:
        RegrowValueError: naming the argument, what was given and what is allowed.
    """
    return require_instance(name, value, Optimizer, "a torch.optim.Optimizer")


def require_tensor(
    name: str, value: object, *, dims: int | None = None, floating: bool | None = None
) -> Tensor:
    """Return `value`, a tensor, of so many dimensions, and `floating` point or whole numbers.

    Raises:
        RegrowValueError: naming the argument, what was given and what is allowed.
    """
    kind = {None: "", True: " of floating point", False: " of whole numbers"}[floating]
    what = f"a tensor{kind}" + ("" if dims is None else f" with {dims} dimension{'s' if dims > 1 else ''}")
    remedy = "Make it a tensor: torch.as_tensor(...)." if isinstance(value, Collection) else ""
    tensor = require_instance(name, value, Tensor, what, remedy)
    wrong = tensor.is_complex() or tensor.dtype == torch.bool or tensor.is_floating_point() != floating
    if (dims is not None and tensor.dim() != dims) or (floating is not None and wrong):
        raise RegrowValueError(f"`{name}` must be {what}, got {said(value)}")
    return tensor


def require_function(name: str, value: object, *arguments: str, others: str = "") -> Callable[..., Any]:
    """Return `value`, a function that can be called with these `arguments` by position.

    `others` says what else would have been taken.

    Raises:
        RegrowValueError: naming the argument, what was given and what is allowed.
    """
    allowed = f"{others}a function ({', '.join(arguments)})"
    if not callable(value):
        raise RegrowValueError(f"`{name}` must be {allowed}, got {said(value)}")
    if isinstance(value, type) and any("__call__" in base.__dict__ for base in value.__mro__):
        raise RegrowValueError(
            f"`{name}` must be {allowed}, got {said(value)}\nMake one: {value.__name__}(...)."
        )
    signature = _signature(value)
    try:
        if signature is not None:
            signature.bind(*arguments)
    except TypeError as error:
        raise RegrowValueError(f"`{name}` must be {allowed}, got {said(value)}: {error}") from error
    return value


def _signature(function: Any) -> inspect.Signature | None:
    """Return how it is called, or None where Python does not know (functions written in C)."""
    try:
        return inspect.signature(function)
    except (ValueError, TypeError):
        return None


def require_iterable(name: str, value: object, what: str) -> Iterable[Any]:
    """Return `value`, something that can be iterated over and is not text; messages call it `what`.

    Raises:
        RegrowValueError: naming the argument, what was given and what is allowed.
    """
    if (not isinstance(value, Iterable) and not hasattr(value, "__getitem__")) or isinstance(value, str):
        raise RegrowValueError(f"`{name}` must be {what}, got {said(value)}")
    return value  # type: ignore[return-value]


def require_mapping(name: str, value: object, what: str, *, keys: Iterable[str] = ()) -> Mapping[str, Any]:
    """Return `value`, a dictionary whose keys are names, `keys` among them; messages call it `what`.

    Raises:
        RegrowValueError: naming the argument, what was given and what is allowed.
    """
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise RegrowValueError(f"`{name}` must be {what}, got {said(value)}")
    if missing := [key for key in keys if key not in value]:
        raise RegrowValueError(f"`{name}` must be {what}, got {said(value)} without {', '.join(missing)}")
    return value


def require_patterns(name: str, value: object) -> list[str]:
    """Return `value`, a glob of names or several, as a list.

    Raises:
        RegrowValueError: naming the argument, what was given and what is allowed.
    """
    listed = [value] if isinstance(value, str) else value
    globs: list[Any] = (
        list(listed) if isinstance(listed, Collection) and not isinstance(listed, Mapping) else [None]
    )
    if not all(isinstance(glob, str) and glob for glob in globs):
        raise RegrowValueError(
            f"`{name}` must be a glob of layer names, a list of globs or a function (name, module), got {said(value)}"
        )
    return globs


def require_example(name: str, value: object) -> tuple[tuple[Any, ...], dict[str, Any], int]:
    """Return `value`, one batch, as the positional and keyword arguments of a forward pass, and its number of examples.

    A list or tuple is the positional arguments, a dictionary the keyword arguments, anything else the only argument.

    Raises:
        RegrowValueError: naming the argument, what was given and what is allowed.
    """
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(value, Mapping):
        kwargs = dict(value)
    elif isinstance(value, list | tuple):
        args = tuple(value)
    else:
        args = (value,)
    tensor = next((each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)), None)
    if tensor is None:
        raise RegrowValueError(
            f"`{name}` must be a batch: a tensor, or a list or dictionary with one, got {type(value).__name__}"
        )
    if tensor.dim() == 0 or tensor.numel() == 0:
        raise RegrowValueError(
            f"`{name}` must hold at least one example in its first dimension, got shape {tuple(tensor.shape)}"
        )
    return args, kwargs, len(tensor)


def require_group(name: str, value: object) -> Any:
    """Return `value`, a process group of torch.distributed or None.

    Raises:
        RegrowValueError: naming the argument, what was given and what is allowed.
    """
    if value is None:
        return None
    if not dist.is_available() or not isinstance(value, dist.ProcessGroup):
        outside = dist.is_available() and value is dist.GroupMember.NON_GROUP_MEMBER
        got = "that of other processes, which this one does not belong to" if outside else said(value)
        raise RegrowValueError(
            f"`{name}` must be a group of torch.distributed.new_group or None, got {got}\n"
            "None is all processes, where torch.distributed runs."
        )
    return value
