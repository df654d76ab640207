"""The traps of hooking an optimizer, each as a test."""

from __future__ import annotations

import io
import logging
from typing import Any

import pytest
import torch
from runs import assert_same_run, plain, storages
from torch import nn
from torch.optim import LBFGS, SGD, AdamW

import regrow
from regrow.testing import OPTIMIZERS, Case, Run, batch, network
from regrow.weights import sparse_weights
from regrow.weights.hook import remove_hook

METHODS = (regrow.RigL, regrow.SET)
both = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
STEPS = 60


# --- closures


@storages
@both
@pytest.mark.parametrize("keyword", [True, False])
def test_a_closure_computes_the_gradients(method: type, storage: str, keyword: bool) -> None:
    case = Case(method, storage)
    run = Run(case)
    for step in range(STEPS):

        def closure(step: int = step) -> float:
            run.optimizer.zero_grad()
            run.backward(step)
            return run.loss

        with torch.no_grad():  # the wrapper turns grad on, as torch's own optimizers do
            result = run.optimizer.step(closure=closure) if keyword else run.optimizer.step(closure)
        assert result == run.loss
    assert_same_run(run, plain(case))


class TwiceSGD(SGD):
    """Calls its closure twice in a step, as sharpness-aware minimisation does."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        with torch.enable_grad():
            closure()
            closure()
        return super().step()


class SecondCallLater(SGD):
    """Calls its closure twice, from the fifth step on once it has been tried."""

    steps = -1000

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        type(self).steps += 1
        result = super().step(closure)
        if type(self).steps > 4:
            closure()
        return result


@pytest.mark.parametrize("optimizer", [TwiceSGD, LBFGS])
def test_an_optimizer_that_needs_two_gradients_a_step_is_refused(optimizer: type) -> None:
    model = network("masked")
    before = regrow.masks(model)
    with pytest.raises(
        regrow.RegrowError, match=f"{optimizer.__name__} calls its closure more than once in a step"
    ):
        regrow.RigL(model, optimizer(model.parameters(), lr=0.1), total_steps=100, stop_fraction=0.0)
    assert all(torch.equal(mask, before[name]) for name, mask in regrow.masks(model).items())


def test_a_second_call_within_a_step_is_refused_when_it_happens() -> None:
    run = Run(Case(regrow.SET), attach=False)
    run.optimizer = SecondCallLater(run.model.parameters(), lr=0.1)
    run.method = run.case.method(run.model, run.optimizer)
    SecondCallLater.steps = 0
    topology = run.topology()
    with pytest.raises(regrow.RegrowError, match="SecondCallLater calls its closure more than once"):
        for step in range(10):
            run.optimizer.zero_grad()
            run.optimizer.step(lambda step=step: run.backward(step))
    assert run.topology() == topology


# --- steps that are none


def test_a_step_without_a_backward_pass_does_not_count() -> None:
    run = Run(Case(regrow.SET))
    assert run.method is not None
    run.optimizer.step()  # torch.distributed.checkpoint does this to fresh optimizers
    assert run.method.step == 0
    for _ in run.train(0, 3):
        pass
    run.optimizer.step()
    assert run.method.step == 3


@storages
@pytest.mark.parametrize("fused", [False, True])
def test_gradscaler_skips_a_step(storage: str, fused: bool) -> None:
    """An inf at the very step of an update: nothing is grown on it, and the update happens with the next batch."""
    model = network(storage, torch.float32)
    optimizer = AdamW(model.parameters(), lr=0.01, fused=fused)
    method = regrow.RigL(model, optimizer, total_steps=100, update_every=5)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    records: list[int] = []
    method.register_update_hook(lambda record: records.append(record["step"]))
    counted = []
    for i in range(12):
        optimizer.zero_grad()
        x, y = batch(i, torch.float32)
        loss = nn.functional.cross_entropy(model(x), y)
        before = [weight.fingerprint() for weight in sparse_weights(model)]
        weights = [weight.to_dense() for weight in sparse_weights(model)]
        scaler.scale(loss * (float("inf") if i == 5 else 1)).backward()
        scaler.step(optimizer)
        scaler.update()
        counted.append(method.step)
        if i == 5:
            assert [weight.fingerprint() for weight in sparse_weights(model)] == before
            for weight, old in zip(sparse_weights(model), weights, strict=True):
                assert torch.equal(weight.to_dense(), old)
    assert counted == [1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 11]
    assert records == [5, 10]
    assert all(weight.to_dense().isfinite().all() for weight in sparse_weights(model))


def test_gradients_that_are_not_finite_grow_nothing() -> None:
    run = Run(Case(regrow.RigL))
    for _ in run.train(0, 8):
        pass
    before = run.topology()
    run.optimizer.zero_grad()
    run.backward(8, share=float("nan"))
    with pytest.warns(UserWarning, match="the dense gradient at step 8 is not finite: the topology stays"):
        run.optimizer.step()
    assert run.topology() == before


@storages
@both
def test_an_attack_before_each_micro_batch_leaves_no_trace(method: type, storage: str) -> None:
    case = Case(method, storage)
    run, reference = Run(case), Run(case)
    for step in range(STEPS):
        for each in (run, reference):
            each.optimizer.zero_grad()
            for i in range(0, 16, 8):
                if each is run:
                    x = batch(step, run.dtype)[0][i : i + 8].requires_grad_()
                    (perturbation,) = torch.autograd.grad(run.model(x).square().sum(), x)
                    assert perturbation.any()
                each.backward(step, slice(i, i + 8), 0.5)
            each.optimizer.step()
    assert_same_run(run, reference)


# --- the step that is skipped, and gradients after it


@storages
@both
def test_gradients_can_be_logged_after_every_step(method: type, storage: str) -> None:
    run = Run(Case(method, storage))
    for _ in run.train(0, 20):
        for name, parameter in run.model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.norm().isfinite()
        for weight in run.weights:
            gradient = weight.parameter.grad
            assert gradient is not None
            assert torch.equal(weight.restrict(gradient), gradient)


def test_clipping_after_the_backward_pass_sees_sparse_gradients_and_changes_no_ranking() -> None:
    case = Case(regrow.RigL)
    run = Run(case)
    for step in range(9):
        run.optimizer.zero_grad()
        run.backward(step)
        expected = torch.stack(
            [w.take(w.parameter.grad).norm() for w in run.weights if w.parameter.grad is not None]
        )
        found = torch.nn.utils.get_total_norm(
            [w.parameter.grad for w in run.weights if w.parameter.grad is not None]
        )
        torch.testing.assert_close(found, expected.norm())
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1e-9)
        run.optimizer.step()
    unclipped = Run(case)
    for step in range(9):
        unclipped.optimizer.zero_grad()
        unclipped.backward(step)
        unclipped.optimizer.param_groups[0]["lr"] = 0.0
        unclipped.optimizer.step()
    assert run.topology() == unclipped.topology()


# --- checkpoints


@storages
def test_optimizer_state_loaded_before_the_method_is_attached(
    storage: str, caplog: pytest.LogCaptureFixture
) -> None:
    case = Case(regrow.RigL, storage)
    whole, first = plain(case, 30), plain(case, 13)
    file = io.BytesIO()
    torch.save({"model": first.model.state_dict(), "optimizer": first.optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = Run(case, attach=False)
    resumed.model.load_state_dict(saved["model"])
    resumed.optimizer.load_state_dict(saved["optimizer"])
    with caplog.at_level(logging.INFO, "regrow"):
        resumed.method = case.method(resumed.model, resumed.optimizer)
    assert "continuing at step 13" in caplog.text
    assert "13 of 240 steps made" in repr(resumed.method)
    for _ in resumed.train(13, 30):
        pass
    assert_same_run(whole, resumed)


def test_optimizer_state_of_another_length_is_an_error_that_says_to_load_the_model_first() -> None:
    first = plain(Case(regrow.RigL, "compressed"), 13)
    model = regrow.densify(network("compressed"))
    regrow.sparsify(model, 0.5, storage="compressed")
    optimizer = OPTIMIZERS["SGD with momentum"](model.parameters())
    regrow.RigL(model, optimizer, total_steps=100, stop_fraction=0.0)
    with pytest.raises(
        regrow.RegrowError, match="optimizer state `momentum_buffer` of `3.weight`.*\n.*Load the model"
    ):
        optimizer.load_state_dict(first.optimizer.state_dict())


# --- torch.compile


@storages
def test_a_compiled_model_does_not_recompile_at_update_steps(storage: str) -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    case = Case(regrow.RigL, storage)
    run, reference = Run(case), Run(case)
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(run.model, fullgraph=True, backend=counter)
    updates: list[int] = []
    assert run.method is not None
    run.method.register_update_hook(lambda record: updates.append(record["step"]))
    for step in range(30):
        for each, model in ((run, compiled), (reference, reference.model)):
            each.optimizer.zero_grad()
            x, y = batch(step, each.dtype)
            nn.functional.cross_entropy(model(x), y).backward()
            each.optimizer.step()
        assert run.topology() == reference.topology(), step
    assert updates == [8, 16, 24]
    assert counter.frame_count == 1
    for a, b in zip(run.dense(), reference.dense(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_model_that_lost_its_hooks_gets_them_when_it_is_compiled() -> None:
    torch._dynamo.reset()
    model = network("masked")
    for weight in sparse_weights(model):  # as some conversions do
        remove_hook(weight.parameter)
    torch.compile(model, fullgraph=True)(batch(0, torch.float64)[0]).sum().backward()
    for weight in sparse_weights(model):
        assert weight.parameter.grad is not None
        assert torch.equal(weight.restrict(weight.parameter.grad), weight.parameter.grad)


def test_a_compiled_step_does_not_recompile_at_every_count() -> None:
    torch._dynamo.reset()
    run = Run(Case(regrow.SET, options={"update_every": 4}))
    compiled = torch.compile(run.optimizer.step)
    reference = Run(run.case)
    for _ in reference.train(0, 40):
        pass

    def train(start: int, stop: int) -> None:
        for step in range(start, stop):
            run.optimizer.zero_grad()
            run.backward(step)
            compiled()

    train(0, 4)  # state appears, and the count is found to change
    with torch._dynamo.config.patch(error_on_recompile=True):
        train(4, 40)
    assert run.topology() == reference.topology()
