"""The checks of what a method does in training: each a function ``(case)`` that raises `AssertionError`."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from regrow.methods.state import companions
from regrow.sparsity.core import densify, masks, sparsify
from regrow.testing.contract import refused
from regrow.testing.runs import EVERY, OPTIMIZERS, STEPS, Case, Run
from regrow.weights import SparseWeight, hook_of, stamp
from regrow.weights.storages import STORAGES


def check_invariants(case: Case) -> None:
    """Check after every step: counts, zeros, what an update touches, what it leaves alone."""
    for name in OPTIMIZERS:
        for autocast in (False, True):
            _check_invariants(case, name, autocast)


def _check_invariants(case: Case, optimizer_name: str, autocast: bool) -> None:
    run = Run(case, torch.float32, optimizer_name, attach=False)
    before: list[dict[int, list[Tensor]]] = []
    run.optimizer.register_step_pre_hook(lambda *_: before.append(_snapshot(run)))
    run.optimizer.register_step_post_hook(lambda *_: before.append(_snapshot(run)))
    run.method = method = case.method(run.model, run.optimizer)
    records: list[dict[str, Any]] = []
    method.register_update_hook(records.append)
    where = f"{case.cls.__name__}, {case.storage}, {optimizer_name}, {'bfloat16' if autocast else 'float32'}"
    previous = [weight.positions() for weight in run.weights]
    expected_updates = 0
    for step in run.train(0, STEPS, autocast=autocast):
        updated = bool(records) and records[-1]["step"] == step
        expected_updates += method.is_update(step)
        assert updated == method.is_update(step), f"{where}: update at step {step}: {updated}"
        moves = any(not torch.equal(w.positions(), p) for w, p in zip(run.weights, previous, strict=True))
        for i, weight in enumerate(run.weights):
            at = f"{where}, step {step}, `{weight.name}`"
            _check_zeros(run, weight, at)
            if not updated or weight.name not in records[-1]["layers"]:
                assert torch.equal(weight.positions(), previous[i]), (
                    f"{at}: the topology moved without an update"
                )
                continue
            moved = records[-1]["layers"][weight.name]
            count = len(previous[i]) - moved["dropped"] + moved["grown"]
            assert weight.nnz == count, f"{at}: {weight.nnz} connections, the record says {count}"
            pattern = weight.record.pattern
            kept = pattern is None or pattern.holds(weight.shape, weight.positions())
            assert kept, f"{at}: the pattern {pattern} is lost"
            rested = method.skip_step and moves  # not where nothing was to be moved
            snapshot = before[0] if rested else before[1]
            _check_move(run, weight, previous[i], snapshot[i], at)
        previous = [weight.positions() for weight in run.weights]
        before.clear()
    assert len(records) == expected_updates, f"{where}: {len(records)} updates, {expected_updates} expected"


def _tensors(run: Run, weight: SparseWeight) -> list[Tensor]:
    """Return the parameter and the optimizer's state of its shape."""
    gradient, weight.parameter.grad = weight.parameter.grad, None
    state = companions(run.optimizer, weight)
    weight.parameter.grad = gradient
    return [weight.parameter.detach(), *state.values()]


def _snapshot(run: Run) -> dict[int, list[Tensor]]:
    return {i: [t.clone() for t in _tensors(run, w)] for i, w in enumerate(run.weights)}


def _entries(weight: SparseWeight, tensor: Tensor) -> Tensor:
    """Return the entries of the active connections, after a check that all others, but for a stamp, are exactly
    zero.
    """
    active = weight.take(tensor)
    if not weight.is_dense:
        tensor, mark = tensor.split([len(tensor) - stamp.SIZE, stamp.SIZE])
        assert float(mark.abs().max()) < stamp.STRANGE, "a stamp is large enough to matter"
    assert int(tensor.count_nonzero()) == int(active.count_nonzero()), "an inactive entry is not zero"
    return active


