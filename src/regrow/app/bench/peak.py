"""Memory of a process of its own, and the process itself: one layer trained for some steps.

    python -m regrow.app.bench.peak '{"rows": 1024, "columns": 1024, "connections": 100000, "batch": 128, ...}'

prints a JSON document; see `Run`. What is resident before the layer is made, torch and the kernels and what a small
layer has needed, is left out of all figures. Linux only: it reads ``/proc/self/status``.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import regrow
from regrow.app.bench.linear import Linear
from regrow.app.bench.rows import Settings
from regrow.errors import RegrowRuntimeError
from regrow.measure.timing import Load, Timing, Watch, interleaved

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Run:
    """What one run took: seconds, and bytes of resident memory at the peak of each of its parts."""

    connections: int
    start_seconds: float
    """To draw the connections, make layer, optimizer and method, and take the first step."""
    start: int
    steps: int
    """Of training steps: forward, both gradients, SGD with momentum."""
    update: int | None
    """Of a step with a RigL update; None where there was none."""
    step: Timing
    load: Load


def run(layer: Linear, connections: int, batch: int, settings: Settings, update: bool = False) -> Run:
    """Train `layer` with so many random connections in a fresh process.

    Raises:
        RegrowRuntimeError: no Linux, or the process did not come to its end (out of memory).
    """
    if not CLEAR.exists():
        raise RegrowRuntimeError("memory is measured on Linux only: there is no /proc/self/clear_refs here")
    spec = {
        "rows": layer.rows,
        "columns": layer.columns,
        "connections": connections,
        "batch": batch,
        "update": update,
        "dtype": str(settings.dtype).removeprefix("torch."),
        "threads": settings.threads,
        "seconds": settings.seconds,
    }
    environment = {**os.environ, "OMP_NUM_THREADS": str(settings.threads)}
    command = [sys.executable, "-m", "regrow.app.bench.peak", json.dumps(spec)]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if ended.returncode != 0:
        killed = ended.returncode == -signal.SIGKILL
        reason = "it was killed, so memory ran out" if killed else ended.stderr.strip().rpartition("\n")[2]
        raise RegrowRuntimeError(f"{layer} with {connections:,} connections did not end: {reason}")
    found = json.loads(ended.stdout)
    return Run(**{**found, "step": Timing(**found["step"]), "load": Load(**found["load"])})


def resident(key: str) -> int:
    """Return the bytes of resident memory of this process: ``VmRSS`` now, ``VmHWM`` at its peak since `settle`."""
    found = re.search(rf"{key}:\s+(\d+) kB", STATUS.read_text())
    assert found is not None
    return 1024 * int(found[1])


def settle() -> int:
    """Give back what is free, begin a new peak, and return the bytes that are resident."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
    CLEAR.write_text("5")
    return resident("VmRSS")


def main(text: str) -> None:
    """Do what `run` asks for, in this process, and print it."""
    spec = json.loads(text)
    torch.set_num_threads(spec["threads"])
    dtype = getattr(torch, spec["dtype"])
    train(Linear(64, 64), 400, 16, dtype, 0.0, True)  # whatever is loaded or made once is there now
    base = settle()
    layer = Linear(spec["rows"], spec["columns"])
    found = train(layer, spec["connections"], spec["batch"], dtype, spec["seconds"], spec["update"], base)
    print(json.dumps(asdict(found)))


def train(
    layer: Linear,
    connections: int,
    batch: int,
    dtype: torch.dtype,
    seconds: float,
    update: bool,
    base: int = 0,
) -> Run:
    """Train `layer` in this process, with `base` bytes that are not its own."""
    begin = time.perf_counter()
    model = layer.random(connections, dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, fused=True)
    method = regrow.RigL(model, optimizer, total_steps=10**6, update_every=10**5) if update else None
    x, gradient = (layer.laid_out(t) for t in layer.example(batch, dtype))

    def one() -> None:
        optimizer.zero_grad()
        model(x.detach().requires_grad_()).backward(gradient)
        optimizer.step()

    one()
    start_seconds, start = time.perf_counter() - begin, resident("VmHWM") - base
    settle()
    watch = Watch()
    step = interleaved({"step": one}, seconds=seconds)["step"]
    load, steps = watch.load(), resident("VmHWM") - base
    if method is not None:
        method.explore(0.3)
        settle()
        one()
    peak = resident("VmHWM") - base if method is not None else None
    return Run(connections, start_seconds, start, steps, peak, step, load)


if __name__ == "__main__":
    main(sys.argv[1])
