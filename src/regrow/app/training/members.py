"""Tickets that are whole runs, each in a folder of its own: an ensemble of independent ones, or a ticket loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from regrow.app.recipes import Part, Recipe, as_yaml, read
from regrow.app.training import loop, rounds
from regrow.app.training.build import Setup, build
from regrow.app.training.cost import tested
from regrow.app.training.evaluation import evaluate
from regrow.app.training.folder import RunFolder
from regrow.app.training.keep import Outcome, Taken, connections, together
from regrow.app.training.pixels import describe
from regrow.app.training.progress import Progress, Status
from regrow.app.training.stopping import Interrupted
from regrow.app.training.summary import Verdict, about_tickets, as_text, judge, measured, size
from regrow.data import Tensors
from regrow.tickets import Plan, TicketKind, kind_of


def train(setup: Setup, folder: RunFolder, progress: Progress) -> dict[str, Any]:
    """Train the runs that `setup` asks for in `folder`, from where they were, to the end; see `run.train`."""
    part, plan = setup.recipe.tickets, setup.plan
    if part is None or plan is None:
        raise AssertionError("one run has no members")
    try:
        return _members(setup, kind_of(part.name), plan, folder, progress)
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


def _members(
    setup: Setup, kind: TicketKind, plan: Plan, folder: RunFolder, progress: Progress
) -> dict[str, Any]:
    """Train what is left of the runs, then make of their networks what the tickets come to."""
    folder.write_json("data.json", describe(setup.data, setup.recipe.data.name))
    if kind.prunes:
        own = rounds.runs(setup.recipe, plan, folder)
    else:
        own = [member(setup.recipe, index, plan.count, folder) for index in range(plan.count)]
    lengths = [(one.last_step or setup.total_steps) - one.first_step for one in own]
    summaries = []
    for index, one in enumerate(own):
        if kind.prunes:
            rounds.prepare(setup, folder, own, index)

        def show(status: Status, *, tested: bool = False, index: int = index) -> None:
            step = sum(lengths[:index]) + status.step - own[index].first_step
            progress(replace(status, step=step, total=sum(lengths)), tested=tested)

        summaries.append(_train_member(one, folder, setup.data, show))
    return _conclude(setup, kind, plan, folder, summaries)


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
        begun = read(path / "config.yaml").model_copy(
            update={"start": recipe.start}
        )  # the folder may have moved
        return loop.train(build(begun, own.load_checkpoint(), data), own, progress)


def _conclude(
    setup: Setup,
    kind: TicketKind,
    plan: Plan,
    folder: RunFolder,
    summaries: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Read the networks of the tickets, write them, test what they come to so far, and write the summary."""
    task, precision, taken = setup.batches.task, setup.recipe.precision, Taken(setup.keeper)
    networks: list[nn.Module] = []
    (folder.path / "metrics.jsonl").unlink(missing_ok=True)  # of a run that was killed while it wrote this
    passed = 0
    for index, one in enumerate(summaries):
        passed += one["steps"]
        if index < len(summaries) - plan.count:
            continue  # of the dense network, which the first ticket came from
        network = taken.read(folder, f"members/{index}/model.safetensors")
        networks.append(network)
        shares = taken.add(folder, network, one["steps"])
        alone = evaluate(task, network, setup.batches.test(), precision)
        parts = networks if kind.result == "ensemble" else networks[-1:]
        whole = evaluate(task, together(kind, networks, task), setup.batches.test(), precision)
        record = {"kind": "ticket", "step": passed, "index": len(networks) - 1, "taken": one["steps"]}
        about = {**alone, "connections": connections(network), "overlap": shares}
        found = {**whole, "connections": sum(map(connections, parts)), "networks": len(parts)}
        folder.append("metrics.jsonl", {**record, **about, "together": found})
    parts = networks if kind.result == "ensemble" else networks[-1:]
    outcome = Outcome(together(kind, networks, task), parts, networks, taken.steps)
    if len(parts) == 1:
        folder.save_model("model.safetensors", parts[0])
    result = _summary(setup, outcome, judge(outcome, setup), summaries)
    folder.flush()
    folder.write("summary.txt", (as_text(result) + "\n").encode())
    folder.write_json("summary.json", result)
    return result


def _summary(
    setup: Setup, outcome: Outcome, verdict: Verdict, members: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the members' own summaries added up, and what all came to."""
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
        **members[-1],
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
        "networks": len(outcome.parts),
        "tickets": about_tickets(setup, outcome, verdict),
    }
