"""Memory and time of a network whose dense weights never exist: 784-n-n-10, SGD with momentum, RigL.

    OMP_NUM_THREADS=1 python benchmarks/giant.py            # 65,536 units, 2 x 10^7 connections: a minute, Linux

Each run is a process of its own: with all connections and with a tenth of them, without a topology update among its
five steps and with one. Printed: bytes of the peak for each connection that makes the difference, and the seconds of
the step with the update.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time

# large pages for large tensors, as `regrow train` asks for; before torch makes the first
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import torch
from torch.nn.functional import cross_entropy

import regrow
from regrow.models import mlp

BATCH = 16


def run(units: int, connections: int, update: bool) -> dict[str, float]:
    """Five steps in this process: its connections, bytes at the peak and seconds of the fourth step."""
    with torch.device("meta"):
        model = mlp(784, (units, units))
    dense = {"layers.0": 784 * units, "layers.2": units * units}
    sparsities = {name: 1 - connections / 2 / size for name, size in dense.items()}
    regrow.sparsify(model, distribution=sparsities, storage="compressed")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, fused=True)
    every = 3 if update else 90
    method = regrow.RigL(model, optimizer, total_steps=100, update_every=every, grow_columns=256)
    seconds = []
    while method.step < 5:
        start = time.perf_counter()
        optimizer.zero_grad()
        cross_entropy(model(torch.randn(BATCH, 784)), torch.randint(10, (BATCH,))).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"connections": regrow.summary(model).connections, "peak": peak, "seconds": seconds[3]}


def main() -> None:
    """Run all four and print the differences."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--units", type=int, default=1 << 16)
    parser.add_argument("--connections", type=int, default=20_000_000)
    parser.add_argument("--one", choices=["steps", "update"], help="one run, in this process, as JSON")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(run(arguments.units, arguments.connections, arguments.one == "update")))
        return
    for what in ("steps", "update"):
        all_, tenth = (
            _in_a_process(arguments.units, count, what)
            for count in (arguments.connections, arguments.connections // 10)
        )
        each = (all_["peak"] - tenth["peak"]) / (all_["connections"] - tenth["connections"])
        print(f"{what:6}  {each:.1f} bytes a connection, fourth step {all_['seconds']:.1f} s")


def _in_a_process(units: int, connections: int, what: str) -> dict[str, float]:
    options = ["--units", str(units), "--connections", str(connections), "--one", what]
    ended = subprocess.run([sys.executable, __file__, *options], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(ended.stdout)
    return found


if __name__ == "__main__":
    main()
