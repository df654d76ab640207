"""What ``regrow doctor`` does: tell what the machine has, and try the kernels."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

import regrow
from regrow.bench.linear import Linear
from regrow.bench.machine import busiest, describe
from regrow.data.places import SYSTEM, cache
from regrow.ops import native
from regrow.timing import load

EXTRAS = ("safetensors", "typer", "rich", "pydantic", "matplotlib", "pillow")
FRIENDS = ("lightning", "transformers", "accelerate")
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float64: 1e-10}
"""Largest error of a result over the largest number of the reference."""


@dataclass(frozen=True)
class Check:
    """Whether sparse layers of one dtype compute what dense ones in float64 do."""

    dtype: str
    error: float
    """The largest of output and gradients, relative to the largest number of each."""
    right: bool


def doctor(arguments: Sequence[str], json_: bool = False) -> int:
    """The command; `arguments` are those of ``regrow``.

    Returns:
        The exit code: 1 where a sparse layer computes something wrong.
    """
    checks = [check(dtype) for dtype in TOLERANCE]
    found = examine(arguments)
    if json_:
        print(json.dumps({**found, "checks": [asdict(c) for c in checks]}, indent=2))
    else:
        console = Console()
        for name, text in [*lines(found), ("self-check", verdict(checks))]:
            console.print(f"{name:14}{text}", markup=False, highlight=False, soft_wrap=True)
    return 0 if all(c.right for c in checks) else 1


def examine(arguments: Sequence[str]) -> dict[str, Any]:
    """All that is known of the machine, plain numbers and strings."""
    return {
        **describe(arguments),
        "forced_isa": os.environ.get("REGROW_ISA"),
        "dtypes": sorted(str(dtype).removeprefix("torch.") for dtype in native.DTYPES),
        "interop_threads": torch.get_num_interop_threads(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "cuda": torch.version.cuda,
        "load": load().to_dict(),
        "busy": [process.to_dict() for process in busiest()],
        "optional": {name: installed(name) for name in (*EXTRAS, *FRIENDS)},
        "data": {str(root): folders(root) for root in (SYSTEM, cache())},
    }


def installed(package: str) -> str | None:
    """The version of a package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def folders(root: Any) -> list[str]:
    """Names of the folders of data sets in one of the places where regrow looks."""
    return sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


def check(dtype: torch.dtype) -> Check:
    """Forward and backward of a small layer against a dense float64 one; by the kernels where there are any."""
    shape = Linear(96, 160)
    dense = shape.dense(torch.float64)
    sparse = shape.sparse(dense, 0.9).to(dtype)
    (weight,) = regrow.masks(nn.Sequential(sparse)).values()
    # the reference computes with the rounded numbers, so that the error is that of the computation alone
    exact = nn.Linear(shape.columns, shape.rows, dtype=torch.float64)
    with torch.no_grad():
        exact.weight.copy_(torch.where(weight, dense.weight.to(dtype), 0))
        exact.bias.copy_(dense.bias.to(dtype))
    x, gradient = shape.example(33, dtype)
    ours, theirs = passes(sparse, x, gradient), passes(exact, x.double(), gradient.double())
    theirs[2] = theirs[2][weight].view(-1, 1)
    error = max(
        float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True)
    )
    return Check(str(dtype).removeprefix("torch."), error, error <= TOLERANCE[dtype])


def passes(layer: nn.Module, x: Tensor, gradient: Tensor) -> list[Tensor]:
    """Output, and gradients of input, weight and bias."""
    leaf = x.detach().requires_grad_()
    output = layer(leaf)
    parameters = dict(layer.named_parameters())
    bias = parameters.pop("bias")
    return [output.detach(), *torch.autograd.grad(output, [leaf, *parameters.values(), bias], gradient)]


def lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What is shown, by its name."""
    packages, (total, free) = found["packages"], (found["memory"], found["memory_free"])
    isa = f"{found['kernels']}" + (" (forced by REGROW_ISA)" if found["forced_isa"] else "")
    omp = f", OMP_NUM_THREADS={found['omp_num_threads']}" if found["omp_num_threads"] else ""
    return [
        ("kernels", f"no: {found['no_kernels_because']}" if found["no_kernels_because"] else isa),
        ("dtypes", ", ".join(found["dtypes"])),
        ("threads", f"{found['threads']} of torch, {found['interop_threads']} between operators{omp}"),
        ("versions", f"regrow {packages['regrow']}, torch {torch.__version__}, Python {found['python']}"),
        ("processor", f"{found['processor'] or 'unknown'}, {found['cores']} cores"),
        ("caches", ", ".join(f"{name} {size}" for name, size in found["caches"].items()) or "unknown"),
        ("memory", f"{total / 1e9:.1f} GB" + (f", {free / 1e9:.1f} GB free" if free is not None else "")),
        ("load", state(found["load"])),
        *[("busy", f"{p['name']} ({p['pid']}) {p['cores']:.0%} of a core") for p in found["busy"]],
        ("accelerator", found["accelerator"] or f"none (torch's CUDA: {found['cuda'] or 'none'})"),
        ("optional", ", ".join(f"{n} {v or 'missing'}" for n, v in found["optional"].items())),
        *[("data", f"{place}: {', '.join(names) or 'nothing'}") for place, names in found["data"].items()],
    ]


def state(seen: dict[str, Any]) -> str:
    """How busy the machine is, in words."""
    word = "quiet" if seen["quiet"] else "NOT QUIET: times measured now are too long"
    return f"{seen['average']:.2f} on {seen['cores']} cores, others use {seen['others']:.0%}: {word}"


def verdict(checks: Sequence[Check]) -> str:
    """The checks in words."""
    return ", ".join(f"{c.dtype} {'right' if c.right else 'WRONG'} (error {c.error:.0e})" for c in checks)
