"""The IDX format of MNIST, read with every check on the way.

A file is, in this order: two zero bytes, one byte for the type (8 is uint8), one for the number of
dimensions, that many big-endian int32 sizes, the values; plain or gzipped.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from regrow.data.packed import read_packed
from regrow.errors import RegrowValueError

_TYPES = {0x08: "uint8", 0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64"}
_REMEDY = "Fetch the file again, or name another folder with `data.folder`."


def read_idx(path: Path, dimensions: int) -> Tensor:
    """Return the uint8 tensor in the IDX file at `path`, which must have as many `dimensions`.

    Raises:
        RegrowValueError: for a file that cannot be read, is cut short, has bytes to spare, or another type
            or shape; the text names the file, what was found, what is allowed and a remedy.
    """
    content = read_packed(path, _REMEDY)
    if len(content) < 4:
        raise _error(path, f"holds {len(content)} bytes", "an IDX header of at least 4")
    if content[:2] != b"\0\0":
        raise _error(
            path, f"begins with bytes {content[:2].hex(' ')}", "an IDX file, which begins with 00 00"
        )
    kind, found = content[2], content[3]
    if kind != 0x08:
        raise _error(
            path, f"holds values of type 0x{kind:02X} ({_TYPES.get(kind, 'unknown')})", "0x08 (uint8)"
        )
    if found != dimensions:
        raise _error(path, f"has {found} dimensions", str(dimensions))
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise _error(
            path, f"is cut short in its header, after {len(content)} bytes", f"{start} bytes of header"
        )
    shape = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big", signed=True) for i in range(dimensions)]
    if min(shape) < 1:
        raise _error(path, f"has shape {shape}", "sizes of at least 1")
    size = math.prod(shape)
    values = len(content) - start
    if values < size:
        raise _error(path, f"is cut short: {values:,} values", f"{size:,}, for its shape {shape}")
    if values > size:
        raise _error(path, f"has {values - size:,} bytes to spare", f"{size:,} values, for its shape {shape}")
    # a copy, since torch wants memory it may write to
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())


def _error(path: Path, found: str, allowed: str) -> RegrowValueError:
    return RegrowValueError(f"{path} {found}, allowed is {allowed}\n{_REMEDY}")
