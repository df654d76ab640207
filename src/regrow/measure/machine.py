"""What the machine is and who keeps it busy."""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from regrow.ops import native
from regrow.ops.compiling import cores

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def describe(arguments: Sequence[str]) -> dict[str, Any]:
    """Return versions, processor, caches, memory and kernels; `arguments` are those of ``regrow``."""
    total, free = memory()
    return {
        **environment(arguments),
        "kernels": native.isa(),
        "kernels_file": str(native.library()) if native.available() else None,
        "no_kernels_because": native.load(),
        "threads": torch.get_num_threads(),
        "caches": caches(),
        "memory": total,
        "memory_free": free,
    }


def environment(arguments: Sequence[str]) -> dict[str, Any]:
    """Return versions, machine, and the command that repeats the run; `arguments` are those of ``regrow``."""
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
        "cores": cores(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def memory() -> tuple[int, int | None]:
    """Return the bytes of memory, and of those that a new process can have; None if the system does not report it."""
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        found = None
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return total, 1024 * int(found[1]) if found else None


def caches() -> dict[str, str]:
    """Return the size of each cache that the first core has, such as ``{"L1 data": "48K"}``; empty where nobody
    says.
    """
    found = {}
    for index in sorted(CACHES.glob("index*")):
        level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        found[f"L{level}" + ("" if kind == "Unified" else f" {kind.lower()}")] = size
    return found


@dataclass(frozen=True)
class Busy:
    """Another process that uses the cores."""

    pid: int
    name: str
    cores: float
    """How many, on average."""

    def __str__(self) -> str:
        return f"{self.name} ({self.pid}) {self.cores:.0%} of a core"

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings."""
        return asdict(self)


def busiest(seconds: float = 0.5, count: int = 5) -> list[Busy]:
    """Return the other processes that use most, at least a twentieth of a core; empty where there is no /proc."""
    before = _ticks()
    time.sleep(seconds)
    per_core = seconds * os.sysconf("SC_CLK_TCK")
    found = [
        Busy(pid, name, (ticks - before[pid][1]) / per_core)
        for pid, (name, ticks) in _ticks().items()
        if pid in before and pid != os.getpid()
    ]
    return sorted((b for b in found if b.cores >= 0.05), key=lambda b: -b.cores)[:count]


def _ticks() -> dict[int, tuple[str, int]]:
    """Return name and ticks of core time of each process."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            before, _, after = (folder / "stat").read_text().rpartition(")")
        except OSError:  # it has ended
            continue
        fields = after.split()
        found[int(folder.name)] = before.partition("(")[2], int(fields[11]) + int(fields[12])
    return found
