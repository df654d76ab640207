"""The ticket loop as whole runs: of the dense network, then of each ticket, pruned out of the network before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from regrow.app.recipes import Part, Recipe, method_of
from regrow.app.training import ways
from regrow.app.training.build import Setup, dense_network, seed_everything
from regrow.app.training.folder import RunFolder
from regrow.sparsity.initial import Criterion
from regrow.tickets import Gradient, Plan, copied, pruned, rewound, sparsities
from regrow.tickets.rounds import NEW, RATE, START
from regrow.tickets.scores import GRADIENT, SCORES

START_FILE = "start.safetensors"
"""What a ticket begins with, in the folder of its run."""


def runs(recipe: Recipe, plan: Plan, folder: RunFolder) -> list[Recipe]:
    """Return the recipes of all runs in their order; where weights are rewound to a step, the first one ends there."""
    options, count = plan.options, plan.count
    first = options["rewind"] if isinstance(options["rewind"], int) else 0
    common: dict[str, Any] = {"tickets": None, "test_on": recipe.tested_on if recipe.validation else None}
    dense = {**common, "method": Part(name="dense")}
    begun = _path(folder, 0, "model.safetensors") if first else None
    found = [dense | {"last_step": first}] if first else []
    found.append(dense | {"start": begun, "first_step": first})
    if options["early"] is not None:
        found[-1]["early"] = {
            "sparsity": recipe.sparsify["sparsity"],
            "distance": options["early"],
            "masks": options["masks"],
            "score": options["score"] if options["score"] in SCORES else "magnitude",
            "distribution": _distribution(recipe),
        }
    for sparsity in sparsities(recipe.sparsify["sparsity"], count):
        own = {"sparsify": {**recipe.sparsify, "sparsity": sparsity}, "first_step": first}
        found.append(common | own | {"start": _path(folder, len(found), START_FILE)})
    if options["find_lr"] is not None:
        optimizer = Part(name=recipe.optimizer.name, **recipe.optimizer.options | {"lr": options["find_lr"]})
        for changes in found[:-1]:
            changes["optimizer"] = optimizer
    return [
        recipe.model_copy(update={**changes, "out": str(folder.path / "members" / str(index))})
        for index, changes in enumerate(found)
    ]


def prepare(setup: Setup, folder: RunFolder, own: list[Recipe], index: int) -> None:
    """Write what run `index` of `own` begins with, where that is a ticket and is not written yet."""
    recipe, plan = setup.recipe, setup.plan
    begins = Path(own[index].start or "")
    if plan is None or begins.name != START_FILE or begins.is_file():
        return
    seed_everything(recipe.seed)  # a network may draw numbers while it is scored, whatever has run before
    trained = _read(setup, folder, index - 1)
    kept = pruned(
        trained,
        own[index].sparsify["sparsity"],
        score=_score(setup, plan.options["score"]),
        distribution=_distribution(recipe),
        **{key: recipe.sparsify.get(key) for key in ways.WHERE},
    )
    source = _source(setup, folder, plan.options["rewind"], index, trained)
    storage = ways.settings(recipe, setup.device, method_of(recipe.method)).get("storage", "auto")
    folder.save_model(f"members/{index}/{begins.name}", rewound(source, kept, storage))


def _score(setup: Setup, name: str) -> str | Criterion:
    """Return what says which connections stay: a name, or a criterion on the first batch."""
    if name in SCORES:
        return name
    if name == GRADIENT:
        inputs, targets = (tensor.cpu() for tensor in setup.batches.train(0))
        return Gradient(setup.batches.task.loss, (inputs, targets))
    criterion: Criterion = ways.topology(name, setup.batches, {})
    return criterion


def _source(setup: Setup, folder: RunFolder, rewind: str | int, index: int, trained: nn.Module) -> nn.Module:
    """Return the network whose weights ticket `index` begins with, on the CPU."""
    if rewind == RATE:
        return trained
    if rewind == START:
        return _new(setup)
    if rewind == NEW:
        other = setup.recipe.model_copy(update={"seed": 1000 * (setup.recipe.seed + 1) + index})
        return dense_network(other, setup.data, setup.batches)
    return _read(setup, folder, 0)


def _read(setup: Setup, folder: RunFolder, index: int) -> nn.Module:
    """Return the network that run `index` has come to, on the CPU."""
    return folder.load_model(f"members/{index}/model.safetensors", _new(setup))


def _new(setup: Setup) -> nn.Module:
    """Return the network that the loop begins with, which no run of it has touched, on the CPU."""
    return copied(setup.model).cpu()


def _distribution(recipe: Recipe) -> str:
    distribution: str = recipe.sparsify.get("distribution", "erk")
    return distribution


def _path(folder: RunFolder, index: int, name: str) -> str:
    return str((folder.path / "members" / str(index) / name).resolve())
