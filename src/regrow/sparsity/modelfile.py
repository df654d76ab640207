"""The file of a sparse model: safetensors, with its topology's shapes and a checksum in the metadata.

The same tensors give the same bytes, and whatever was changed in a file afterwards is found before it is used.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regrow._formats import MODEL_FILE
from regrow.errors import RegrowValueError
from regrow.weights.storages import STORAGES

FORMAT = str(MODEL_FILE)
_KEYS = {"regrow", "layers", "checksum", "format"}
"""Of the metadata: the format's number, what is sparse, the checksum (files of before have none), and torch's mark."""
_AGAIN = "Copy or fetch it again, or save the model again."


def write(path: Path, tensors: Mapping[str, Tensor], layers: Mapping[str, Mapping[str, Any]]) -> None:
    """Write `tensors` to a safetensors file, with `layers` and a checksum of all of it."""
    from safetensors.torch import save_file

    own = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    text = json.dumps(layers)
    save_file(own, path, metadata={"regrow": FORMAT, "layers": text, "checksum": _checksum(own, text)})
    _sort_metadata(path)


def read(file: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read metadata and tensors of a safetensors file, regrow's or another's.

    Raises:
        RegrowValueError: what is no such file, or one that was changed after `write` had made it.
    """
    from safetensors import SafetensorError, safe_open

    if not isinstance(file, str | os.PathLike):
        raise RegrowValueError(
            f"`file` must be a path or a state dict, got {type(file).__name__}\n"
            "Give a file that regrow.save has written, or torch.load(file)."
        )
    try:
        if os.path.exists(file) and not os.path.isfile(file):
            raise OSError("it is not an ordinary file")
        with safe_open(file, framework="pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  (not a dictionary)
            metadata: dict[str, str] = opened.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise RegrowValueError(
            f"`file` {file} cannot be read: {error}\n"
            "It must be a safetensors file. What torch.save has written: regrow.load(torch.load(file), into=model)."
        ) from error
    if "regrow" in metadata:
        if unknown := sorted(metadata.keys() - _KEYS):
            raise RegrowValueError(f"`file` {file} has unknown metadata {unknown}: it is damaged\n{_AGAIN}")
        found, noted = _checksum(tensors, metadata.get("layers", "")), metadata.get("checksum")
        if noted is not None and noted != found:
            raise RegrowValueError(
                f"`file` {file} was changed after it was written: its checksum is {found}, and {noted} is noted in it"
                f"\n{_AGAIN}"
            )
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
            f"`file` {file} has damaged metadata: `layers` is not JSON\n{_AGAIN}"
        ) from error
    if not isinstance(layers, dict) or not all(isinstance(layer, dict) for layer in layers.values()):
        raise RegrowValueError(
            f"`file` {file} has damaged metadata: `layers` must be a dictionary of dictionaries\n{_AGAIN}"
        )
    for name, layer in layers.items():
        shape, storage = layer.get("shape"), layer.get("storage")
        if not isinstance(shape, list) or not all(type(side) is int for side in shape):
            raise RegrowValueError(
                f"`file` {file} has damaged metadata: the shape of `{name}` must be whole numbers\n{_AGAIN}"
            )
        if storage not in STORAGES:
            raise RegrowValueError(
                f"`file` {file}: the storage of `{name}` must be one of {', '.join(STORAGES)}, got "
                f"{str(storage)[:40]!r}\nIt is damaged, or of a newer regrow. {_AGAIN}"
            )
    return layers


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    """Compute the checksum of names, types, shapes and values, and of what is noted beside them."""
    found = zlib.crc32(text.encode())
    for key, tensor in sorted(tensors.items()):
        found = zlib.crc32(f"\0{key}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode(), found)
        found = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, found)
    return f"{found:08x}"


def _sort_metadata(path: Path) -> None:
    """Bring the metadata into one order: safetensors writes them in another each time, and files differ for nothing."""
    with open(path, "r+b") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:  # else it stays as it was, which is as good a file
            stream.seek(8)
            stream.write(text.ljust(length))
