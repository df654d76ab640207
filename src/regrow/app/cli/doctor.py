"""What ``regrow doctor`` does: tell what the machine has, and try the kernels."""

from __future__ import annotations

import copy
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

import regrow
from regrow._places import SYSTEM, cache
from regrow._text import columns, wrapped
from regrow.measure.machine import busiest, describe
from regrow.measure.timing import load
from regrow.ops import backends, native

EXTRAS = ("safetensors", "typer", "rich", "pydantic", "matplotlib", "pillow")
FRIENDS = ("lightning", "transformers", "accelerate")
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float64: 1e-10}
"""Largest error of a result over the largest number of the reference."""


@dataclass(frozen=True)
class Check:
    """Result of comparing sparse layers of one dtype with dense ones in float64."""

    dtype: str
    error: float
    """The largest of output and gradients, relative to the largest number of each."""
    right: bool


def doctor(arguments: Sequence[str], json_: bool = False) -> int:
    """Run the command; `arguments` are those of ``regrow``.

    Returns:
        The exit code: 1 where a sparse layer computes something wrong, or without the kernels.
    """
    checks = [check(dtype) for dtype in TOLERANCE]
    found = examine(arguments)
    if json_:
        print(json.dumps({**found, "checks": [asdict(c) for c in checks]}, indent=2))
    else:
        for name, text in [*lines(found), ("self-check", verdict(checks))]:
            print(wrapped(f"{name:14}{text}", columns()))
    return 0 if native.available() and all(c.right for c in checks) else 1


def examine(arguments: Sequence[str]) -> dict[str, Any]:
    """Collect all that is known of the machine, plain numbers and strings."""
    return {
        **describe(arguments),
        "forced_isa": os.environ.get("REGROW_ISA"),
        "dtypes": sorted(str(dtype).removeprefix("torch.") for dtype in backends.DTYPES),
        "interop_threads": torch.get_num_interop_threads(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "cuda": torch.version.cuda,
        "load": load().to_dict(),
        "busy": [process.to_dict() for process in busiest()],
        "optional": {name: installed(name) for name in (*EXTRAS, *FRIENDS)},
        "data": {str(root): folders(root) for root in (SYSTEM, cache())},
    }


def installed(package: str) -> str | None:
    """Return the version of a package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def folders(root: Any) -> list[str]:
    """List the folders of data sets in one of the places where regrow looks."""
    return sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


def check(dtype: torch.dtype) -> Check:
    """Compare forward and backward of a small layer with a dense float64 one; by the kernels where there are any."""
    rows, columns = 96, 160
    dense = nn.Linear(columns, rows, dtype=torch.float64)
    model = nn.Sequential(copy.deepcopy(dense))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that there are no kernels stands in the first line
        regrow.sparsify(model, 0.9, "uniform", include=["*"], storage="compressed").to(dtype)
    (weight,) = regrow.masks(model).values()
    # the reference computes with the rounded numbers, so that the error is that of the computation alone
    exact = nn.Linear(columns, rows, dtype=torch.float64)
    with torch.no_grad():
        exact.weight.copy_(torch.where(weight, dense.weight.to(dtype), 0))
        exact.bias.copy_(dense.bias.to(dtype))
    x, gradient = (torch.randn(33, size, dtype=dtype, device="cpu") for size in (columns, rows))
    ours, theirs = passes(model[0], x, gradient), passes(exact, x.double(), gradient.double())
    theirs[2] = theirs[2][weight].view(-1, 1)
    ours[2] = ours[2][: len(theirs[2])]  # without the entries of the stamp
    error = max(
        float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True)
    )
    return Check(str(dtype).removeprefix("torch."), error, error <= TOLERANCE[dtype])


def passes(layer: nn.Module, x: Tensor, gradient: Tensor) -> list[Tensor]:
    """Compute the output, and gradients of input, weight and bias."""
    leaf = x.detach().requires_grad_()
    output = layer(leaf)
    parameters = dict(layer.named_parameters())
    bias = parameters.pop("bias")
    return [output.detach(), *torch.autograd.grad(output, [leaf, *parameters.values(), bias], gradient)]


def lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what is shown, by its name."""
    packages, (total, free) = found["packages"], (found["memory"], found["memory_free"])
    isa = f"{found['kernels']}" + (" (forced by REGROW_ISA)" if found["forced_isa"] else "")
    why = native.missing()
    more = [*why.details.splitlines(), why.remedy] if why else []
    omp = f", OMP_NUM_THREADS={found['omp_num_threads']}" if found["omp_num_threads"] else ""
    return [
        ("kernels", f"none, the reference runs: {why.reason}" if why else f"{isa}, {found['kernels_file']}"),
        *[("", line) for line in more],
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
    """Tell how busy the machine is, in words."""
    word = "quiet" if seen["quiet"] else "NOT QUIET: times measured now are too long"
    return f"{seen['average']:.2f} on {seen['cores']} cores, others use {seen['others']:.0%}: {word}"


def verdict(checks: Sequence[Check]) -> str:
    """Tell the result of the checks in words."""
    return ", ".join(f"{c.dtype} {'right' if c.right else 'WRONG'} (error {c.error:.0e})" for c in checks)
