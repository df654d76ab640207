"""A small training with the installed wheel, run from another folder: RigL must learn and regrow."""

import os
import sys
from importlib.metadata import version

import torch

import regrow

heavy = {"matplotlib", "PIL", "pydantic", "rich", "safetensors", "typer", "yaml"} & set(sys.modules)
assert not heavy, f"`import regrow` imported {heavy}"
assert version("regrow") == regrow.__version__
place = os.path.realpath(regrow.__file__)
assert place.startswith(os.path.realpath(sys.prefix)), f"regrow was imported from {place}"
assert not place.startswith(os.path.realpath(os.environ["REGROW_REPOSITORY"]) + os.sep)

torch.manual_seed(0)
inputs = torch.randn(512, 20)
targets = (inputs[:, :4].sum(1) > 0).long()

for storage in ("masked", "compressed"):
    model = torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
    regrow.sparsify(model, sparsity=0.9, storage=storage)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    method = regrow.RigL(model, optimizer, total_steps=60, update_every=10)
    moved: list[int] = []
    method.register_update_hook(
        lambda record, moved=moved: moved.append(sum(layer["grown"] for layer in record["layers"].values()))
    )
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0], losses
    assert sum(moved) > 0, moved
    print(f"{storage:10s} loss {losses[0]:.3f} -> {losses[-1]:.3f}, {sum(moved)} connections moved")
print(f"torch {torch.__version__}, regrow from {place}")
