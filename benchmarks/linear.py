"""Sparse linear layers against dense ones, interleaved in one process.

    python benchmarks/linear.py --size 1024 4096 --sparsity 0.8 0.9 0.95 0.98 0.99 --batch 128 --threads 1

Prints, for the forward pass and for forward + backward, the best time of each, how many times faster the sparse one is,
and its utilisation: useful FLOP/s of the sparse layer over FLOP/s of the dense one.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from regrow import SparseLinear
from regrow.ops import native
from regrow.topology import connections, generator, sample


def best_of(functions: list[Callable[[], object]], seconds: float) -> list[float]:
    """The shortest time of each function, called in turns, a few calls at a time, for so many seconds."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    best = [float("inf")] * len(functions)
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        for i, function in enumerate(functions):
            function()
            turn = time.perf_counter()
            while time.perf_counter() - turn < 0.02:
                begin = clock()
                function()
                best[i] = min(best[i], clock() - begin)
    return best


def layers(columns: int, rows: int, sparsity: float) -> tuple[nn.Module, nn.Module]:
    """A sparse layer and the dense one it was cut from."""
    positions = sample(connections((rows, columns), sparsity), rows * columns, generator(0, "topology"))
    dense = nn.Linear(columns, rows)
    return SparseLinear.from_linear(dense, positions), dense


def step(layer: nn.Module, x: Tensor, gradient: Tensor) -> Callable[[], object]:
    """A forward and a backward pass that returns all gradients."""
    leaves = [x.detach().requires_grad_(), *layer.parameters()]

    def forward_and_backward() -> object:
        return torch.autograd.grad(layer(leaves[0]), leaves, gradient)

    return forward_and_backward


def forward(layer: nn.Module, x: Tensor) -> Callable[[], object]:
    """A forward pass that keeps nothing for a backward pass."""
    return torch.no_grad()(lambda: layer(x))


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", nargs="+", default=["1024", "4096"], help="SIZE or COLUMNSxROWS")
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.8, 0.9, 0.95, 0.98, 0.99])
    parser.add_argument("--batch", nargs="+", type=int, default=[128])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dtype = getattr(torch, arguments.dtype)
    load = os.getloadavg()[0]
    print(f"torch {torch.__version__}, kernels {native.isa()}, threads {arguments.threads}, load {load:.1f}")
    print(
        "layer      batch sparsity |" + 2 * "   dense us  sparse us  ratio  use |" + " forward | and backward"
    )
    for size in arguments.size:
        columns, rows = map(int, (size if "x" in size else f"{size}x{size}").split("x"))
        for batch in arguments.batch:
            for sparsity in arguments.sparsity:
                sparse, dense = (layer.to(dtype) for layer in layers(columns, rows, sparsity))
                x = torch.randn(batch, columns, dtype=dtype)
                g = torch.randn(batch, rows, dtype=dtype)
                inner_x, inner_g = (t.t().contiguous().t() for t in (x, g))
                line = f"{columns}x{rows}".ljust(11) + f"{batch:5d} {sparsity:8.2f} "
                for make in (
                    [forward(dense, x), forward(sparse, inner_x)],
                    [step(dense, x, g), step(sparse, inner_x, inner_g)],
                ):
                    slow, fast = best_of(make, arguments.seconds)
                    ratio = slow / fast
                    line += (
                        f"| {slow * 1e6:10.0f} {fast * 1e6:10.0f} {ratio:6.1f} {ratio * (1 - sparsity):4.2f} "
                    )
                print(line, flush=True)


if __name__ == "__main__":
    main()
