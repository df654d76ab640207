"""From a resolved recipe to the objects of a run, each after what it needs."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

import regrow
from regrow.data import Tensors, check_dataset
from regrow.errors import RegrowError, RegrowValueError
from regrow.recipes import Part, Rate, Recipe, find


@dataclass
class Setup:
    """What a run is made of. `recipe` has device and threads filled in."""

    recipe: Recipe
    data: Tensors
    model: nn.Module
    optimizer: torch.optim.Optimizer
    method: Any
    """None for a dense network."""
    rate: Rate
    device: torch.device
    total_steps: int
    steps_per_epoch: int
    checkpoint: dict[str, Any] | None
    """What the run continues from."""


def build(recipe: Recipe, checkpoint: dict[str, Any] | None = None) -> Setup:
    """All that `recipe` names, as it was in `checkpoint`; sets seeds and threads.

    Raises:
        RegrowError: for anything in the recipe that cannot be, before anything is written.
    """
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    device = _device(recipe.device)
    data = check_dataset(_make("data", recipe.data), recipe.data.name)
    steps_per_epoch = len(data.train_inputs) // recipe.batch_size
    if steps_per_epoch == 0:
        raise RegrowValueError(
            f"`batch_size` must be at most the {len(data.train_inputs)} training examples, got {recipe.batch_size}"
        )
    total = recipe.steps or (recipe.epochs or 0) * steps_per_epoch
    rate = _make("schedule", recipe.schedule, total)
    seed_everything(recipe.seed)
    model = _model(recipe, data).to(device)
    if checkpoint:
        model.load_state_dict(checkpoint["model"])
    optimizer = _make("optimizer", recipe.optimizer, model.parameters())
    if checkpoint:
        optimizer.load_state_dict(checkpoint["optimizer"])
    method = None if recipe.dense else _make("method", recipe.method, model, optimizer, total_steps=total)
    filled = recipe.model_copy(update={"device": str(device), "threads": torch.get_num_threads()})
    return Setup(filled, data, model, optimizer, method, rate, device, total, steps_per_epoch, checkpoint)


def _model(recipe: Recipe, data: Tensors) -> nn.Module:
    """The network, sparse unless the recipe says dense."""
    model = _make("model", recipe.model)
    if not isinstance(model, nn.Module):
        raise RegrowValueError(f"`model` {recipe.model.name} returned {model!r}, no torch module")
    _check_shapes(model, data, recipe)
    if recipe.dense:
        return model
    if not recipe.sparsify:
        raise RegrowValueError(
            f"`sparsify` is missing: method {recipe.method.name} needs a sparse model\n"
            "Add `sparsify: {sparsity: 0.9}`, or train without sparsity with `method: dense`."
        )
    return regrow.sparsify(model, **recipe.sparsify)


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


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).splitlines()[0]
        raise RegrowValueError(f"`device` {name!r} is not here: {reason}\nUse auto or cpu.") from error
    return device


def _check_shapes(model: nn.Module, data: Tensors, recipe: Recipe) -> None:
    """Two examples through the model, so that a wrong size is an error that names both sides."""
    training, state = model.training, torch.get_rng_state()
    try:
        with torch.no_grad():
            logits = model.eval()(data.test_inputs[:2])
    except RuntimeError as error:
        raise RegrowValueError(
            f"`model` {recipe.model.name} does not take examples of shape {list(data.train_inputs.shape[1:])} "
            f"from `data` {recipe.data.name}: {error}"
        ) from error
    finally:
        model.train(training)
        torch.set_rng_state(state)
    if logits.dim() != 2 or logits.shape[1] < data.classes:
        raise RegrowValueError(
            f"`model` {recipe.model.name} must return logits [N, {data.classes}] for the {data.classes} classes of "
            f"`data` {recipe.data.name}, got {list(logits.shape)}"
        )
