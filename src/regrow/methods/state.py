"""What an optimizer keeps of a sparse weight, wherever it keeps it."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from regrow._torch import hook_attributes
from regrow.errors import RegrowRuntimeError, RegrowValueError
from regrow.weights import SparseWeight

PREFIX = "regrow_"
"""Keys of `param_groups[0]` and of `state[p]` that are a method's own."""
SLOW = "lookahead_slow_buff"
"""State that timm's Lookahead leaves in that of the optimizer inside: a copy of the values."""
DEPTH = 5  # containers within containers
PLAIN = (Tensor, nn.Parameter)

Leaf = tuple[str, Tensor, bool]
"""Where a tensor is kept, the tensor, and whether it is inside an object that is not a container."""


def leaves(value: Any, key: str) -> Iterator[Leaf]:
    """Yield the tensors in `value`, through containers, objects and closures, each once; `key` is what it is called."""
    seen: set[int] = set()

    def walk(value: Any, key: str, inside: bool, depth: int) -> Iterator[Leaf]:
        if id(value) in seen or depth > DEPTH:
            return
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield key, value, inside
        elif isinstance(value, Mapping):
            for name, each in list(value.items()):
                word = repr(name) if isinstance(name, str | int | float | tuple) else "..."
                yield from walk(each, f"{key}[{word}]", inside, depth + 1)
        elif isinstance(value, list | tuple | deque | set | frozenset):
            for i, each in enumerate(list(value)):
                yield from walk(each, f"{key}[{i}]", inside, depth + 1)
        else:
            for name, each in _parts(value):
                yield from walk(each, f"{key}.{name}", True, depth + 1)

    yield from walk(value, key, False, 0)


def _parts(value: Any) -> list[tuple[str, Any]]:
    """Return what an object that is not a container holds, by name."""
    if isinstance(value, type | ModuleType | nn.Module | Optimizer | LRScheduler):
        return []
    parts = list(getattr(value, "__dict__", {}).items())
    if isinstance(value, FunctionType) and value.__closure__ is not None:
        for name, cell in zip(value.__code__.co_freevars, value.__closure__, strict=True):
            try:
                parts.append((name, cell.cell_contents))
            except ValueError:  # not filled yet
                continue
    if isinstance(value, MethodType):
        parts += [("__self__", value.__self__), ("__func__", value.__func__)]
    if isinstance(value, functools.partial):
        parts += [("func", value.func), ("args", value.args), ("keywords", value.keywords)]
    return parts


def own(state: Mapping[Any, Any]) -> Iterator[Leaf]:
    """Yield the tensors in the state of one parameter that are the optimizer's, not the method's."""
    for key, value in state.items():
        if not str(key).startswith(PREFIX):
            yield from leaves(value, str(key))


def unmovable(tensor: Tensor, inside: bool, shape: torch.Size) -> str | None:
    """Return why a tensor in the state of a parameter of this `shape` cannot move with connections, or None."""
    if tensor.numel() <= 1 and type(tensor) in PLAIN:
        return None
    if type(tensor) not in PLAIN:
        return f"is of type {type(tensor).__name__}, whose entries cannot move one by one"
    if tensor.shape != shape:
        return f"has shape {tuple(tensor.shape)} for a parameter of {tuple(shape)}"
    return "is inside an object that regrow does not know" if inside else None


def companions(optimizer: Optimizer, weight: SparseWeight, *, gradient: bool = True) -> dict[str, Tensor]:
    """Return what moves with a weight's connections: its gradient, and optimizer state of the parameter's shape,
    by key.

    Raises:
        RegrowRuntimeError: state of another shape or kind, naming the key.
    """
    parameter = weight.parameter
    found = {"grad": parameter.grad} if gradient and parameter.grad is not None else {}
    addresses = {tensor.data_ptr() for tensor in (parameter, *found.values())}  # nothing moves twice
    for key, tensor, inside in own(optimizer.state.get(parameter, {})):
        reason = unmovable(tensor, inside, parameter.shape)
        if reason is not None:
            another = type(tensor) in PLAIN and not inside
            raise RegrowRuntimeError(
                f"optimizer state `{key}` of `{weight.name}` {reason}"
                + (
                    ": it belongs to another number of connections or to another storage.\n"
                    "Load the model first, then the optimizer's state that was saved with it."
                    if another
                    else ".\nUse an optimizer whose state is plain tensors."
                )
            )
        if tensor.numel() > 1 and tensor.data_ptr() not in addresses:
            addresses.add(tensor.data_ptr())
            found[key] = tensor
    return found


def kept_elsewhere(optimizer: Optimizer, shapes: Iterable[tuple[int, ...]]) -> str | None:
    """Return the name of a tensor of one of these `shapes` that an optimizer keeps outside of its parameters'
    state, or None.

    Slow weights in an attribute, in a closure that took the place of ``step``, in a parameter group.
    """
    wanted = {tuple(shape) for shape in shapes}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    known = {id(tensor) for p in parameters for tensor in (p, p.grad) if tensor is not None}
    apart = {"state", "param_groups", "defaults", *hook_attributes(optimizer)}
    places = {name: value for name, value in vars(optimizer).items() if name not in apart}
    places["state"] = {key: value for key, value in optimizer.state.items() if id(key) not in known}
    places["param_groups"] = [
        {key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups
    ]
    for name, value in places.items():
        for key, tensor, _ in leaves(value, name):
            if tensor.numel() > 1 and tuple(tensor.shape) in wanted and id(tensor) not in known:
                return key
    return None


def refuse_kept_elsewhere(optimizer: Optimizer, shapes: Iterable[tuple[int, ...]], name: str) -> None:
    """Refuse an optimizer, called `name`, that keeps tensors of these `shapes` outside of its parameters' state.

    Raises:
        RegrowValueError: naming the place.
    """
    place = kept_elsewhere(optimizer, shapes)
    if place is not None:
        raise RegrowValueError(
            f"`optimizer`: {name} keeps a tensor of a sparse weight's shape in `{place}`, where it does not move with "
            "the connections.\nUse an optimizer that keeps such tensors in optimizer.state[parameter]."
        )
