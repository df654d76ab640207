"""Modules of regrow as torch.fx sees them: one call each, like torch's own layers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from regrow._torch import has_global_hooks
from regrow.errors import RegrowRuntimeError


def is_traced(input: Any) -> bool:
    """Return whether torch.fx has a module called; `leaf` is then what it returns."""
    return isinstance(input, fx.Proxy)


def leaf(module: nn.Module, *args: Any) -> Tensor:
    """Return the output of `module` as torch.fx is to see it, a proxy: of one call, as that of torch's own layers."""
    tracer: Any = next(x.tracer for x in args if isinstance(x, fx.Proxy))
    path = tracer.path_of_module(module)
    if not path:
        raise RegrowRuntimeError(
            f"{type(module).__name__} is a single call to torch.fx, which has no graph of its own.\n"
            "Trace the model that it is part of, or nn.Sequential(layer)."
        )
    output: Tensor = tracer.create_proxy("call_module", path, args, {})
    return output


def is_watched(module: nn.Module) -> bool:
    """Return whether a forward hook sees the output of `module`."""
    return bool(module._forward_hooks) or has_global_hooks()
