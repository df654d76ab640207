"""What must hold where several processes train one model together."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from regrow.errors import RegrowRuntimeError
from regrow.methods.saying import warn
from regrow.weights import SparseWeight, views


def check_agreement(settings: dict[str, Any], weights: list[SparseWeight], group: Any) -> None:
    """Refuse processes that hold different topologies, or drive them by different methods.

    Args:
        settings: plain numbers and words that say what this process does.
        weights: the sparse weights of this process.
        group: the process group.

    Raises:
        RegrowRuntimeError: on every process alike.
    """
    digest = int.from_bytes(hashlib.sha256(repr(settings).encode()).digest()[:7], "big")
    own = torch.tensor([digest, *(w.fingerprint() for w in weights)], device=weights[0].parameter.device)
    every = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(every, own, group=group)
    if any(not torch.equal(own[1:], other[1:]) for other in every):
        raise RegrowRuntimeError(
            "the processes hold different topologies.\nCall regrow.sparsify with the same seed in each."
        )
    if any(own[0] != other[0] for other in every):
        raise RegrowRuntimeError(
            f"the processes drive the model by different methods, this one by {settings}.\n"
            "Give each the same arguments (a total_steps that comes from a loader may differ)."
        )


def warn_of_broadcasts(model: nn.Module) -> None:
    """Warn where DistributedDataParallel broadcasts the topology before every forward pass."""
    if not isinstance(model, nn.parallel.DistributedDataParallel):
        return
    topology = {
        f"{name}.{buffer}" if name else buffer
        for name, module in model.module.named_modules()
        for weight in views(module)
        for buffer in weight.topology_buffers
    }
    if topology - set(model.parameters_to_ignore):
        warn(
            "DistributedDataParallel broadcasts the topology before every forward pass, which is slow.\n"
            "Call regrow.sparsify on the very module that DistributedDataParallel wraps."
        )
