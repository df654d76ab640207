"""The kernels: a library of operators that is loaded where it could be built.

`torch.ops.regrow_native` holds its operators once `load` has found it. Everything works without it, on the reference.
"""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

DTYPES = frozenset({torch.float32, torch.float64, torch.bfloat16})
"""Those that have kernels; bfloat16 accumulates in float32."""


@cache
def load() -> str | None:
    """Load the kernels; None, or why there are none."""
    found = sorted(Path(__file__).parent.parent.glob("_kernels*.so"))
    if not found:
        return "they were not built (install torch and a C++ compiler, then regrow with --no-build-isolation)"
    try:
        torch.ops.load_library(found[0])
    except (OSError, RuntimeError) as error:
        return f"{found[0].name} does not load with torch {torch.__version__}: {error}"
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


@cache
def warn_once() -> None:
    """Say that the kernels are missing."""
    warnings.warn(
        f"regrow works without its kernels, several times slower: {load()}", RuntimeWarning, stacklevel=3
    )


def serves(values: Tensor) -> bool:
    """Whether there are kernels for a weight with these values; says once where they are missing."""
    if not values.is_cpu or values.dtype not in DTYPES:
        return False
    if not available():
        warn_once()
        return False
    return True
