"""What must hold where several processes train one model together: at the start, and again around each update.

All of them make the same calls, whatever they hold: what is gathered first has the same size in each.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from regrow.errors import RegrowRuntimeError
from regrow.weights import SparseWeight


def check_agreement(
    settings: dict[str, Any], weights: Sequence[SparseWeight], device: torch.device, group: Any
) -> None:
    """Refuse processes that hold different topologies, or drive them by different methods.

    Args:
        settings: plain numbers and words that say what this process does.
        weights: the sparse weights of this process.
        device: where the group can gather.
        group: the process group.

    Raises:
        RegrowRuntimeError: on every process alike.
    """
    remedy = "Call regrow.sparsify with the same seed in each."
    others = _gather([_digest(settings), *_known(weights, fresh=True)], device, group)
    _check_topologies(others[:, 1:], weights, device, group, remedy)
    if bool((others[:, 0] != others[0, 0]).any()):
        raise RegrowRuntimeError(
            f"the processes drive the model by different methods, this one by {settings}.\n"
            "Give each the same arguments (a total_steps that comes from a loader may differ)."
        )


def check_step(
    plan: Mapping[str, float], weights: Sequence[SparseWeight], device: torch.device, group: Any
) -> None:
    """Refuse processes that have parted since the start: in their steps, their schedules, or their topologies.

    Args:
        plan: where this process stands and what it is about to do; the same names in each.
        weights: the sparse weights of this process.
        device: where the group can gather.
        group: the process group.

    Raises:
        RegrowRuntimeError: on every process alike, naming the layers and processes that differ.
    """
    others = _gather([*map(_bits, plan.values()), *_known(weights)], device, group)
    mine, theirs = others[:, : len(plan)], others[:, len(plan) :]
    _check_topologies(
        theirs,
        weights,
        device,
        group,
        "Train through DistributedDataParallel, which gives each the same gradients and weights; let each make the "
        "same steps with the same schedule, and load the same checkpoint.",
    )
    if bool((mine != mine[0]).any()):
        each = [
            ", ".join(f"{name} {_number(bits):g}" for name, bits in zip(plan, row, strict=True))
            for row in mine.tolist()
        ]
        raise RegrowRuntimeError(
            "the processes do not update the topology alike: "
            + "; ".join(f"process {rank}: {text}" for rank, text in enumerate(each))
            + ".\nGive each the same schedule, and let each make the same steps."
        )


def _bits(number: float) -> int:
    return int(struct.unpack("q", struct.pack("d", number))[0])


def _number(bits: int) -> float:
    return float(struct.unpack("d", struct.pack("q", bits))[0])


def _check_topologies(
    known: Tensor,
    weights: Sequence[SparseWeight],
    device: torch.device,
    group: Any,
    remedy: str,
) -> None:
    """Compare what `_known` gave in each process [processes, 3]; where it differs, find out in which layers."""
    counts, names, topologies = known.T
    if bool((counts != counts[0]).any()):
        each = ", ".join(f"process {rank} {count}" for rank, count in enumerate(counts.tolist()))
        raise RegrowRuntimeError(
            f"the processes train different sparse layers: their number is, in {each}.\n"
            "Call regrow.sparsify with the same arguments in each, and freeze the same layers."
        )
    if bool((names != names[0]).any()):
        _part(
            [_digest(w.name) for w in weights],
            weights,
            device,
            group,
            "train different sparse layers",
            remedy,
        )
    if bool((topologies != topologies[0]).any()):
        _part(
            [w.fingerprint() for w in weights],
            weights,
            device,
            group,
            "hold different topologies",
            remedy,
        )


def _part(
    numbers: list[int],
    weights: Sequence[SparseWeight],
    device: torch.device,
    group: Any,
    what: str,
    remedy: str,
) -> NoReturn:
    """Say in which layers the processes differ, by a number of each layer."""
    others = _gather(numbers, device, group)
    different = (others != others[0]).tolist()
    each = [
        f"`{weight.name}` in process {', '.join(ranks)}"
        for place, weight in enumerate(weights)
        if (ranks := [str(rank) for rank, row in enumerate(different) if row[place]])
    ]
    more = f" and {len(each) - 3} more" if len(each) > 3 else ""
    raise RegrowRuntimeError(
        f"the processes {what}: {'; '.join(each[:3])}{more} differs from process 0.\n{remedy}"
    )


def _known(weights: Sequence[SparseWeight], *, fresh: bool = False) -> list[int]:
    """Sum up how many weights there are, which, and their topologies."""
    return [
        len(weights),
        _digest([weight.name for weight in weights]),
        _digest([weight.fingerprint() if fresh else weight.record.fingerprint for weight in weights]),
    ]


def _digest(value: object) -> int:
    """Make a number that tells values with different reprs apart."""
    return int.from_bytes(hashlib.sha256(repr(value).encode()).digest()[:7], "big")


def _gather(numbers: list[int], device: torch.device, group: Any) -> Tensor:
    """Gather the numbers of each process [processes, n], on the CPU."""
    own = torch.tensor(numbers, dtype=torch.int64, device=device)
    every = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(every, own, group=group)
    return torch.stack(every).cpu()
