"""Whole training steps of multilayer perceptrons, sparse against dense, interleaved in one process.

    python benchmarks/mlp.py --width 1024 4096 --sparsity 0.8 0.9 0.95 0.98 0.99 --threads 1

A step is forward, cross-entropy, backward and SGD with momentum (`fused=True`), the gradients set to None, on
784-WIDTH-WIDTH-10; the last layer stays dense. Batch 100 at width 1024, 128 otherwise.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

import torch
from linear import best_of, layers
from torch import Tensor, nn

from regrow.ops import native


def mlp(width: int, sparsity: float) -> tuple[nn.Module, nn.Module]:
    """A sparse network, its ReLUs fused, and the dense one."""
    (first, dense_first), (second, dense_second) = (
        layers(784, width, sparsity),
        layers(width, width, sparsity),
    )
    first.activation = second.activation = "relu"
    return (
        nn.Sequential(first, second, nn.Linear(width, 10)),
        nn.Sequential(dense_first, nn.ReLU(), dense_second, nn.ReLU(), nn.Linear(width, 10)),
    )


def training_step(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], object]:
    """One step of the usual loop."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", nargs="+", type=int, default=[1024, 4096])
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.8, 0.9, 0.95, 0.98, 0.99])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=4.0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    load = os.getloadavg()[0]
    print(f"torch {torch.__version__}, kernels {native.isa()}, threads {arguments.threads}, load {load:.1f}")
    print("width sparsity   dense us  sparse us  ratio")
    for width in arguments.width:
        x, y = (
            torch.rand(100 if width == 1024 else 128, 784),
            torch.randint(10, (100 if width == 1024 else 128,)),
        )
        for sparsity in arguments.sparsity:
            sparse, dense = mlp(width, sparsity)
            slow, fast = best_of([training_step(dense, x, y), training_step(sparse, x, y)], arguments.seconds)
            print(
                f"{width:5d} {sparsity:8.2f} {slow * 1e6:10.0f} {fast * 1e6:10.0f} {slow / fast:6.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
