"""Write files as a user of regrow does, to see whether a later regrow reads them.

    PYTHONPATH=SRC:tests python tests/formats/make.py FOLDER

writes those of the regrow in SRC. What lies in a folder here stays as it is: `without-number` is of the regrow that
wrote no numbers yet, `number-1` the run folder of the first that did.
"""

import contextlib
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from tiny import write_folder
from torch import Tensor, nn
from torch.optim import SGD

import regrow
from regrow.app.cli.main import main

START, LENGTH = 4, 4


def network(seed: int = 0) -> nn.Module:
    """Both storages, a module with several sparse weights, a layer that stays dense, and a batch norm."""
    torch.manual_seed(seed)
    layers = [
        nn.GRUCell(6, 12),
        nn.Linear(12, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Linear(16, 8),
        nn.Linear(8, 4),
    ]
    model = nn.Sequential(*layers)
    regrow.sparsify(model, 0.5, "uniform", include=["0", "1"], storage="masked", seed=seed)
    return regrow.sparsify(model, 0.5, "uniform", include=["4"], storage="compressed", seed=seed)


def driven(kind: str, seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    """A network, its optimizer, and what makes ``sup`` or ``free`` tickets of it."""
    model = network(seed)
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    method = regrow.RigL(model, optimizer, total_steps=12, update_every=2)
    if kind == "sup":
        return model, optimizer, regrow.SupTickets(method, start=START, cycles=2, cycle_steps=LENGTH)
    return model, optimizer, regrow.FreeTickets(method, start=START, tickets=2, ticket_steps=LENGTH)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, tickets: Any, steps: int) -> None:
    """Make so many steps, and tickets where they are due."""
    torch.manual_seed(1)
    data = [(torch.randn(16, 6), torch.randint(4, (16,))) for _ in range(steps)]
    for x, y in data:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        if isinstance(tickets, regrow.FreeTickets):
            tickets.consider(tickets.step)
        elif tickets.ready:
            tickets.collect([x for x, _ in data])


def described(model: nn.Module) -> dict[str, Tensor]:
    """Masks and dense weights of a network."""
    masks = {f"{name} (mask)": mask for name, mask in regrow.masks(model).items()}
    return {**regrow.dense_state_dict(model), **masks}


def tickets_of(tickets: Any) -> list[nn.Module]:
    """The networks that there are so far."""
    return list(tickets.tickets) if isinstance(tickets, regrow.FreeTickets) else [tickets.model]


RECIPE = """
model: {name: mlp, inputs: 64, hidden: [8], classes: 4}
data: {name: idx, folder: images, classes: 4}
sparsify: {sparsity: 0.8, storage: compressed}
method: {name: rigl, update_every: 5}
optimizer: {name: SGD, lr: 0.05, momentum: 0.9}
schedule: cosine
batch_size: 20
steps: 20
log_every: 7
device: cpu
threads: 1
"""
PICTURES = "*.png", "*.gif"


def write_run(folder: Path) -> None:
    """Write a finished run folder, but for pictures and what it says of the machine."""
    with tempfile.TemporaryDirectory() as images, contextlib.chdir(images):
        write_folder(Path("images"))
        Path("tiny.yaml").write_text(RECIPE)
        with contextlib.suppress(SystemExit):
            main(["train", "tiny.yaml", "out=run"])
        run = Path("run")
        for file in (run / "environment.json", *(file for kind in PICTURES for file in run.glob(kind))):
            file.unlink()
        shutil.copytree(run, folder)


if __name__ == "__main__":
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True)
    for kind in ("sup", "free"):
        model, optimizer, tickets = driven(kind)
        train(model, optimizer, tickets, START + LENGTH + 1)
        parts = {"model": model, "optimizer": optimizer, "tickets": tickets}
        state = {name: part.state_dict() for name, part in parts.items()}
        expected = [described(each) for each in (model, *tickets_of(tickets))]
        torch.save({**state, "expected": expected}, folder / f"{kind}.pt")
    regrow.save(model, folder / "model.safetensors")
    write_run(folder / "run")
