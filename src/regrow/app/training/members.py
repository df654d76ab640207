"""Ensembles of independent runs: each member is a run folder of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from regrow.app.recipes import Part, Recipe, as_yaml, read
from regrow.app.training import loop
from regrow.app.training.build import Setup, build
from regrow.app.training.cost import tested
from regrow.app.training.evaluation import evaluate
from regrow.app.training.folder import RunFolder
from regrow.app.training.keep import Outcome, Taken, connections
from regrow.app.training.pixels import describe
from regrow.app.training.progress import Progress, Status
from regrow.app.training.stopping import Interrupted
from regrow.app.training.summary import Verdict, about_tickets, as_text, judge, measured, size
from regrow.data import Tensors


def train(setup: Setup, folder: RunFolder, progress: Progress) -> dict[str, Any]:
    """Train the members of the ensemble `setup` in `folder`, from where they were, to the end; see `run.train`."""
    try:
        return _members(setup, folder, progress)
    except Interrupted as error:
        raise Interrupted(
            f"{str(error).splitlines()[0]}\nContinue with `regrow train --resume {folder.path}`."
        ) from error


def member(recipe: Recipe, index: int, count: int, folder: RunFolder) -> Recipe:
    """Return the recipe of member `index` of `count`: an ordinary run with a seed of its own.

    Seeds are ``count * seed + index``, so that ensembles of other seeds share no member. With `validation`, a member
    is its best checkpoint on the examples held out.
    """
    seed = count * recipe.seed + index
    method = {**recipe.method.options, **({"seed": seed} if "seed" in recipe.method.options else {})}
    sparsify = {**recipe.sparsify, **({"seed": seed} if recipe.sparsify else {})}
    held_out = recipe.validation is not None
    changes = {
        "tickets": None,
        "seed": seed,
        "method": Part(name=recipe.method.name, **method),
        "sparsify": sparsify,
        "keep": "best" if held_out else "last",
        "test_on": recipe.tested_on if held_out else None,
        "out": str(folder.path / "members" / str(index)),
    }
    return recipe.model_copy(update=changes)


def _members(setup: Setup, folder: RunFolder, progress: Progress) -> dict[str, Any]:
    """Train what is left of the members, then make the ensemble."""
    count = setup.plan.count if setup.plan else 0
    folder.write_json("data.json", describe(setup.data, setup.recipe.data.name))
    summaries = []
    for index in range(count):

        def show(status: Status, *, tested: bool = False, index: int = index) -> None:
            step, total = status.step + index * setup.total_steps, count * setup.total_steps
            progress(replace(status, step=step, total=total), tested=tested)

        own = member(setup.recipe, index, count, folder)
        summaries.append(_train_member(own, folder, setup.data, show))
    return _ensemble(setup, folder, summaries)


def _train_member(recipe: Recipe, folder: RunFolder, data: Tensors, progress: Progress) -> dict[str, Any]:
    """Train a member from where it was, if it is not finished, and return its summary."""
    config = as_yaml(recipe)
    path = Path(recipe.out or "")
    if not (path / "config.yaml").is_file():
        about = folder.path / "environment.json"
        with RunFolder.create(
            config, str(path), "", folder.read(about.name) if about.is_file() else {}
        ) as own:
            return loop.train(build(recipe, data=data), own, progress)
    with RunFolder.open(path) as own:
        if own.finished:
            return own.summary()
        return loop.train(build(read(path / "config.yaml"), own.load_checkpoint(), data), own, progress)


def _ensemble(setup: Setup, folder: RunFolder, summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Read the members' networks, write them as tickets, test them together, and write the summary."""
    task, taken, networks = setup.batches.task, Taken(setup.keeper), []
    (folder.path / "metrics.jsonl").unlink(missing_ok=True)  # of a run that was killed while it wrote this
    for index, one in enumerate(summaries):
        network = taken.read(folder, f"members/{index}/model.safetensors")
        shares = taken.add(folder, network, one["steps"])
        networks.append(network)
        together = evaluate(task, task.ensemble(networks), setup.batches.test(), setup.recipe.precision)
        alone = evaluate(task, network, setup.batches.test(), setup.recipe.precision)
        record = {"kind": "ticket", "step": (index + 1) * one["steps"], "index": index, "taken": one["steps"]}
        own = {**alone, "connections": connections(network), "overlap": shares}
        found = {**together, "connections": sum(map(connections, networks)), "networks": index + 1}
        folder.append("metrics.jsonl", {**record, **own, "together": found})
    outcome = Outcome(task.ensemble(networks), networks, networks, taken.steps)
    result = _summary(setup, outcome, judge(outcome, setup), summaries)
    folder.flush()
    folder.write("summary.txt", (as_text(result) + "\n").encode())
    folder.write_json("summary.json", result)
    return result


def _summary(
    setup: Setup, outcome: Outcome, verdict: Verdict, members: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the members' own summaries added up, and what the ensemble came to."""
    steps = sum(one["steps"] for one in members)
    found = [one["flops"] for one in members]
    flops = None
    if all(found):
        flops = {
            "dense": found[0]["dense"],
            "least": min(one["least"] for one in found),
            "most": max(one["most"] for one in found),
            "training": sum(one["training"] * m["steps"] for one, m in zip(found, members, strict=True))
            / steps,
            **tested(outcome.parts, setup.batches.example()),
        }
    memory = [one["peak_memory_megabytes"] for one in members if one["peak_memory_megabytes"]]
    return {
        **members[0],
        "seed": setup.recipe.seed,
        **measured(setup, verdict.result),
        "tested_on": setup.batches.final.name,
        "tested": len(setup.batches.final),
        **size(outcome.parts),
        "steps": steps,
        "moved": sum(one["moved"] for one in members),
        "seconds": round(sum(one["seconds"] for one in members), 2),
        "peak_memory_megabytes": max(memory, default=None),
        "flops": flops,
        "networks": len(members),
        "tickets": about_tickets(setup, outcome, verdict),
    }