def _check_zeros(run: Run, weight: SparseWeight, at: str) -> None:
    gradient, beside = weight.parameter.grad, _trained_beside(weight)
    own, *state = _tensors(run, weight)
    for tensor in [
        own,
        *(t.masked_fill(beside, 0) for t in [*state, *([] if gradient is None else [gradient])]),
    ]:
        try:
            _entries(weight, tensor)
        except AssertionError as error:
            raise AssertionError(f"{at}: {error}") from None


def _trained_beside(weight: SparseWeight) -> Tensor:
    """Find the entries of the parameter without a connection that have a gradient and state all the same."""
    hook = hook_of(weight.parameter)
    if hook is None or hook.reach is None:
        return torch.zeros_like(weight.parameter, dtype=torch.bool)
    return hook.reach & ~weight.mask()


def _check_move(run: Run, weight: SparseWeight, before: Tensor, snapshot: list[Tensor], at: str) -> None:
    """Check that kept connections keep value and state, bit for bit, and new ones start at zero in both.

    Where a method trains more than the connections, new ones have what was trained.
    """
    now = weight.positions()
    kept, new = torch.isin(now, before), ~torch.isin(now, before)
    was_kept = torch.isin(before, now)
    hook = hook_of(weight.parameter)
    fresh = hook is None or hook.reach is None
    for old, tensor in zip(snapshot, _tensors(run, weight), strict=True):
        old_active = weight.take_former(old, before)
        active = weight.take(tensor)
        assert torch.equal(active[kept], old_active[was_kept]), f"{at}: the update touched a kept connection"
        assert not (fresh and active[new].any()), f"{at}: a new connection does not start at zero"


def check_calendar(case: Case) -> None:
    """Check that updates are where ``next_update`` says, never at step 0, and keep the number of connections."""
    run = Run(case)
    assert run.method is not None
    records: list[dict[str, Any]] = []
    run.method.register_update_hook(records.append)
    announced = set()
    for _ in run.train(0, STEPS):
        if run.method.next_update is not None:
            announced.add(run.method.next_update)
    steps = [record["step"] for record in records]
    assert set(steps) == announced, f"updates at {steps}, announced were {sorted(announced)}"
    assert 0 not in steps, "an update at step 0"
    assert not steps or steps[-1] == run.method.last_update, f"last update at {steps[-1:]}"


def check_reproducible(case: Case) -> None:
    """Check that the same seed gives the same run, bit for bit."""
    one, two = Run(case), Run(case)
    for _ in zip(one.train(0, STEPS), two.train(0, STEPS), strict=True):
        pass
    _assert_same(one, two, "two runs of one seed")


def _assert_same(one: Run, two: Run, what: str) -> None:
    assert one.topology() == two.topology(), f"{what}: the topologies differ"
    for a, b in zip(one.dense(), two.dense(), strict=True):
        assert torch.equal(a, b), f"{what}: the weights differ by {float((a - b).abs().max()):g}"


def check_resume(case: Case) -> None:
    """Check that model and optimizer, saved and loaded at any step, continue the same run bit for bit."""
    whole, cut = Run(case), Run(case)
    middle = 3 * EVERY - 1  # one step before an update
    for _ in whole.train(0, STEPS):
        pass
    for _ in cut.train(0, middle):
        pass
    for attach_first in (True, False):
        resumed = Run(case, attach=attach_first)
        saved = copy.deepcopy((cut.model.state_dict(), cut.optimizer.state_dict()))
        resumed.model.load_state_dict(saved[0])
        resumed.optimizer.load_state_dict(saved[1])
        if not attach_first:
            resumed.method = case.method(resumed.model, resumed.optimizer)
        assert resumed.method is not None
        assert resumed.method.step == middle, f"continues at step {resumed.method.step}, not {middle}"
        for _ in resumed.train(middle, STEPS):
            pass
        _assert_same(
            whole, resumed, f"resumed, method attached {'before' if attach_first else 'after'} loading"
        )


def check_micro_batches(case: Case) -> None:
    """Check that a batch in four parts gives the same topology as the batch at once, in float64."""
    whole, parts = Run(case), Run(case)
    for step in whole.train(0, 10 * EVERY):
        parts.optimizer.zero_grad()
        for i in range(0, 16, 4):
            parts.backward(step, slice(i, i + 4), 0.25)
        parts.optimizer.step()
        assert whole.topology() == parts.topology(), f"micro-batches: another topology at step {step}"


