"""Backward passes in several threads that accumulate into one model: as one after the other."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regrow
from regrow.weights.hook import hook_of

THREADS = 4


def made(storage: str) -> tuple[nn.Module, torch.optim.Optimizer, regrow.RigL]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10)).double()
    regrow.sparsify(model, 0.6, storage=storage, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    return model, optimizer, regrow.RigL(model, optimizer, total_steps=100, update_every=1)


def parts(step: int) -> Tensor:
    return torch.randn(THREADS, 16, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(step))


def in_turn(model: nn.Module, x: Tensor) -> None:
    for part in x:
        model(part).square().mean().backward()


def at_once(model: nn.Module, x: Tensor) -> None:
    """All forward passes first, then all backward passes in threads that wait for each other between the layers."""
    losses, barrier = [model(part).square().mean() for part in x], threading.Barrier(THREADS)
    failed: list[BaseException] = []

    def run(loss: Tensor) -> None:
        try:
            barrier.wait()
            loss.backward()
        except BaseException as error:
            failed.append(error)

    running = [threading.Thread(target=run, args=(loss,)) for loss in losses]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if failed:
        raise failed[0]


@pytest.mark.parametrize("storage", ["masked", "compressed"])
def test_threads_find_what_one_finds(storage: str) -> None:
    """At every step an update, whose growth goes by the dense gradients of all threads together."""
    one, other = made(storage), made(storage)
    for step in range(12):
        for (model, optimizer, _), passes in ((one, in_turn), (other, at_once)):
            optimizer.zero_grad()
            passes(model, parts(step))
            optimizer.step()
        for first, second in zip(one[2].weights, other[2].weights, strict=True):
            assert torch.equal(first.positions(), second.positions())
            torch.testing.assert_close(first.to_dense(), second.to_dense())


@pytest.mark.parametrize("storage", ["masked", "compressed"])
def test_passes_that_are_interleaved(storage: str) -> None:
    """Each pass is held up between the gradient of the second layer and that of the first."""
    barrier = threading.Barrier(THREADS)

    class Meet(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            if threading.current_thread() is not threading.main_thread():
                barrier.wait()
            return gradients[0]

    meet = type("Layer", (nn.Module,), {"forward": lambda self, x: Meet.apply(x)})
    one, other = made(storage), made(storage)
    for (model, optimizer, method), passes in ((one, in_turn), (other, at_once)):
        model.insert(1, meet())
        model.append(meet())
        optimizer.zero_grad()
        passes(model, parts(0))
        for weight in method.weights:
            hook = hook_of(weight.parameter)
            assert hook is not None
            assert not hook.passes
            assert hook.unclaimed is None
        optimizer.step()
    for first, second in zip(one[2].weights, other[2].weights, strict=True):
        assert torch.equal(first.positions(), second.positions())


@pytest.mark.parametrize("storage", ["masked", "compressed"])
def test_passes_that_accumulate_nothing_leave_nothing(storage: str) -> None:
    model, _, method = made(storage)
    x = parts(0)[0].requires_grad_()
    torch.autograd.grad(model(x).sum(), x)
    hooks = [hook_of(weight.parameter) for weight in method.weights]
    assert all(
        hook is not None and not hook.passes and hook.unclaimed is None and hook.stash is None
        for hook in hooks
    )
