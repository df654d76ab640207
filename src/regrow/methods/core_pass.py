"""`CorePass`: a forward pass of a part of a network alone, with norm statistics of its own."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from regrow._torch import BatchNorm, not_compiled_alone
from regrow.weights import SparseWeight

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
Statistics = dict[str, list[Tensor | None]]
"""By a batch norm's name, what its buffers `STATISTICS` are for the core."""


class Owner(Protocol):
    """What decides when the core runs alone."""

    model: nn.Module
    weights: list[SparseWeight]

    def runs_core(self) -> bool:
        """Return whether the call of the model that begins now is one of the core."""

    def core_of(self, weight: SparseWeight) -> Tensor:
        """Return the core's mask of a weight, boolean, of its shape."""

    @property
    def statistics(self) -> Statistics:
        """The core's statistics; none where it shares the network's."""


class CorePass:
    """Hooks of a model that put the core in the weights' place for the time of a call, and nothing afterwards.

    What stands there is ``where(mask, weight, 0)``: the parameters are not written to, and autograd gives them their
    gradients, zero outside of the core. A copy of the model, or one that was pickled, has a pass that does nothing.

    Args:
        owner: whose core it is; kept weakly.
    """

    def __init__(self, owner: Owner | None = None) -> None:
        self._owner: Callable[[], Owner | None] = weakref.ref(owner) if owner is not None else _nobody
        self._weights: list[tuple[nn.Module, str, nn.Parameter]] = []
        self._buffers: list[tuple[nn.Module, str, Tensor | None]] = []
        self.ran = False
        """Whether the core has run in training since somebody set this to False."""

    def __deepcopy__(self, memo: dict[int, Any]) -> CorePass:
        return CorePass()

    def __reduce__(self) -> Any:
        return CorePass, ()

    def attach(self, model: nn.Module) -> list[Any]:
        """Put the hooks on `model`. Returns handles."""
        return [
            model.register_forward_pre_hook(self.enter),
            model.register_forward_hook(self.leave, always_call=True),
        ]

    @not_compiled_alone
    def enter(self, module: nn.Module, args: Any) -> None:
        """Forward pre-hook: put the core there."""
        owner = self._owner()
        if owner is None or module is not owner.model or self._weights or not owner.runs_core():
            return
        masked = {
            id(weight.parameter): torch.where(
                owner.core_of(weight), weight.parameter, _zero(weight.parameter)
            )
            for weight in owner.weights
        }
        for holder in module.modules():
            for name, parameter in list(holder._parameters.items()):
                if isinstance(parameter, nn.Parameter) and id(parameter) in masked:
                    self._weights.append((holder, name, parameter))
                    holder._parameters[name] = masked[id(parameter)]  # type: ignore[assignment]
        for name, kept in owner.statistics.items():
            norm = module.get_submodule(name)
            for key, own in zip(STATISTICS, kept, strict=True):
                self._buffers.append((norm, key, norm._buffers[key]))
                norm._buffers[key] = own
        self.ran = self.ran or module.training

    @not_compiled_alone
    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """Forward hook: put back what was there."""
        owner = self._owner()
        if owner is None or module is not owner.model:
            return
        for holder, name, parameter in self._weights:
            holder._parameters[name] = parameter
        for norm, key, buffer in self._buffers:
            norm._buffers[key] = buffer
        self._weights, self._buffers = [], []


def statistics_of(model: nn.Module) -> Statistics:
    """Copy the running statistics of all batch norms of `model`, by name."""
    return {
        name: [None if (own := module._buffers[key]) is None else own.clone() for key in STATISTICS]
        for name, module in model.named_modules()
        if isinstance(module, BatchNorm) and module.track_running_stats
    }


def give_statistics(model: nn.Module, statistics: Mapping[str, list[Tensor | None]]) -> None:
    """Write `statistics` into the batch norms of `model`."""
    for name, kept in statistics.items():
        for key, own in zip(STATISTICS, kept, strict=True):
            buffer = model.get_submodule(name)._buffers[key]
            if buffer is not None and own is not None:
                buffer.copy_(own)


def _zero(like: Tensor) -> Tensor:
    return torch.zeros((), dtype=like.dtype, device=like.device)


def _nobody() -> None:
    return None
