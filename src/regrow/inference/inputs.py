"""What a deployed network is called with: the same arguments as in its example, but for the size of the batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from regrow.arguments import said
from regrow.errors import RegrowValueError
from regrow.inference.graph import Graph
from regrow.inference.structure import Structure, flatten

CALL = "args"
"""What messages call the positional arguments of a call."""


def take(graph: Graph, args: Sequence[Any], kwargs: Mapping[str, Any], name: str = CALL) -> list[Tensor]:
    """Return the tensors in the arguments of a call, without gradients, in the order of the graph's inputs.

    Args:
        graph: that is called.
        args: positional arguments.
        kwargs: keyword arguments, in any order.
        name: what messages call `args`, or the batch that they hold.

    Raises:
        RegrowValueError: other arguments than in the example, or tensors of other types or shapes.
    """
    tensors: list[Tensor] = []
    order = graph.signature["tuple"][1]["dict"]
    sorted_ = {key: kwargs[key] for key in order if key in kwargs}
    try:
        found = flatten((tuple(args), {**sorted_, **kwargs}), tensors)
    except TypeError as error:
        raise RegrowValueError(f"{_subject(name)} with tensors, got {error}") from error
    if found != graph.signature:
        more = len(args) > len(graph.signature["tuple"][0]["tuple"])
        remedy = (
            "A batch of training data is inputs and targets: give the inputs alone."
            if more
            else "Give the arguments that the example had, or deploy the network with another example."
        )
        raise RegrowValueError(
            f"{_subject(name)} as in its example, with {_described(graph.signature)}, got "
            f"{_described(found)}\n{remedy}"
        )
    for number, (tensor, shape, dtype) in enumerate(zip(tensors, graph.shapes, graph.dtypes, strict=True)):
        if not _fits(tensor, shape, dtype, graph.dynamic):
            raise _misfit(list(_places(graph.signature, name))[number], tensor, shape, dtype, graph.dynamic)
    batches = {tensor.shape[0] for tensor in tensors if tensor.dim()} if graph.dynamic else set()
    if len(batches) > 1:
        counts = ", ".join(str(len(tensor)) for tensor in tensors if tensor.dim())
        places = ", ".join(_places(graph.signature, name))
        raise RegrowValueError(f"{places} must have equally many examples, got {counts}")
    return [tensor.detach() for tensor in tensors]


def _fits(tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, dynamic: bool) -> bool:
    """Check whether the graph was made for such a tensor."""
    free = dynamic and len(shape) > 0
    own = tuple(tensor.shape)
    return (
        len(own) == len(shape)
        and own[free:] == shape[free:]
        and (not free or own[0] > 0)
        and tensor.is_cpu
        and tensor.dtype == dtype
        and tensor.layout == torch.strided
    )


def _misfit(
    place: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, dynamic: bool
) -> RegrowValueError:
    """Make the error for a tensor that the graph was not made for."""
    free = dynamic and len(shape) > 0
    if free and tensor.dim() and len(tensor) == 0 and _fits(tensor, (0, *shape[1:]), dtype, False):
        return RegrowValueError(f"{place} must hold at least one example, got shape {tuple(tensor.shape)}")
    wanted = str(("N", *shape[1:]) if free else shape).replace("'", "")
    name = str(dtype).removeprefix("torch.")
    where = "" if tensor.device.type == "cpu" else f" on {tensor.device}"
    if where:
        remedy = "A deployed network runs on the CPU: move it there with .cpu()."
    elif tensor.layout != torch.strided:
        remedy = "A deployed network takes dense tensors: .to_dense()."
    elif tensor.dtype != dtype:
        remedy = f"Convert it: .to(torch.{name})."
    else:
        remedy = "For another shape, deploy the network with an example of that shape."
    return RegrowValueError(
        f"{place} must be {name} of shape {wanted} on the CPU, got {said(tensor)}{where}\n{remedy}"
    )


def _subject(name: str) -> str:
    return "a deployed network is called" if name == CALL else f"`{name}`: a deployed network is called"


def _places(structure: Structure, name: str) -> Iterator[str]:
    """Yield what messages call each tensor of a signature."""
    args, kwargs = structure["tuple"]
    is_batch = name != CALL and len(args["tuple"]) == 1 and not kwargs["dict"]
    yield from _inside(args["tuple"][0] if is_batch else args, name)
    for key, inside in kwargs["dict"].items():
        yield from _inside(inside, key)


def _inside(structure: Structure, name: str) -> Iterator[str]:
    ((kind, content),) = structure.items()
    if kind == "tensor":
        yield f"`{name}`"
    elif kind == "dict":
        for key, inside in content.items():
            yield from _inside(inside, f"{name}[{key!r}]")
    elif kind != "value":
        for place, inside in enumerate(content):
            yield from _inside(inside, f"{name}[{place}]")


def _described(structure: Structure) -> str:
    """Return arguments as a call has them: ``(tensor, mask=tensor)``."""
    args, kwargs = structure["tuple"]
    words = [_word(each) for each in args["tuple"]]
    return f"({', '.join([*words, *(f'{key}={_word(each)}' for key, each in kwargs['dict'].items())])})"


def _word(structure: Structure) -> str:
    ((kind, content),) = structure.items()
    if kind == "tensor":
        return "tensor"
    if kind == "value":
        return said(content)
    if kind == "dict":
        return "{" + ", ".join(f"{key!r}: {_word(each)}" for key, each in content.items()) + "}"
    inside = ", ".join(map(_word, content))
    return f"[{inside}]" if kind == "list" else f"({inside})"
