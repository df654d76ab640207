"""What the kernels run on here: instruction sets, the reference, numbers of threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from regrow.ops import native


@contextmanager
def using(implementation: str) -> Iterator[None]:
    """Run on an instruction set, or on the reference."""
    if implementation == "reference":
        with native.reference_only():
            yield
        return
    before = native.isa()
    torch.ops.regrow_native.set_isa(implementation)
    try:
        yield
    finally:
        torch.ops.regrow_native.set_isa(before)


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Let torch use so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _isas() -> list[str]:
    found = []
    for name in ("avx512", "avx2", "baseline") if native.available() else ():
        try:
            with using(name):
                found.append(name)
        except RuntimeError:
            continue
    return found


ISAS = _isas()
"""The instruction sets that this machine runs; none where the kernels were not built."""
