"""From a resolved recipe to the objects of a run, each after what it needs."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import regrow
from regrow.app.recipes import Part, Rate, Recipe, find, method_of
from regrow.app.tasks import Carried, Model, Task, require_state
from regrow.app.training import ways
from regrow.app.training.batches import Batches
from regrow.app.training.checkpoint import require_topology, restoring
from regrow.app.training.folder import RunFolder
from regrow.app.training.groups import parameter_groups
from regrow.app.training.keep import Keeper, keeper
from regrow.app.training.tricks import Tricks
from regrow.data import Samples, Tensors, Text, check_dataset
from regrow.errors import RegrowError, RegrowValueError
from regrow.tickets import Plan, kind_of
from regrow.tricks import has_ghosts
from regrow.weights import sparse_weights


@dataclass
class Setup:
    """What a run is made of. `recipe` has device and threads filled in."""

    recipe: Recipe
    data: Tensors
    batches: Batches
    model: nn.Module
    optimizer: torch.optim.Optimizer
    method: Any
    """None for a dense network."""
    plan: Plan | None
    """When tickets are made; None where none are."""
    keeper: Keeper
    tricks: Tricks
    objective: Task
    """The task as it is trained on: of the data, with the recipe's `label_smoothing`; `tricks` may smooth it too."""
    passes: list[Model]
    """What a training step calls, for each part of its batch: those of streams carry a state."""
    rate: Rate
    device: torch.device
    total_steps: int
    """The step before which the run ends: its length, unless `last_step` is given."""
    steps_per_epoch: int
    checkpoint: dict[str, Any] | None
    """What the run continues from."""


def build(recipe: Recipe, checkpoint: dict[str, Any] | None = None, data: Tensors | None = None) -> Setup:
    """Return all that `recipe` names, as it was in `checkpoint`; sets seeds and threads.

    Args:
        recipe: resolved.
        checkpoint: of the run that is to go on.
        data: what the recipe's data part makes, where it is at hand.

    Raises:
        RegrowError: for anything in the recipe that cannot be, before anything is written.
    """
    if recipe.never_dense:
        # large pages, five times faster: torch asks for them if told before its first large tensor
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    device = device_of(recipe.device)
    data = check_dataset(_make("data", recipe.data), recipe.data.name) if data is None else data
    batches = Batches(data, recipe, device)
    _check_samples(recipe, data)
    steps_per_epoch = batches.steps_per_epoch
    total = recipe.steps or (recipe.epochs or 0) * steps_per_epoch
    end = _last_step(recipe, total)
    plan: Plan | None = _make("tickets", recipe.tickets, total, steps_per_epoch) if recipe.tickets else None
    tricks = Tricks(recipe, batches, total, checkpoint["status"]["step"] if checkpoint else 0)
    build_network = tricks.beginning(partial(dense_network, recipe, data, batches))
    model = ways.network(recipe, batches, build_network).to(device)
    tricks.masked(model)
    tricks.put_in(model, plan)
    fuse(model)
    if checkpoint:
        with restoring("model"):
            require_topology(model, checkpoint["model"])
            model.load_state_dict(checkpoint["model"])
    optimizer = _make("optimizer", recipe.optimizer, parameter_groups(model, recipe.no_decay))
    if checkpoint:
        with restoring("optimizer"):
            optimizer.load_state_dict(checkpoint["optimizer"])
        tricks.load_state_dict(checkpoint.get("tricks", {}))
    tricks.drive(optimizer)
    task = batches.task
    passes = [task.carrying(model, compiled=recipe.compile) for _ in range(recipe.accumulate)]
    if checkpoint:
        _restore_states(passes, checkpoint, batches)
    method_steps = end - recipe.first_step if plan is None else plan.method_steps
    method = _method(recipe, model, optimizer, method_steps, build_network)
    kept = keeper(recipe, batches, model, method, plan)
    if checkpoint:
        with restoring("keeper"):
            kept.load_state_dict(checkpoint.get("keeper", {}))
    return Setup(
        recipe=recipe.model_copy(update={"device": str(device), "threads": torch.get_num_threads()}),
        data=data,
        batches=batches,
        model=model,
        optimizer=optimizer,
        method=method,
        plan=plan,
        keeper=kept,
        tricks=tricks,
        objective=task.smoothed(recipe.label_smoothing) if recipe.label_smoothing else task,
        passes=passes,
        rate=_rate(recipe, plan, total),
        device=device,
        total_steps=end,
        steps_per_epoch=steps_per_epoch,
        checkpoint=checkpoint,
    )


