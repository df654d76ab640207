"""What a finished run says about itself, and the machine it ran on."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

import regrow
from regrow.training.build import Setup
from regrow.training.cost import measure
from regrow.training.progress import Status

TIMES = {
    "dense": "of dense training",
    "masks": "of masks over dense weights: no faster than dense training, whatever the sparsity",
    "real sparsity": "of real sparsity: absent connections are neither stored nor computed with",
    "mixed": "of both storages: real sparsity in the compressed layers, dense cost in the masked ones",
}


def summarize(
    setup: Setup, model: nn.Module, status: Status, records: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """The content of ``summary.json``, and under ``text`` that of ``summary.txt``.

    Args:
        setup: of the run.
        model: as it is at the end.
        status: at the end.
        records: of ``metrics.jsonl``.
    """
    recipe = setup.recipe
    summary = regrow.summary(model)
    storages = {row.storage for row in summary.rows} & {"masked", "compressed"}
    kinds = {"masked": "masks", "compressed": "real sparsity"}
    time_is = "mixed" if len(storages) == 2 else kinds[storages.pop()] if storages else "dense"
    result: dict[str, Any] = {
        "recipe": recipe.name,
        "method": recipe.method.name,
        "seed": recipe.seed,
        "accuracy": status.accuracy,
        "test_loss": status.test_loss,
        "tested_on": _tested(setup),
        "connections": summary.connections,
        "parameters": summary.parameters,
        "sparsity": summary.sparsity,
        "steps": status.step,
        "steps_per_epoch": setup.steps_per_epoch,
        "moved": status.moved,
        "seconds": round(status.seconds, 2),
        "time_is": time_is,
        "device": recipe.device,
        "threads": recipe.threads,
        "precision": recipe.precision,
        "peak_memory_megabytes": peak_memory(),
        "flops": measure(model, setup.batches.example(), setup.method, records, status.step),
    }
    threads = f"{recipe.threads} thread" + ("s" if recipe.threads != 1 else "")
    result["text"] = "\n".join(
        [
            f"accuracy     {status.accuracy:.2%} of {setup.batches.tested:,} {_tested(setup)} examples, "
            f"loss {status.test_loss:.4f}",
            f"connections  {summary.connections:,} in the sparse layers, {summary.sparsity:.2%} of whose weights "
            f"are absent; {summary.parameters:,} parameters with everything",
            f"moved        {status.moved:,} connections over the run",
            f"time         {status.seconds:.1f} s of training, measured, {TIMES[time_is]}",
            f"             {status.step:,} steps on {recipe.device}, {threads}, {recipe.precision}",
            *_costs(result),
        ]
    )
    return result


def _tested(setup: Setup) -> str:
    """What was tested."""
    return "validation" if setup.batches.validation else "test"


def _costs(result: Mapping[str, Any]) -> list[str]:
    lines = []
    if flops := result["flops"]:
        dense = flops["dense"]
        lines.append(
            f"FLOPs        {flops['test'] / dense:.4g}x the same network's dense for a test, counted; "
            f"{flops['training'] / (3 * dense):.4g}x for training, measured over the run"
        )
    if memory := result["peak_memory_megabytes"]:
        lines.append(f"memory       {memory:,.0f} MB at the most, measured, of the whole process")
    return lines


def peak_memory() -> float | None:
    """The most memory that this process has held so far, in megabytes; on CUDA devices torch's own part there."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0:
        return round(torch.cuda.max_memory_allocated() / 1e6, 1)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6, 1)


def environment(arguments: Sequence[str]) -> dict[str, Any]:
    """Versions, machine, and the command that repeats the run; `arguments` are those of ``regrow``."""
    versions = {}
    for package in ("regrow", "torch", "numpy"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # run from a checkout that is not installed
            versions[package] = "not installed"
    return {
        "command": shlex.join(["regrow", *arguments]),
        "folder": str(Path.cwd()),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": sys.version.split()[0],
        "packages": versions,
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