def check_thrown_away(case: Case) -> None:
    """Check that a backward pass that is thrown away, with inf in its gradient, leaves no trace."""
    plain, disturbed = Run(case), Run(case)
    for step in plain.train(0, 10 * EVERY):
        disturbed.optimizer.zero_grad()
        disturbed.backward(step, share=float("inf"))
        disturbed.optimizer.zero_grad()
        disturbed.backward(step)
        disturbed.optimizer.step()
        assert plain.topology() == disturbed.topology(), f"thrown away: another topology at step {step}"
    _assert_same(plain, disturbed, "a backward pass thrown away")


def check_both_storages(case: Case) -> None:
    """Check in float64 that masked and compressed storage choose the same topologies and agree in weights.

    A storage that the method does not run on is refused.
    """
    others = [storage for storage in STORAGES if storage not in case.storages]
    for storage in others:
        with refused(case.storages[0]):
            Run(replace(case, storage=storage))
    if not {"masked", "compressed"} <= set(case.storages):
        return
    compressed = Run(replace(case, storage="compressed"))
    masked = Run(replace(case, storage="compressed"), attach=False)
    masked.model = _in_masked_storage(masked.model, case.pattern or case.cls.pattern)
    masked.optimizer = OPTIMIZERS[masked.optimizer_name](masked.model.parameters())
    masked.method = case.method(masked.model, masked.optimizer)
    for step in compressed.train(0, STEPS):
        next(masked.train(step, step + 1))
        assert masked.topology() == compressed.topology(), f"masked and compressed part at step {step}"
        for a, b in zip(masked.dense(), compressed.dense(), strict=True):
            assert torch.allclose(a, b, rtol=0, atol=1e-9), (
                f"weights differ by {float((a - b).abs().max()):g}"
            )


def _in_masked_storage(model: nn.Module, pattern: str | tuple[int, int] | None) -> nn.Module:
    """Return the same network, initial weights and topology in masked storage."""
    topology = masks(model)
    return sparsify(densify(model), init=topology, include=list(topology), storage="masked", pattern=pattern)


def check_learns(case: Case) -> None:
    """Check that the last twenty steps have a lower loss than the first twenty; what has grown gets time to learn.

    On 16 networks of this kind SNFS ends at 0.72 to 0.96 of it; a run that learns nothing ends at 0.99.
    """
    options = {"update_every": 5 * EVERY} if "update_every" in case.arguments else {}
    run = Run(replace(case, options={**options, **case.options}), torch.float32)
    losses = [run.loss for _ in run.train(0, STEPS)]
    first, last = sum(losses[:20]) / 20, sum(losses[-20:]) / 20
    assert last < 0.97 * first, f"the loss went from {first:.3f} to {last:.3f}"


def check_copies(case: Case) -> None:
    """Check that a deep copy of the model trains on by itself, with hooks of its own."""
    run = Run(case)
    for _ in run.train(0, 2 * EVERY):
        pass
    copied = Run(case, attach=False)
    copied.model = copy.deepcopy(run.model)
    copied.optimizer = OPTIMIZERS[copied.optimizer_name](copied.model.parameters())
    before = run.dense()
    copied.method = case.method(copied.model, copied.optimizer)
    for _ in copied.train(0, 2 * EVERY):
        for weight in copied.weights:
            _check_zeros(copied, weight, f"a copy, `{weight.name}`")
    for a, b in zip(before, run.dense(), strict=True):
        assert torch.equal(a, b), "training a copy changed the original"


def check_detach(case: Case) -> None:
    """Check that the topology rests after `detach`, and that another method may be attached."""
    run = Run(case)
    assert run.method is not None
    for _ in run.train(0, 2 * EVERY):
        pass
    run.method.detach()
    topology = run.topology()
    for _ in run.train(2 * EVERY, 5 * EVERY):
        assert run.topology() == topology, "the topology moved after detach"
    again = case.method(run.model, run.optimizer)
    assert again.step == 0, f"a method attached after detach starts at step {again.step}"
