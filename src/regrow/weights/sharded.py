"""Weights of which each process holds a part (FSDP, DTensor): connections cannot move there, and masks do not reach."""

from __future__ import annotations

from torch import nn

from regrow.errors import RegrowRuntimeError

ONE, TWO = "FullyShardedDataParallel", "FSDPModule"
"""Classes of what FSDP1 and FSDP2 have wrapped; importing them would take a second."""


def is_sharded(model: nn.Module, *kinds: str) -> bool:
    """Return whether some module of `model` is of one of these classes (`ONE`, `TWO`)."""
    return any(c.__name__ in kinds for module in model.modules() for c in type(module).__mro__)


def not_whole(name: str) -> RegrowRuntimeError:
    """Make the error for a weight, or a model, that is not whole in a process."""
    return RegrowRuntimeError(
        f"`{name}` is not whole in this process (FSDP, DTensor): each process must hold all connections "
        "of a sparse weight.\nUse DistributedDataParallel, or keep sparse layers out of the sharding."
    )
