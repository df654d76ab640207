"""Memory of superposing two tickets in compressed storage: how it follows the union of their connections.

    python benchmarks/superpose_memory.py                 # a layer of 30,000 x 30,000 at 99%: a minute, Linux

The layer is made by its connections alone; its dense weight would take 3.6 GB. One SET step that explores half of the
connections lies between the two tickets. What `collect` adds to the resident memory is printed, at its peak and
in what stays, per connection of the union of both tickets.
"""

from __future__ import annotations

import argparse

import torch

import regrow
from regrow._random import generator
from regrow.app.bench.linear import Linear
from regrow.app.bench.peak import resident, settle
from regrow.weights import sparse_weights


def main() -> None:
    """Train one step, collecting before and after it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=30_000)
    parser.add_argument("--density", type=float, default=0.01)
    arguments = parser.parse_args()
    size = arguments.size
    model = Linear(size, size).random(int(arguments.density * size * size), torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = regrow.SET(model, optimizer, total_steps=1)
    tickets = regrow.SupTickets(method, start=1, cycles=1, cycle_steps=1)
    x = torch.randn(4, size, generator=generator(2))
    (weight,) = sparse_weights(model)
    seen = torch.empty(0, dtype=torch.int64)
    for step in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        seen = torch.cat([seen, weight.positions()]).unique()
        if step == 0:
            tickets.collect()
    optimizer.zero_grad()
    union = len(seen)
    del seen
    start = settle()  # what is free goes back: it would hide what collect takes
    tickets.collect()
    peak, stays = resident("VmHWM") - start, resident("VmRSS") - start
    dense = 4 * size * size
    print(
        f"{size} x {size} at {1 - arguments.density:.2%}: {weight.nnz:,} connections a ticket, {union:,} in the union; "
        f"collect takes {peak / 1e6:,.0f} MB at its peak, {peak / union:.0f} bytes a connection of the union "
        f"({stays / 1e6:,.0f} MB stay); the dense weight alone is {dense / 1e6:,.0f} MB"
    )


if __name__ == "__main__":
    main()
