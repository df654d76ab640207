"""The file of a deployed network: safetensors, with its program in the metadata. It needs no class of the user's, and
nothing of it is executed when it is read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regrow._files import write_atomically
from regrow._formats import DEPLOYED, require_format
from regrow.arguments import require_path
from regrow.errors import RegrowValueError
from regrow.inference import gaps, program
from regrow.inference.graph import Connections, Graph
from regrow.inference.reference import interpret
from regrow.sparsity import sealed

FORMAT = "regrow_deployed"
LARGEST = 2**40
"""Numbers in a value, beyond which a program is nobody's."""
_KEYS = (FORMAT, "program")
_PARTS = ("crow", "gaps", "values")
_VALUES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
_REMEDY = (
    "It must be a file that `deployed.save(file)` has written, all of it: if it was cut short, copy it again."
)


def write(file: str | os.PathLike[str], graph: Graph) -> Path:
    """Write `graph` to one file, whole or not at all.

    Returns:
        The path.

    Raises:
        RegrowRuntimeError: the file cannot be written.
    """
    file = require_path("file", file)
    text, tensors = pack(graph)
    metadata = {FORMAT: str(DEPLOYED), "program": text}
    return write_atomically(file, lambda path: sealed.write(path, tensors, metadata, "program"))


def pack(graph: Graph) -> tuple[str, dict[str, Tensor]]:
    """Return what a file of `graph` holds: its program, and tensors by name."""
    found = dict(graph.constants)
    for name, weight in graph.weights.items():
        if isinstance(weight, Tensor):
            found[name] = weight
            continue
        found[f"{name}_crow"] = weight.crow
        found[f"{name}_gaps"] = gaps.encode(weight.crow, weight.col)
        found[f"{name}_values"] = weight.values
        if weight.scale is not None:
            found[f"{name}_scale"] = weight.scale
    return program.to_text(graph), found


def read(file: str | os.PathLike[str]) -> Graph:
    """Read the graph in a file. Dense tensors and values stay in it until they are used.

    Raises:
        RegrowValueError: what `write` has not written, what was changed since, or is of a newer format.
    """
    file = require_path("file", file)
    metadata, tensors = sealed.read(file, _REMEDY)
    if FORMAT not in metadata:
        remedy = (
            "Load a file of regrow.save with regrow.load(file, into=model)."
            if "regrow" in metadata
            else _REMEDY
        )
        raise RegrowValueError(f"`file` {file} does not hold a deployed network\n{remedy}")
    number = metadata[FORMAT]
    given: dict[str, object] = {FORMAT: int(number) if number.isdecimal() and len(number) < 9 else number}
    require_format(f"`file` {file}", given, FORMAT, DEPLOYED)
    try:
        if "program" not in metadata or "checksum" not in metadata:
            raise program.Damaged("it has no program, or no checksum")
        sealed.require_unchanged(file, metadata, tensors, _KEYS, "program")
        graph = unpack(metadata["program"], tensors)
        _try(graph)
    except program.Damaged as error:
        raise RegrowValueError(f"`file` {file} is damaged: {error}\n{sealed.AGAIN}") from error
    return graph


def unpack(text: str, tensors: Mapping[str, Tensor]) -> Graph:
    """Return the graph that `pack` has taken apart.

    Raises:
        Damaged: it has not.
    """
    graph, weights = program.from_text(text)
    _fill(graph, weights, tensors)
    return graph


def _fill(graph: Graph, weights: Mapping[str, tuple[int, ...] | None], tensors: Mapping[str, Tensor]) -> None:
    """Put the tensors of a file into the graph that its program names; all of them, and no others."""
    left = dict(tensors)

    def take(name: str) -> Tensor:
        if name not in left:
            raise program.Damaged(f"the tensor `{name[:80]}` is missing")
        return left.pop(name)

    for name in graph.constants:
        graph.constants[name] = _known(name, take(name))
    for name, shape in weights.items():
        if shape is None:
            graph.weights[name] = _known(name, take(name))
            continue
        crow, deltas, values = (take(f"{name}_{part}") for part in _PARTS)
        scale = take(f"{name}_scale") if graph.precision == "int8" else None
        if wrong := _wrong(shape, crow, deltas, values, scale, _VALUES[graph.precision]):
            raise program.Damaged(f"the weight `{name[:80]}`: {wrong}")
        columns = torch.Size(shape[1:]).numel()
        try:
            col = gaps.decode(crow, deltas, columns)
        except ValueError as error:
            raise program.Damaged(f"the weight `{name[:80]}`: {error}") from error
        graph.weights[name] = Connections(shape, crow, col, values, scale)
    if left:
        raise program.Damaged(f"its program does not know the tensor `{min(left)[:80]}`")


def _try(graph: Graph) -> None:
    """Refuse a graph whose operations do not fit together: their shapes are computed, and none of their values."""

    def see(name: str, value: Any) -> None:
        for each in value if isinstance(value, list | tuple) else [value]:
            if isinstance(each, Tensor) and each.numel() > LARGEST:
                raise program.Damaged(f"`{name[:80]}` is of {each.numel():,} numbers")

    inputs = [
        torch.empty(shape, dtype=dtype, device="meta")
        for shape, dtype in zip(graph.shapes, graph.dtypes, strict=True)
    ]
    try:
        found = interpret(graph, inputs, watch=see)
    except program.Damaged:
        raise
    except Exception as error:  # whatever torch raises about arguments that are none of its operators'
        said = str(error).splitlines() or [type(error).__name__]
        raise program.Damaged(f"its operations do not fit together: {said[0][:200]}") from error
    if not all(isinstance(each, Tensor) for each in found):
        raise program.Damaged("an output is not a tensor")


def _known(name: str, tensor: Tensor) -> Tensor:
    if tensor.dtype not in program.DTYPES.values():
        raise program.Damaged(f"the tensor `{name[:80]}` is of {tensor.dtype}")
    return tensor


def _wrong(
    shape: tuple[int, ...],
    crow: Tensor,
    deltas: Tensor,
    values: Tensor,
    scale: Tensor | None,
    dtype: torch.dtype,
) -> str | None:
    """Say what is wrong with the tensors of a weight's connections, but for the columns; None if nothing is."""
    if len(shape) < 2 or torch.Size(shape[1:]).numel() >= 2**31:
        return f"connections cannot have the shape {shape}"
    if crow.dtype != torch.int32 or crow.shape != (shape[0] + 1,):
        return f"its row pointers must be int32 [{shape[0] + 1}]"
    if int(crow[0]) != 0 or bool((crow[1:] < crow[:-1]).any()) or int(crow[-1]) != len(values):
        return "its row pointers must ascend from 0 to the number of connections"
    if deltas.dtype != torch.uint8 or deltas.dim() != 1:
        return "its columns must be bytes"
    if values.dtype != dtype or values.dim() != 1:
        return f"its values must be {dtype} [n]"
    if scale is not None and (scale.dtype != torch.float32 or scale.shape != (shape[0],)):
        return f"its scales must be float32 [{shape[0]}]"
    return None
