"""The dense side: eager, and compiled where that works here."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import nn

from regrow.bench.rows import Settings

Way = Callable[[], object]


def dense_ways(make: Callable[[nn.Module], Way], module: nn.Module, settings: Settings) -> dict[str, Way]:
    """The ways ``eager`` and ``compiled`` to do with `module` what `make` makes of it.

    Where torch.compile fails (no C++ compiler), it is left out and the reason goes to standard error.
    """
    ways = {"eager": make(module)}
    if settings.compiled:
        torch.compiler.reset()  # else shapes beyond the eighth run eagerly, without a word
        compiled: nn.Module = torch.compile(module, dynamic=False)  # type: ignore[assignment]
        way = make(compiled)
        try:
            way()
        except Exception as error:
            print(
                f"torch.compile is left out: {type(error).__name__}: {str(error).splitlines()[0]}",
                file=sys.stderr,
            )
        else:
            ways["compiled"] = way
    return ways
