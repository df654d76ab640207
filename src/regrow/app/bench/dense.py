"""The dense side: eager, channels-last too where it has convolutions, and compiled where that works here."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from regrow.app.bench.rows import Settings

Way = Callable[[], object]
Make = Callable[[nn.Module, torch.memory_format], Way]
"""What is done with a module whose images are in a memory format."""

FORMS = {"eager": torch.contiguous_format, "channels last": torch.channels_last}
"""The memory format of each way that is not compiled."""


def dense_ways(make: Make, module: nn.Module, settings: Settings) -> dict[str, Way]:
    """Return the ways ``eager``, ``channels last`` and ``compiled`` to do with `module` what `make` makes of it.

    Where there is no convolution, the second is left out; where torch.compile fails (no C++ compiler), the last is,
    and the reason goes to standard error.
    """
    form = FORMS["eager"]
    ways = {"eager": make(module, form)}
    if any(isinstance(layer, nn.Conv2d) for layer in module.modules()):
        form = FORMS["channels last"]
        module = in_format(module, form)
        ways["channels last"] = make(module, form)
    if settings.compiled:
        torch.compiler.reset()  # else shapes beyond the eighth run eagerly, without a word
        compiled: nn.Module = torch.compile(module, dynamic=False)  # type: ignore[assignment]
        try:
            way = make(compiled, form)
            way()
        except Exception as error:
            print(
                f"torch.compile is left out: {type(error).__name__}: {str(error).splitlines()[0]}",
                file=sys.stderr,
            )
        else:
            ways["compiled"] = way
    return ways


def in_format(module: nn.Module, form: torch.memory_format) -> nn.Module:
    """Return a copy of `module` with its convolutions in that memory format."""
    formed: nn.Module = copy.deepcopy(module).to(memory_format=form)  # type: ignore[call-overload]
    return formed


def formatted(tensor: Tensor, form: torch.memory_format) -> Tensor:
    """Return `tensor`, in that memory format if it holds images."""
    return tensor.contiguous(memory_format=form) if tensor.dim() == 4 else tensor
