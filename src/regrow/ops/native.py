"""The kernels: a library of operators, loaded at first need.

`torch.ops.regrow_native` holds its operators once `load` has loaded it. Everything works without it, on the reference.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from regrow.errors import warn
from regrow.ops.building import NoKernels, provide

DTYPES = frozenset({torch.float32, torch.float64, torch.bfloat16})
"""Those that have kernels; bfloat16 accumulates in float32."""


@cache
def _provided() -> Path | NoKernels:
    try:
        return provide(_load)
    except NoKernels as why:
        return why


def missing() -> NoKernels | None:
    """Load the kernels, built first where they are not there (`regrow.ops.building`); None, or why there are none."""
    found = _provided()
    return found if isinstance(found, NoKernels) else None


def library() -> Path | None:
    """The file that the kernels are in."""
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
    """Whether there are kernels on this machine."""
    return load() is None


def isa() -> str | None:
    """The instruction set that the kernels use: avx512, avx2 or baseline. `REGROW_ISA` forces a lower one."""
    return str(torch.ops.regrow_native.isa()) if available() else None


def empty_cache() -> None:
    """Give the memory that kernels keep for their next outputs back to the system, as `torch.cuda.empty_cache` does.

    Outputs of a megabyte or more come from memory that is kept when they are dropped. What is not used again for a
    thousand of them, or exceeds by half what was in use at once, goes back by itself.
    """
    if available():
        torch.ops.regrow_native.empty_cache()


def reference(weights: Iterable[Tensor]) -> str | None:
    """What is to be said where some of `weights` would have kernels, and there are none here; else None."""
    if not any(weight.device.type in ("cpu", "meta") and weight.dtype in DTYPES for weight in weights):
        return None
    why = missing()
    return (
        f"the reference runs, several times slower than the kernels: {why.reason}\n{why.remedy}"
        if why
        else None
    )


def warn_once() -> None:
    """Say that the kernels are missing, if that has not been said in this process."""
    if not _said:
        _said.append(f"regrow works without its kernels, several times slower: {missing()}")
        warn(_said[0], RuntimeWarning)


_said: list[str] = []


def serves(values: Tensor) -> bool:
    """Whether there are kernels for a weight with these values; says once where they are missing."""
    if not values.is_cpu or values.dtype not in DTYPES:
        return False
    if not available():
        warn_once()
        return False
    return True
