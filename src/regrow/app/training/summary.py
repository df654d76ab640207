"""What a finished run says about itself, and the machine it ran on."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import regrow
from regrow._formats import SUMMARY
from regrow.app.tasks import CLASSIFICATION, Metric, measures_of
from regrow.app.training.build import Setup
from regrow.app.training.cost import measure, tested
from regrow.app.training.evaluation import Evaluation, differences, evaluate, mean, predictions
from regrow.app.training.keep import Outcome
from regrow.app.training.progress import Status
from regrow.tickets import kind_of
from regrow.weights.storages import STORAGES

TIMES = {
    "dense": "of dense training",
    "masks": "of masks over dense weights: no faster than dense training, whatever the sparsity",
    "real sparsity": "of real sparsity: absent connections are neither stored nor computed with",
    "mixed": "of both storages: real sparsity in the compressed layers, dense cost in the masked ones",
}


@dataclass(frozen=True)
class Verdict:
    """How good a result is, and the tickets that it was made of, on what the result is tested on."""

    result: Evaluation
    tickets: Sequence[Evaluation]
    differences: dict[str, Any]
    """``overlap``, and what the task measures between two networks."""


def judge(outcome: Outcome, setup: Setup, known: Evaluation | None = None) -> Verdict:
    """Test the network of `outcome` and each of its tickets.

    Args:
        outcome: of the run.
        setup: of the run.
        known: how good the network is, where that has been tested before.
    """
    batches, precision, task = setup.batches, setup.recipe.precision, setup.batches.task
    result = known or evaluate(task, outcome.network, batches.test(batches.final), precision)
    each, found = [], []
    for ticket in outcome.tickets:
        each.append(evaluate(task, ticket, batches.test(batches.final), precision))
        if len(outcome.tickets) > 1 and task.measures.differences:
            found.append(predictions(task, ticket, batches.test(batches.final), precision))
    return Verdict(result, each, differences(task, outcome.tickets, found) if each else {})


def summarize(
    setup: Setup,
    outcome: Outcome,
    verdict: Verdict,
    status: Status,
    records: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Return the content of ``summary.json``.

    Args:
        setup: of the run.
        outcome: what it has come to.
        verdict: how good that is.
        status: at the end.
        records: of ``metrics.jsonl``.
    """
    recipe = setup.recipe
    first = recipe.first_step
    steps = status.step - first
    flops = measure(setup.model, setup.batches.example(), setup.method, records, steps, first)
    if flops is not None:
        flops |= tested(outcome.parts, setup.batches.example())
        flops["training"] += outcome.norm_passes * flops["test"] * setup.steps_per_epoch / steps
        flops["training"] += setup.tricks.flops / steps
    return {
        "format": SUMMARY,
        "recipe": recipe.name,
        "method": recipe.method.name,
        "seed": recipe.seed,
        **measured(setup, verdict.result),
        "tested_on": setup.batches.final.name,
        "tested": len(setup.batches.final),
        **size(outcome.parts),
        "steps": steps,
        "steps_per_epoch": setup.steps_per_epoch,
        "moved": status.moved,
        "seconds": round(status.seconds, 2),
        "device": recipe.device,
        "threads": recipe.threads,
        "precision": recipe.precision,
        "peak_memory_megabytes": peak_memory(),
        "flops": flops,
        "networks": len(outcome.parts),
        "tickets": about_tickets(setup, outcome, verdict),
    }


def measured(setup: Setup, result: Evaluation) -> dict[str, Any]:
    """Return the metrics of a result, with what they are where the task does not come with regrow."""
    measures = setup.batches.task.measures
    own = {} if measures == CLASSIFICATION else {"task": measures.to_dict()}
    loss = measures.loss_metric
    return {**own, **result, **({} if loss is None else {loss.kept: result[loss.name]})}


def size(networks: Sequence[nn.Module]) -> dict[str, Any]:
    """Return the size of all that a test runs."""
    found = [regrow.summary(network) for network in networks]
    dense = {STORAGES[row.storage].is_dense for row in found[0].rows if row.storage in STORAGES}
    kinds = {True: "masks", False: "real sparsity"}
    return {
        "connections": sum(one.connections for one in found),
        "parameters": sum(one.parameters for one in found),
        "sparsity": found[0].sparsity if len(found) == 1 else statistics.fmean(one.sparsity for one in found),
        "reference": found[0].reference,
        "time_is": "mixed" if len(dense) == 2 else kinds[dense.pop()] if dense else "dense",
    }


