"""safetensors files with a checksum: the same content gives the same bytes, and any later change of it is found."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from regrow.errors import RegrowValueError

AGAIN = "Copy or fetch it again, or save the model again."


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], text: str) -> None:
    """Write `tensors` and `metadata`, with a checksum of the tensors and of the entry `text` of the metadata."""
    from safetensors.torch import save_file

    own = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    save_file(own, path, metadata={**metadata, "checksum": checksum(own, metadata[text])})
    _sort_metadata(path)


def read(file: str | os.PathLike[str], remedy: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read metadata and tensors of any safetensors file; the tensors stay in the file until they are used.

    Raises:
        RegrowValueError: what is no such file, with the `remedy`.
    """
    from safetensors import SafetensorError, safe_open

    try:
        if os.path.exists(file) and not os.path.isfile(file):
            raise OSError("it is not an ordinary file")
        with safe_open(file, framework="pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  (not a dictionary)
            return opened.metadata() or {}, tensors
    except (SafetensorError, OSError, ValueError) as error:
        raise RegrowValueError(f"`file` {file} cannot be read: {error}\n{remedy}") from error


def require_unchanged(
    file: object, metadata: Mapping[str, str], tensors: Mapping[str, Tensor], keys: Collection[str], text: str
) -> None:
    """Refuse what was changed after `write` had made it; a file of before there were checksums has none.

    Args:
        file: where it is from, for messages.
        metadata: of the file.
        tensors: of the file.
        keys: what the metadata may hold, beside the checksum and torch's mark.
        text: the entry of the metadata that the checksum is of.

    Raises:
        RegrowValueError: it was changed.
    """
    if unknown := sorted(metadata.keys() - {*keys, "checksum", "format"}):
        raise RegrowValueError(f"`file` {file} has unknown metadata {unknown}: it is damaged\n{AGAIN}")
    found, noted = checksum(tensors, metadata.get(text, "")), metadata.get("checksum")
    if noted is not None and noted != found:
        raise RegrowValueError(
            f"`file` {file} was changed after it was written: its checksum is {found}, and {noted} is noted in it"
            f"\n{AGAIN}"
        )


def checksum(tensors: Mapping[str, Tensor], text: str) -> str:
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
