"""RigL in two processes of DistributedDataParallel: `torchrun --standalone --nproc-per-node 2 examples/ddp.py`."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import regrow

STEPS = 200


def main() -> None:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)  # the same data and network in each process ...
    inputs = torch.randn(2000, 64)
    targets = inputs[:, :10].argmax(1)
    network = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))

    regrow.sparsify(network, sparsity=0.9, seed=0)  # ... and the same topology
    model = DistributedDataParallel(network)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    method = regrow.RigL(model, optimizer, total_steps=STEPS, update_every=20)

    for step in range(STEPS):
        batch = torch.arange(rank + step * 50 * world, (step + 1) * 50 * world, world) % len(inputs)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[batch]), targets[batch]).backward()
        optimizer.step()

    if rank == 0:
        print(method)
        regrow.save(network, "model.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
