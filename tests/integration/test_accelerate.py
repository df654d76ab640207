"""Accelerate: accumulation, clipping, its wrapper of the optimizer, and its checkpoints."""

from collections.abc import Iterator
from pathlib import Path

import accelerate
import pytest
import torch
from integration.loops import (
    CLIP,
    METHODS,
    OPTIMIZERS,
    STORAGES,
    UPDATES,
    History,
    assert_same,
    batches,
    network,
    plain,
)
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import regrow

STEPS, ACCUMULATE = 20, 2


@pytest.fixture
def accelerator() -> "Iterator[accelerate.Accelerator]":
    made = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATE)
    yield made
    made.free_memory()
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


def train(
    accelerator: "accelerate.Accelerator",
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: list[tuple[Tensor, Tensor]],
) -> None:
    """The loop of Accelerate's own guide."""
    for x, y in data:
        with accelerator.accumulate(model):
            accelerator.backward(cross_entropy(model(x), y))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()


def expected(method: str, storage: str, optimizer: str) -> History:
    model = network(storage)
    driven = OPTIMIZERS[optimizer](model)
    attached = METHODS[method](model, driven, total_steps=STEPS, **UPDATES)
    return plain(model, driven, attached, batches(STEPS * ACCUMULATE), accumulate=ACCUMULATE)


@pytest.mark.parametrize("attached_to", ["AcceleratedOptimizer", "the inner optimizer", "before prepare"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("method", METHODS)
def test_trains_as_the_plain_loop_does(
    method: str, storage: str, optimizer: str, attached_to: str, accelerator: "accelerate.Accelerator"
) -> None:
    model = network(storage)
    inner = OPTIMIZERS[optimizer](model)
    history = History(model)
    if attached_to == "before prepare":
        attached = METHODS[method](model, inner, total_steps=STEPS, **UPDATES)
    prepared, outer = accelerator.prepare(model, inner)
    if attached_to != "before prepare":
        driven = outer if attached_to == "AcceleratedOptimizer" else outer.optimizer
        attached = METHODS[method](prepared, driven, total_steps=STEPS, **UPDATES)
    history.follow(attached)
    train(accelerator, prepared, outer, batches(STEPS * ACCUMULATE))
    assert attached.step == STEPS
    assert_same(expected(method, storage, optimizer), history)


@pytest.mark.parametrize("attached", ["before loading", "after loading"])
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("method", METHODS)
def test_resumes_from_accelerates_checkpoint(
    method: str, storage: str, attached: str, accelerator: "accelerate.Accelerator", tmp_path: Path
) -> None:
    data = batches(STEPS * ACCUMULATE)
    half = STEPS // 2
    model, optimizer = accelerator.prepare(model := network(storage), OPTIMIZERS["adamw"](model))
    METHODS[method](model, optimizer, total_steps=STEPS, **UPDATES)
    train(accelerator, model, optimizer, data[: half * ACCUMULATE])
    accelerator.save_state(str(tmp_path))
    accelerator.free_memory()

    # another topology at first, so that nothing but the checkpoint can have brought back the right one
    model, optimizer = accelerator.prepare(model := network(storage, seed=99), OPTIMIZERS["adamw"](model))
    if attached == "before loading":
        continued = METHODS[method](model, optimizer, total_steps=STEPS, **UPDATES)
    accelerator.load_state(str(tmp_path))
    if attached == "after loading":
        continued = METHODS[method](model, optimizer, total_steps=STEPS, **UPDATES)
    assert continued.step == half
    history = History(model)
    history.follow(continued)
    train(accelerator, model, optimizer, data[half * ACCUMULATE :])
    assert_same(expected(method, storage, "adamw"), history, start=half)


def test_bfloat16_keeps_the_invariants(accelerator: "accelerate.Accelerator") -> None:
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    for storage in STORAGES:
        model = network(storage, dtype=torch.float32)
        counts = {name: int(mask.sum()) for name, mask in regrow.masks(model).items()}
        prepared, optimizer = accelerator.prepare(model, OPTIMIZERS["adamw"](model))
        history = History(model)
        history.follow(regrow.RigL(prepared, optimizer, total_steps=STEPS, **UPDATES))
        train(accelerator, prepared, optimizer, batches(STEPS, dtype=torch.float32))
        assert len(history.updates) == STEPS // 2 - 1
        for masks, weights in zip(history.masks, history.weights, strict=True):
            assert {name: int(mask.sum()) for name, mask in masks.items()} == counts
            assert not any(weights[name][~mask].any() for name, mask in masks.items())