def fuse(model: nn.Module) -> None:
    """Let sparse layers do what follows them, where no ghost stands in between."""
    if any(not weight.is_dense for weight in sparse_weights(model)) and not has_ghosts(model):
        regrow.fuse(model)


def calendar(setup: Setup) -> str:
    """Return a line on when the tickets of a run are made; nothing where none are."""
    plan, part = setup.plan, setup.recipe.tickets
    if plan is None or part is None:
        return ""
    if kind_of(part.name).independent:
        dense = "a dense run and then " if kind_of(part.name).prunes else ""
        return f"tickets {part.name}: {dense}{plan.count} runs of {plan.length:,} steps\n"
    return (
        f"tickets {part.name}: {plan.count} windows of {plan.length:,} steps after the first {plan.start:,} of "
        f"{setup.total_steps:,}\n"
    )


def _rate(recipe: Recipe, plan: Plan | None, total: int) -> Rate:
    """Return the schedule up to the first window, which has rates of its own; milestones keep their share of the
    way.
    """
    end = total if plan is None else plan.start
    options = recipe.schedule.options
    milestones = options.get("milestones")
    if end < total and isinstance(milestones, list) and all(isinstance(at, int) for at in milestones):
        options["milestones"] = [at * end // total for at in milestones]
    rate: Rate = _make("schedule", Part(name=recipe.schedule.name, **options), end)
    return rate


def dense_network(recipe: Recipe, data: Tensors, batches: Batches, **options: Any) -> nn.Module:
    """Return the recipe's network as its runs begin with it, the same at each call: new, or what is in `start`.

    Args:
        recipe: resolved.
        data, batches: of the run, whose examples it must take.
        options: of the model, in the place of the recipe's own.
    """
    seed_everything(recipe.seed)
    with torch.device("meta") if recipe.never_dense else nullcontext():
        model = _make("model", Part(name=recipe.model.name, **{**recipe.model.options, **options}))
    if not isinstance(model, nn.Module):
        raise RegrowValueError(f"`model` {recipe.model.name} returned {model!r}, no torch module")
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if recipe.start is not None:
        file = Path(recipe.start)
        if not file.is_file():
            raise RegrowValueError(f"`start` {file}: no such file\nGive a run's model.safetensors.")
        RunFolder(file.parent).load_model(file.name, model)
    _check_shapes(model, data, batches, recipe)
    return model


def _last_step(recipe: Recipe, total: int) -> int:
    """Return the step before which a run ends whose schedule has `total` steps.

    Raises:
        RegrowValueError: steps that are not within them.
    """
    last = total if recipe.last_step is None else recipe.last_step
    for key, step, most in (("last_step", last, total), ("first_step", recipe.first_step, last - 1)):
        if step > most:
            raise RegrowValueError(
                f"`{key}` must be at most {most:,} in a run of {total:,} steps, got {step:,}"
            )
    return last


def _method(recipe: Recipe, model: nn.Module, optimizer: Any, total: int, network: ways.Build) -> Any:
    """Attach what drives the network; None for a dense one."""
    record = method_of(recipe.method)
    if record.driver is None or ways.prunes(recipe):
        return None
    if record.is_topology:
        return record.driver(model, optimizer, total_steps=total)
    prunes = record.initial_sparsity is not None
    further = {"final_sparsity": ways.final_sparsities(recipe, network)} if prunes else {}
    return _make("method", recipe.method, model, optimizer, total_steps=total, **further)


def seed_everything(seed: int) -> None:
    """Seed torch, numpy and Python, whose generators a user's own model or data may use."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def _make(key: str, part: Part, *args: Any, **kwargs: Any) -> Any:
    """Call what `part` names; what a built-in refuses becomes an error that names the recipe's key."""
    function: Callable[..., Any] = find(key, part)
    if ":" in part.name:
        return function(*args, **kwargs, **part.options)  # a user's own: its traceback is what they need
    try:
        return function(*args, **kwargs, **part.options)
    except RegrowError:
        raise
    except (TypeError, ValueError) as error:
        raise RegrowValueError(f"`{key}` {part.name} with {part.options}: {error}") from error


def device_of(name: str) -> torch.device:
    """Find the device that a recipe's `device` names.

    Raises:
        RegrowValueError: it is not here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).splitlines()[0]
        raise RegrowValueError(f"`device` {name!r} is not here: {reason}\nUse auto or cpu.") from error
    return device


def _check_samples(recipe: Recipe, data: Tensors) -> None:
    """Refuse samples of what is not a text, or with a prompt that its vocabulary does not have."""
    if not isinstance(data, Text):
        if recipe.samples:
            raise RegrowValueError(
                f"`samples` are of text, and `data` {recipe.data.name} is not\nLeave `samples` out."
            )
        return
    data.vocabulary.encode(Samples(**recipe.samples).prompt, "samples.prompt")


def _restore_states(passes: list[Model], checkpoint: dict[str, Any], batches: Batches) -> None:
    """Put back the states that networks carry through a text."""
    carried = [one for one in passes if isinstance(one, Carried)]
    step = checkpoint["status"]["step"]
    if not carried or step % batches.steps_per_epoch == 0:  # each epoch begins without a state
        return
    inputs, _ = batches.train(step)
    with restoring("carried"):
        states = checkpoint["carried"]
        if len(states) != len(carried):
            raise RegrowValueError(f"there are {len(states)} states, and `accumulate` is {len(carried)}")
        for one, state, some in zip(carried, states, inputs.chunk(len(carried)), strict=True):
            one.state = require_state(one.network, state, some)


def _check_shapes(model: nn.Module, data: Tensors, batches: Batches, recipe: Recipe) -> None:
    """Pass two examples through the model, so that a wrong size is an error that names both sides."""
    training, state = model.training, torch.get_rng_state()
    examples = batches.example(2).to(next((p.device for p in model.parameters()), torch.device("cpu")))
    if isinstance(data, Text):
        examples[:, -1] = len(data.vocabulary) - 1  # which may be rare, and be met late
    called = batches.task.carrying(model)
    try:
        with torch.no_grad():
            outputs = model.eval()(examples)
            if called is not model:
                _check_carried(called, examples, outputs, recipe)
    except RuntimeError as error:
        raise RegrowValueError(
            f"`model` {recipe.model.name} does not take examples of shape {list(examples.shape[1:])} "
            f"from `data` {recipe.data.name}: {error}"
        ) from error
    except IndexError as error:
        if not isinstance(data, Text):
            raise
        count = len(data.vocabulary)
        raise RegrowValueError(
            f"`model` {recipe.model.name} does not take all {count:,} {data.vocabulary.unit} of the vocabulary of "
            f"`data` {recipe.data.name}: {error}\nMake its embedding and its outputs that many; the networks of regrow "
            f"have `model.classes={count}`."
        ) from error
    finally:
        model.train(training)
        torch.set_rng_state(state)
    targets = batches.task.targets(data.test_targets[:2].to(outputs.device))
    batches.task.check(outputs, targets, recipe.model.name, recipe.data.name)


def _check_carried(called: Model, examples: Tensor, outputs: Tensor, recipe: Recipe) -> None:
    """Pass the examples through the model with its state, twice: without one, and with that which it returned."""
    for _ in range(2):
        found = called(examples)
        if found.shape != outputs.shape:
            raise RegrowValueError(
                f"`with_state` of `model` {recipe.model.name} must return outputs of the shape that the model itself "
                f"returns, {list(outputs.shape)}, got {list(found.shape)}"
            )
