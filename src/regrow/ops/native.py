"""The kernels: a library of operators, loaded at first need.

`torch.ops.regrow_native` holds its operators once `load` has loaded it. Everything works without it, on the reference;
`regrow.ops.backends` decides which of them runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from regrow.errors import warn
from regrow.ops.building import NoKernels, provide

_off: list[NoKernels] = []
"""One entry for each `reference_only` that is entered."""


@cache
def _provided() -> Path | NoKernels:
    try:
        return provide(_load)
    except NoKernels as why:
        return why


def missing() -> NoKernels | None:
    """Load the kernels, built first if they are not there (`regrow.ops.building`); None, or why none may run."""
    if _off:
        return _off[-1]
    found = _provided()
    return found if isinstance(found, NoKernels) else None


@contextmanager
def reference_only() -> Iterator[None]:
    """Turn all kernels off: everything that is called inside, in any thread, runs on the reference.

    What was called before keeps its kernels for the backward pass.
    """
    _off.append(NoKernels("the reference alone was asked for", "Leave `reference_only()`."))
    try:
        yield
    finally:
        _off.pop()


def library() -> Path | None:
    """Return the file that the kernels are in, turned off or not."""
    found = _provided()
    return found if isinstance(found, Path) else None


def load() -> str | None:
    """Load the kernels; None, or why there are none, in one line."""
    why = missing()
    return why.reason if why else None


def build() -> Path:
    """Load the kernels, built first where they are not there or where that has failed before.

    Returns:
        The library.

    Raises:
        NoKernels: there are none, and why.
    """
    _provided.cache_clear()
    return provide(_load, ask=True)


def _load(library: Path) -> str | None:
    try:
        torch.ops.load_library(library)
    except (OSError, RuntimeError) as error:
        return f"{library.name} does not load with torch {torch.__version__}: {error}"
    return None


def available() -> bool:
    """Return whether there are kernels on this machine, and they are not turned off."""
    return load() is None


def isa() -> str | None:
    """Return the instruction set that the kernels use: avx512, avx2 or baseline. `REGROW_ISA` forces a lower one."""
    return str(torch.ops.regrow_native.isa()) if available() else None


def empty_cache() -> None:
    """Give the memory that kernels keep for their next outputs back to the system, as `torch.cuda.empty_cache` does.

    Outputs of a megabyte or more come from memory that is kept when they are dropped. What is not used again for a
    thousand of them, or exceeds by half what was in use at once, goes back by itself.
    """
    if library() is not None:
        torch.ops.regrow_native.empty_cache()


def warn_once() -> None:
    """Warn that the kernels are missing, unless that has been said in this process or the reference was asked for."""
    if not _said and not _off:
        _said.append(f"regrow works without its kernels, several times slower: {missing()}")
        warn(_said[0], RuntimeWarning)


_said: list[str] = []