def about_tickets(setup: Setup, outcome: Outcome, verdict: Verdict) -> dict[str, Any] | None:
    """Return what is known of the tickets; None where there are none."""
    plan, part = setup.plan, setup.recipe.tickets
    if plan is None or part is None or not verdict.tickets:
        return None
    each = [
        {
            "index": index,
            "taken": step,
            **found,
            "connections": regrow.summary(ticket).connections,
        }
        for index, (ticket, step, found) in enumerate(
            zip(outcome.tickets, outcome.steps, verdict.tickets, strict=True)
        )
    ]
    return {
        "kind": part.name,
        "start": plan.start,
        "windows": plan.count,
        "length": plan.length,
        "each": each,
        "mean": mean(verdict.tickets),
        **verdict.differences,
        "norm_passes": outcome.norm_passes,
    }


def as_text(result: Mapping[str, Any]) -> str:
    """Return the content of ``summary.txt``."""
    threads = f"{result['threads']} thread" + ("s" if result["threads"] != 1 else "")
    several = f" of {result['networks']} networks" if result["networks"] > 1 else ""
    best, *further = measures_of(result).metrics
    tested = f"{best.text(result[best.name])} of {result['tested']:,} {result['tested_on']} examples"
    lines = [
        f"{best.name:12} {', '.join([tested, *_texts(further, result)])}",
        *_ticket_lines(result),
        f"connections  {result['connections']:,} in the sparse layers{several}, {result['sparsity']:.2%} of whose "
        f"weights are absent; {result['parameters']:,} parameters with everything",
        f"moved        {result['moved']:,} connections over the run",
        f"time         {result['seconds']:.1f} s of training, measured, {TIMES[result['time_is']]}",
        f"             {result['steps']:,} steps on {result['device']}, {threads}, {result['precision']}",
        *[f"             {line}" for line in (result["reference"] or "").splitlines()],
        *_costs(result),
    ]
    return "\n".join(lines)


def _ticket_lines(result: Mapping[str, Any]) -> list[str]:
    tickets = result["tickets"]
    if tickets is None:
        return []
    measures, means = measures_of(result), tickets["mean"]
    best = measures.best
    each = " ".join(best.text(one[best.name]) for one in tickets["each"])
    on_average = [best.text(means[best.name]), *_texts(measures.further, means)]
    lines = [
        f"             {kind_of(tickets['kind']).made.format(len(tickets['each']))}",
        f"tickets      {each}; mean {', '.join(on_average)}",
    ]
    said = []
    between = [metric for metric in measures.differences if tickets[metric.name] is not None]
    if between:
        said.append(f"{', '.join(_texts(between, tickets))} between two of them")
    if tickets["norm_passes"]:
        said.append(f"{tickets['norm_passes']} extra passes over the training set for batch norms")
    return lines + ([f"             {'; '.join(said)}"] if said else [])


def _texts(metrics: Sequence[Metric], found: Mapping[str, Any]) -> list[str]:
    return [f"{metric.label or metric.name} {metric.text(found[metric.name])}" for metric in metrics]


def _costs(result: Mapping[str, Any]) -> list[str]:
    lines = []
    if flops := result["flops"]:
        dense = flops["dense"]
        lines.append(
            f"FLOPs        {flops['test'] / dense:.4g}x the same network's dense for a test, counted; "
            f"{flops['training'] / (3 * dense):.4g}x for training, measured over the run"
        )
    if memory := result["peak_memory_megabytes"]:
        lines.append(f"memory       {memory:,.0f} MB at the most, measured, of the whole process")
    return lines


def peak_memory() -> float | None:
    """Return the most memory that this process has held so far, in megabytes; on CUDA devices torch's own part
    there.
    """
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0:
        return round(torch.cuda.max_memory_allocated() / 1e6, 1)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6, 1)
