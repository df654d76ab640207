"""The file of a sparse model: safetensors, with its topology's shapes and a checksum in the metadata."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from regrow._formats import MODEL_FILE
from regrow.errors import RegrowValueError
from regrow.sparsity import sealed
from regrow.sparsity.sealed import AGAIN
from regrow.weights.patterns import pattern_of
from regrow.weights.storages import STORAGES

FORMAT = str(MODEL_FILE)


def write(path: Path, tensors: Mapping[str, Tensor], layers: Mapping[str, Mapping[str, Any]]) -> None:
    """Write `tensors` to a safetensors file, with `layers` and a checksum of all of it."""
    sealed.write(path, tensors, {"regrow": FORMAT, "layers": json.dumps(layers)}, "layers")


def read(file: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read metadata and tensors of a safetensors file, regrow's or another's.

    Raises:
        RegrowValueError: what is no such file, or one that was changed after `write` had made it.
    """
    if not isinstance(file, str | os.PathLike):
        raise RegrowValueError(
            f"`file` must be a path or a state dict, got {type(file).__name__}\n"
            "Give a file that regrow.save has written, or torch.load(file)."
        )
    metadata, tensors = sealed.read(
        file,
        "It must be a safetensors file. What torch.save has written: regrow.load(torch.load(file), into=model).",
    )
    if "regrow_deployed" in metadata:
        raise RegrowValueError(
            f"`file` {file} holds a deployed network, which cannot be trained on\n"
            "Load it with regrow.Deployed.load(file)."
        )
    if "regrow" in metadata:
        sealed.require_unchanged(file, metadata, tensors, ("regrow", "layers"), "layers")
    return metadata, tensors


def layers_in(file: object, text: str | None) -> dict[str, dict[str, Any]]:
    """Read what the metadata say of each sparse weight: its ``shape`` and ``storage``.

    Raises:
        RegrowValueError: metadata that say something else.
    """
    try:
        layers = json.loads(text or "")
    except (ValueError, RecursionError) as error:
        raise RegrowValueError(
            f"`file` {file} has damaged metadata: `layers` is not JSON\n{AGAIN}"
        ) from error
    if not isinstance(layers, dict) or not all(isinstance(layer, dict) for layer in layers.values()):
        raise RegrowValueError(
            f"`file` {file} has damaged metadata: `layers` must be a dictionary of dictionaries\n{AGAIN}"
        )
    for name, layer in layers.items():
        shape, storage = layer.get("shape"), layer.get("storage")
        if not isinstance(shape, list) or not all(type(side) is int for side in shape):
            raise RegrowValueError(
                f"`file` {file} has damaged metadata: the shape of `{name}` must be whole numbers\n{AGAIN}"
            )
        gates = layer.get("gates", 1)
        if type(gates) is not int or gates < 1 or (shape and shape[0] % gates):
            raise RegrowValueError(
                f"`file` {file} has damaged metadata: the gates of `{name}` must share its rows evenly\n{AGAIN}"
            )
        pattern = layer.get("pattern")
        if pattern is not None and not (
            isinstance(pattern, str)
            and len(shape) > 1
            and (kept_to := pattern_of(pattern))
            and not kept_to.why_not(tuple(shape))
        ):
            raise RegrowValueError(
                f"`file` {file} has damaged metadata: `{name}` cannot have the pattern {str(pattern)[:40]!r}\n{AGAIN}"
            )
        if storage not in STORAGES:
            raise RegrowValueError(
                f"`file` {file}: the storage of `{name}` must be one of {', '.join(STORAGES)}, got "
                f"{str(storage)[:40]!r}\nIt is damaged, or of a newer regrow. {AGAIN}"
            )
    return layers
