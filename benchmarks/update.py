"""A RigL update of one linear layer against the dense layer's backward pass.

    python benchmarks/update.py --size 1024 4096 --sparsity 0.8 0.9 0.99

The update drops the smallest 30% of the connections, finds as many new ones by the dense gradient, exactly, and rewires
the layer and its momentum. The backward pass is that of `nn.Linear` at batch 128, both gradients.
"""

from __future__ import annotations

import argparse

import torch
from linear import best_of
from torch import nn

import regrow
from regrow.criteria import gradient_magnitude
from regrow.ops.select import top
from regrow.weights import sparse_weights


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", nargs="+", type=int, default=[1024, 4096])
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.8, 0.9, 0.99])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(" size sparsity  dense backward us  update us  ratio")
    for size in arguments.size:
        for sparsity in arguments.sparsity:
            model = nn.Sequential(nn.Linear(size, size))
            dense = nn.Linear(size, size)
            regrow.sparsify(
                model, sparsity=sparsity, distribution="uniform", storage="compressed", include=["*"]
            )
            weight = next(iter(sparse_weights(model)))
            x, g = torch.randn(size, 128).t(), torch.randn(size, 128).t()
            momentum = torch.zeros_like(weight.parameter)
            x_dense, g_dense = x.contiguous().requires_grad_(), g.contiguous()
            y = dense(x_dense)

            def update(weight=weight, x=x, g=g, momentum=momentum) -> None:  # type: ignore[no-untyped-def]
                values = weight.values().abs()
                drop = top(-values, int(0.3 * len(values)))
                grow = weight.best_of([(x, g)], len(drop), weight.survivors(drop), gradient_magnitude)
                weight.update(drop, grow, [momentum])

            def backward(y=y, dense=dense, x=x_dense, g=g_dense) -> None:  # type: ignore[no-untyped-def]
                torch.autograd.grad(y, [x, *dense.parameters()], g, retain_graph=True)

            slow, fast = best_of([backward, update], arguments.seconds)
            print(
                f"{size:5d} {sparsity:8.2f} {slow * 1e6:18.0f} {fast * 1e6:10.0f} {fast / slow:6.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
