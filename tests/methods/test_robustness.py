"""What users do to models and optimizers around a method."""

from __future__ import annotations

import copy
import gc
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import storages
from torch import Tensor, nn
from torch.optim import SGD, Muon
from torch.optim.swa_utils import AveragedModel

import regrow
from regrow.testing import Case, Run, batch, network
from regrow.weights import hook_of, sparse_weights


def two(storage: str = "masked", sparsity: float = 0.8) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10))
    regrow.sparsify(model, sparsity, "uniform", include="*", storage=storage)
    return model


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, start: int = 0) -> None:
    for step in range(start, start + steps):
        optimizer.zero_grad()
        x = torch.randn(8, 20, generator=torch.Generator().manual_seed(step))
        model(x).square().sum().backward()
        optimizer.step()


def steps_of(method: regrow.Method) -> list[int]:
    seen: list[int] = []
    method.register_update_hook(lambda record: seen.append(record["step"]))
    return seen


class Nested(SGD):
    """An optimizer whose step calls its parent's: torch hooks both."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        return super().step(closure)


@storages
@pytest.mark.parametrize("method", [regrow.RigL, regrow.SET])
def test_an_optimizer_that_calls_its_parents_step(method: type[regrow.Dynamic], storage: str) -> None:
    runs = []
    SGD([nn.Parameter(torch.zeros(1))], lr=0.1)  # torch hooks a class when its first object is made
    for kind in (SGD, Nested):
        model = two(storage)
        optimizer = kind(model.parameters(), lr=0.01, momentum=0.9)
        made = method(model, optimizer, total_steps=40, update_every=5)
        seen = steps_of(made)
        train(model, optimizer, 20)
        assert all(p.grad is not None for p in model.parameters())
        runs.append((seen, made.step, [w.positions().tolist() for w in sparse_weights(model)]))
    assert runs[0] == runs[1]
    assert runs[0][:2] == ([5, 10, 15], 20)


def test_one_optimizer_takes_one_method() -> None:
    a, b = two(), two()
    optimizer = SGD([*a.parameters(), *b.parameters()], lr=0.01)
    method = regrow.RigL(a, optimizer, total_steps=10, stop_fraction=0.0)
    with pytest.raises(
        regrow.RegrowError, match=r"`optimizer` is driven by a method already.*\n.*nn.ModuleList"
    ):
        regrow.RigL(b, optimizer, total_steps=10, stop_fraction=0.0)
    method.detach()
    regrow.RigL(b, optimizer, total_steps=10, stop_fraction=0.0)


def test_parts_made_sparse_one_by_one_are_told_apart() -> None:
    model = nn.ModuleDict({"e": nn.Sequential(nn.Linear(9, 9)), "d": nn.Sequential(nn.Linear(9, 9))})
    for part in model.values():
        regrow.sparsify(part, 0.5)
    assert set(regrow.masks(model)) == {"e.0.weight", "d.0.weight"}
    assert [row.name for row in regrow.summary(model).rows] == ["e.0.weight", "d.0.weight"]
    with pytest.raises(
        regrow.RegrowError, match=r"several sparse weights called \['0.weight'\].*\n.*whole model"
    ):
        regrow.RigL(model, SGD(model.parameters(), lr=0.1), total_steps=10, stop_fraction=0.0)


@storages
def test_a_schedule_that_begins_at_zero_hides_no_optimizer(storage: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30, bias=False), nn.ReLU(), nn.Linear(30, 10, bias=False))
    regrow.sparsify(model, 0.8, storage=storage)
    optimizer = Muon(model.parameters(), lr=0.02)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(1.0, t / 10))
    assert optimizer.param_groups[0]["lr"] == 0
    with pytest.raises(regrow.RegrowError, match="Muon cannot train sparse weights"):
        regrow.RigL(model, optimizer, total_steps=10, stop_fraction=0.0)


@storages
@pytest.mark.parametrize("method", [regrow.RigL, regrow.SET])
def test_autograd_grad_on_parameters_leaves_no_trace(method: type[regrow.Dynamic], storage: str) -> None:
    case = Case(method, storage)
    run, reference = Run(case), Run(case)
    for step in range(30):
        for each in (run, reference):
            each.optimizer.zero_grad()
            each.backward(step)
            if each is run:  # the norm of a gradient, an influence, a penalty that is only logged
                torch.autograd.grad(
                    1000 * run.model(batch(step + 99, run.dtype)[0]).square().sum(),
                    list(run.model.parameters()),
                )
            each.optimizer.step()
        assert run.topology() == reference.topology(), step
    torch.autograd.grad(run.model(batch(0, run.dtype)[0]).sum(), list(run.model.parameters()))
    run.optimizer.zero_grad()
    run.optimizer.step()
    assert run.method is not None
    assert run.method.step == 30


@storages
def test_gradients_from_autograd_grad_put_in_place_count(storage: str) -> None:
    case = Case(regrow.RigL, storage)
    run, reference = Run(case), Run(case)
    for step in reference.train(0, 30):
        x, y = batch(step, run.dtype)
        parameters = list(run.model.parameters())
        gradients = torch.autograd.grad(nn.functional.cross_entropy(run.model(x), y), parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        run.optimizer.step()
        assert run.topology() == reference.topology(), step


@storages
@pytest.mark.parametrize("to_none", [True, False])
def test_a_micro_batch_without_gradient_at_the_connections_is_not_forgotten(
    storage: str, to_none: bool
) -> None:
    model = nn.Sequential(nn.Linear(4, 2, bias=False))
    mask = torch.tensor([[True, False, False, False], [False, True, False, False]])
    regrow.sparsify(model, init={"0.weight": mask}, storage=storage)
    optimizer = SGD(model.parameters(), lr=0.0)
    regrow.RigL(model, optimizer, total_steps=10, update_every=1, drop_fraction=1.0, schedule="constant")
    for _ in range(2):
        optimizer.zero_grad(set_to_none=to_none)
        for x in ([0.0, 0.0, 3.0, 0.0], [1.0, 1.0, 0.0, 1.0]):  # nothing at positions 0 and 5, then something
            model(torch.tensor([x])).sum().backward()
        optimizer.step()
    assert sparse_weights(model)[0].positions().tolist() == [2, 6]


@storages
def test_a_compiled_model_that_was_moved_in_memory(storage: str) -> None:
    torch._dynamo.reset()
    case = Case(regrow.RigL, storage)
    run, reference = Run(case), Run(case)
    compiled = torch.compile(run.model, backend="aot_eager")
    for step in range(20):
        if step == 4:
            run.model.share_memory()
        for each, model in ((run, compiled), (reference, reference.model)):
            each.optimizer.zero_grad()
            x, y = batch(step, each.dtype)
            nn.functional.cross_entropy(model(x), y).backward()
            each.optimizer.step()
        assert run.topology() == reference.topology(), step


@pytest.mark.parametrize(
    ("total", "stop", "every", "steps"),
    [
        (10, 0.75, 1, list(range(1, 8))),
        (134, 0.75, 100, [100]),
        (3, 0.5, 1, [1]),
        (10, 0.0, 1, []),
        (10, 0.7, 1, list(range(1, 7))),
    ],
)
def test_updates_are_before_t_end_as_the_paper_has_it(
    total: int, stop: float, every: int, steps: list[int]
) -> None:
    model = two()
    method = regrow.SET(
        model, SGD(model.parameters(), lr=0.1), total_steps=total, stop_fraction=stop, update_every=every
    )
    assert [t for t in range(total) if method.is_update(t)] == steps
    assert steps == [t for t in range(1, total) if t % every == 0 and t < round(stop * total, 9)]
    if steps:
        t = steps[-1]
        assert method.fraction(t) == pytest.approx(0.15 * (1 + math.cos(math.pi * t / (stop * total))))


def test_channels_last_after_sparsify() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    regrow.sparsify(model, 0.8)
    model.to(memory_format=torch.channels_last)
    optimizer = SGD(model.parameters(), lr=0.001, momentum=0.9)
    regrow.RigL(model, optimizer, total_steps=40, update_every=4)
    counts = [w.nnz for w in sparse_weights(model)]
    for _ in range(20):
        optimizer.zero_grad()
        model(torch.randn(2, 3, 8, 8)).square().sum().backward()
        optimizer.step()
    for weight, count in zip(sparse_weights(model), counts, strict=True):
        assert weight.nnz == count
        assert not weight.parameter.detach()[~weight.mask()].any()


@storages
def test_a_weight_that_is_unfrozen_later_evolves_then(storage: str) -> None:
    model = two(storage)
    frozen = sparse_weights(model)[0].parameter.requires_grad_(False)
    optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9)
    method = regrow.RigL(model, optimizer, total_steps=100, update_every=5)
    layers: list[set[str]] = []
    method.register_update_hook(lambda record: layers.append(set(record["layers"])))
    train(model, optimizer, 8)
    frozen.requires_grad_(True)
    train(model, optimizer, 8, start=8)
    assert layers == [{"2.weight"}, {"0.weight", "2.weight"}, {"0.weight", "2.weight"}]
    frozen.requires_grad_(False)
    train(model, optimizer, 8, start=16)
    hook = hook_of(frozen)
    assert hook is not None
    assert not hook.passes


@pytest.mark.parametrize("schedule", [lambda p: 5.0, lambda p: -1.0, lambda p: math.nan, 3])
def test_schedules_out_of_range(schedule: Any) -> None:
    model = two()
    with pytest.raises(regrow.RegrowError, match="`schedule"):
        regrow.RigL(
            model, SGD(model.parameters(), lr=0.1), total_steps=10, stop_fraction=0.0, schedule=schedule
        )


@storages
def test_densify_while_a_method_is_attached(storage: str) -> None:
    model = two(storage)
    optimizer = SGD(model.parameters(), lr=0.1)
    method = regrow.RigL(model, optimizer, total_steps=10, stop_fraction=0.0)
    with pytest.raises(regrow.RegrowError, match=r"`model` is driven by a method: RigL.*\nCall its detach"):
        regrow.densify(model)
    assert regrow.is_sparse(model)
    method.detach()
    regrow.densify(model)


@storages
def test_followers_after_a_rollback(storage: str) -> None:
    run = Run(Case(regrow.RigL, storage))
    assert run.method is not None
    saved = copy.deepcopy((run.model.state_dict(), run.optimizer.state_dict()))
    follower = copy.deepcopy(run.model)
    run.method.follow(follower)
    for _ in run.train(0, 10):
        pass
    run.model.load_state_dict(saved[0])
    run.optimizer.load_state_dict(saved[1])
    with pytest.raises(
        regrow.RegrowError, match=r"a copy that follows has another topology.*\nLoad the copy too"
    ):
        for _ in run.train(0, 10):
            pass
    follower.load_state_dict(saved[0])
    run.model.load_state_dict(saved[0])
    run.optimizer.load_state_dict(saved[1])
    for _ in run.train(0, 20):
        pass
    assert [w.fingerprint() for w in sparse_weights(follower)] == run.topology()


@storages
def test_a_copy_that_is_written_through_data_takes_the_topology_along(storage: str, tmp_path: Path) -> None:
    run = Run(Case(regrow.RigL, storage))
    ema = copy.deepcopy(run.model)
    for _ in run.train(0, 10):
        for mine, theirs in zip(ema.state_dict().values(), run.model.state_dict().values(), strict=True):
            mine.data.copy_(theirs)
    regrow.save(ema, tmp_path / "ema.safetensors")
    assert [weight.fingerprint() for weight in sparse_weights(ema)] == run.topology()
    for mine, theirs in zip(sparse_weights(ema), run.weights, strict=True):
        assert torch.equal(mine.to_dense(), theirs.to_dense())


def test_weights_initialised_after_sparsify_are_cut_with_a_warning() -> None:
    model = two()
    for module in model:
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    with pytest.warns(UserWarning, match="was written to where it has no connection"):
        regrow.RigL(model, SGD(model.parameters(), lr=0.1), total_steps=10, stop_fraction=0.0)
    for weight in sparse_weights(model):
        assert not weight.parameter.detach()[~weight.mask()].any()


@storages
def test_state_loaded_between_backward_and_step(storage: str) -> None:
    run = Run(Case(regrow.RigL, storage))
    assert run.method is not None
    for _ in run.train(0, 8):
        pass
    saved = copy.deepcopy((run.model.state_dict(), run.optimizer.state_dict()))
    for _ in run.train(8, 12):
        pass
    run.backward(12)
    run.model.load_state_dict(saved[0])
    run.optimizer.load_state_dict(saved[1])
    run.optimizer.step()  # what was seen before the load is void: no step
    assert run.method.step == 8
    for _ in run.train(8, 20):
        pass
    assert run.method.step == 20


def test_loading_another_count_without_the_optimizer_says_what_to_do() -> None:
    run = Run(Case(regrow.SET, "compressed"))
    for _ in run.train(0, 10):
        pass
    other = regrow.densify(network("compressed"))
    regrow.sparsify(other, 0.4, storage="compressed")
    run.model.load_state_dict(other.state_dict())
    with pytest.raises(
        regrow.RegrowError,
        match=r"optimizer state `momentum_buffer` of `[03].weight`.*\n.*Load the model first",
    ):
        for _ in run.train(10, 11):
            pass


@storages
def test_an_update_hook_that_raises_leaves_a_counted_step(storage: str) -> None:
    run = Run(Case(regrow.RigL, storage))
    reference = Run(Case(regrow.RigL, storage))
    assert run.method is not None

    def fail(record: dict[str, Any]) -> None:
        raise OSError("the disk is full")

    handle = run.method.register_update_hook(fail)
    with pytest.raises(OSError, match="the disk is full"):
        for _ in run.train(0, 9):
            pass
    handle.remove()
    assert run.method.step == 9
    assert all(p.grad is not None for p in run.model.parameters())
    for _ in run.train(9, 30):
        pass
    for _ in reference.train(0, 30):
        pass
    assert run.topology() == reference.topology()


def test_a_deleted_run_frees_the_model_for_the_next() -> None:
    model = two()
    gc.disable()
    try:
        for _ in range(2):  # a notebook cell run twice
            optimizer = SGD(model.parameters(), lr=0.1)
            method = regrow.RigL(model, optimizer, total_steps=10, stop_fraction=0.0)
            del optimizer, method
    finally:
        gc.enable()


@storages
def test_wrapped_models_are_saved_and_loaded_by_their_own_names(storage: str, tmp_path: Any) -> None:
    model = two(storage)
    compiled = torch.compile(model)
    assert set(regrow.masks(compiled)) == {"0.weight", "2.weight"}
    file = regrow.save(compiled, tmp_path / "model.safetensors")
    for target in (two("masked", 0.5), torch.compile(two("compressed", 0.5))):
        regrow.load(file, into=target)
        x = torch.randn(3, 20)
        expected = model(x)
        found = target._orig_mod(x) if hasattr(target, "_orig_mod") else target(x)
        torch.testing.assert_close(found, expected)


def test_a_load_that_fails_leaves_a_dense_model_dense(tmp_path: Any) -> None:
    model = nn.Sequential(nn.Linear(20, 30), nn.LayerNorm(30))
    file = regrow.save(regrow.sparsify(model, 0.5), tmp_path / "model.safetensors")
    other = nn.Sequential(nn.Linear(20, 30))
    with pytest.raises(
        regrow.RegrowError, match=r"another architecture than the file: 1.bias, 1.weight differ"
    ):
        regrow.load(file, into=other)
    assert not regrow.is_sparse(other)


def test_checkpointing_of_activations() -> None:
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self, inner: nn.Module, reentrant: bool) -> None:
            super().__init__()
            self.inner, self.reentrant = inner, reentrant

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = checkpoint(self.inner, x.requires_grad_(), use_reentrant=self.reentrant)
            return y

    for storage in ("masked", "compressed"):
        topologies = []
        for reentrant in (None, True, False):
            inner = two(storage).double()
            model = inner if reentrant is None else Checkpointed(inner, reentrant)
            optimizer = SGD(model.parameters(), lr=0.01)
            regrow.RigL(model, optimizer, total_steps=40, update_every=4)
            for step in range(20):
                optimizer.zero_grad()
                x = torch.randn(8, 20, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
                model(x).square().sum().backward()
                optimizer.step()
            topologies.append([w.positions().tolist() for w in sparse_weights(model)])
        assert topologies[0] == topologies[1] == topologies[2]


def test_an_average_of_parameters_alone_follows() -> None:
    run = Run(Case(regrow.SET))
    averaged = AveragedModel(run.model, use_buffers=False)
    assert run.method is not None
    run.method.follow(averaged)
    for _ in run.train(0, 20):
        averaged.update_parameters(run.model)
    assert [w.fingerprint() for w in sparse_weights(averaged)] == run.topology()
