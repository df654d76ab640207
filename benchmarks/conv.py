"""Sparse convolutions against dense ones, interleaved in one process.

    python benchmarks/conv.py --layer 64x64x16 128x128x8 --batch 128 --sparsity 0.8 0.9 0.95 0.98 0.99 --threads 2

A layer is INxOUTxSIDE, with xKERNEL (3) and xSTRIDE (1) behind it where they differ. Prints, for the forward pass and
for forward + backward, the best time of dense (contiguous or channels-last, which is faster) and of sparse, whose
activations stay in batch tiles, how many times faster sparse is, and its utilisation: useful FLOP/s over dense ones.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from regrow import SparseConv2d
from regrow.nn.tiles import to_tiles
from regrow.ops import native
from regrow.topology import connections, generator, sample

Call = Callable[[], object]


def best_of(functions: list[Call], seconds: float) -> list[float]:
    """The shortest time of each function, called in turns, for so many seconds."""
    best = [float("inf")] * len(functions)
    start = time.perf_counter()
    for function in functions:
        function()
    while time.perf_counter() - start < seconds:
        for i, function in enumerate(functions):
            begin = time.perf_counter()
            function()
            best[i] = min(best[i], time.perf_counter() - begin)
    return best


def calls(layer: nn.Module, x: Tensor) -> tuple[Call, Call]:
    """A forward pass that keeps nothing, and a forward and a backward pass that returns all gradients."""
    leaves = [x.detach().requires_grad_(), *layer.parameters()]
    gradient = layer(x).detach()  # in the layout of the output

    def forward_and_backward() -> object:
        return torch.autograd.grad(layer(leaves[0]), leaves, gradient)

    return torch.no_grad()(lambda: layer(x)), forward_and_backward


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--layer", nargs="+", default=["32x32x32", "64x64x16", "128x128x8"])
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.8, 0.9, 0.95, 0.98, 0.99])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    load = os.getloadavg()[0]
    print(f"torch {torch.__version__}, kernels {native.isa()}, threads {arguments.threads}, load {load:.1f}")
    print(
        "layer            sparsity |" + 2 * "   dense ms  sparse ms  ratio  use |" + " forward | and backward"
    )
    for name in arguments.layer:
        columns, rows, side, kernel, stride = [*map(int, name.split("x")), *[3, 1][name.count("x") - 2 :]]
        dense = nn.Conv2d(columns, rows, kernel, stride, kernel // 2, bias=False)
        last = nn.Conv2d(columns, rows, kernel, stride, kernel // 2, bias=False).to(
            memory_format=torch.channels_last
        )
        x = torch.randn(arguments.batch, columns, side, side)
        base = [calls(dense, x), calls(last, x.to(memory_format=torch.channels_last))]
        for sparsity in arguments.sparsity:
            count = connections(tuple(dense.weight.shape), sparsity)
            positions = sample(count, dense.weight.numel(), generator(0, "topology"))
            sparse = SparseConv2d.from_conv(dense, positions)
            line = f"{name:16} {sparsity:8.2f} "
            for which in zip(*base, calls(sparse, to_tiles(x)), strict=True):
                *slow, fast = best_of(list(which), arguments.seconds)
                ratio = min(slow) / fast
                line += f"| {min(slow) * 1e3:10.2f} {fast * 1e3:10.2f} {ratio:6.1f} {ratio * (1 - sparsity):4.2f} "
            print(line, flush=True)


if __name__ == "__main__":
    main()
