"""Pickles of plain values and numpy arrays, read so that a file can run nothing."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from regrow.errors import RegrowValueError


def _new_array(kind: type, shape: tuple[int, ...], dtype: object) -> np.ndarray[Any, Any]:
    """What numpy's pickles begin with: an empty array whose state comes next."""
    if kind is not np.ndarray:
        raise pickle.UnpicklingError(f"an array of type {kind!r}")
    return np.ndarray.__new__(np.ndarray, shape, np.dtype("u1"))


def _dtype(name: str, align: object = False, copy: object = True) -> np.dtype[Any]:
    """A type of numbers; numpy warns of the 0 and 1 that old pickles have for `align` and `copy`."""
    if np.dtype(name).hasobject:
        raise pickle.UnpicklingError("an array of objects")
    return np.dtype(name)


def _latin(text: str, encoding: str = "latin1") -> bytes:
    """Bytes as Python 3 writes them in an old protocol."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the encoding {encoding!r}")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _new_array,
    ("numpy._core.multiarray", "_reconstruct"): _new_array,  # its name since numpy 2
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _latin,
}


class _Restricted(pickle.Unpickler):
    """An unpickler that knows arrays and nothing else."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, allowed are numpy arrays")
        return _ALLOWED[module, name]


def read_pickle(path: Path, remedy: str) -> Any:
    """What the pickle at `path` holds; text written by Python 2 is text.

    Raises:
        RegrowValueError: for a file that cannot be read, is cut short, damaged or has bytes to spare, or asks
            for anything but plain values and arrays, which is never run.
    """
    try:
        with path.open("rb") as stream:
            content = _Restricted(stream, encoding="latin1").load()
            spare = len(stream.read())
    except OSError as error:
        raise RegrowValueError(f"cannot read {path}: {error.strerror}\n{remedy}") from error
    except EOFError as error:
        raise RegrowValueError(f"{path} is cut short: its pickle has no end\n{remedy}") from error
    except Exception as error:  # a damaged pickle raises almost anything
        raise RegrowValueError(f"{path} is no pickle of arrays: {error}\n{remedy}") from error
    if spare:
        raise RegrowValueError(f"{path} has {spare:,} bytes to spare after its pickle\n{remedy}")
    return content
