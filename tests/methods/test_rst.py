"""RST by hand: victims, the growing penalty, extrusion, and what fine-tunes afterwards."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from runs import assert_same_run
from torch import Tensor, nn
from torch.optim import SGD

import regrow
from regrow.testing import Case, Run, check_resume
from regrow.weights import sparse_weights

EIGHT = torch.tensor([[0.5, -4.0, 3.0, 0.1, -2.0, 0.2, 1.0, -0.3]])


def eight() -> nn.Sequential:
    """A dense network of eight weights, where the gradient of the output is the input."""
    model = nn.Sequential(nn.Linear(8, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(EIGHT)
    return regrow.sparsify(model, 0.0, storage="masked")


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int, x: Tensor | None = None) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        model(torch.ones(1, 8) if x is None else x).sum().backward()
        optimizer.step()


def left(model: nn.Module) -> list[int]:
    return sparse_weights(model)[0].positions().tolist()


# --- the penalty


def test_the_published_penalty_grows_by_steps_of_1e_4_to_1() -> None:
    model = eight()
    method = regrow.RST(model, SGD(model.parameters(), lr=0.1), total_steps=90_000, final_sparsity=0.5)
    for t in (0, 4, 5, 12_345, 49_999):
        assert method.strength(t) == pytest.approx(1e-4 * (t // 5 + 1), rel=1e-12)
    assert method.strength(49_994) < 1.0 == method.strength(49_995) == method.strength(89_999)
    assert method.strength(90_000) == 0.0
    assert (method.end, method.next_update, method.last_update) == (90_000, 89_999, 89_999)


def test_the_phase_is_115_epochs_of_cifar_in_one_shot_and_128_in_five_cycles() -> None:
    every = inspect.signature(regrow.RST).parameters["update_every"].default
    epochs = every * 64 / 50_000
    assert epochs == 115.2
    assert 5 * (10_000 + 10_000) * 64 / 50_000 == 128
    levels = regrow.RST.levels(0.9)
    assert levels.count(0.0) / len(levels) == pytest.approx(epochs / (epochs + 200))
    assert regrow.costs(nn.Linear(4, 4), torch.zeros(1, 4)).training_multiple["rst"] == 1.0


def test_five_cycles_of_the_iterative_form() -> None:
    model = eight()
    method = regrow.RST(
        model,
        SGD(model.parameters(), lr=0.1),
        total_steps=100_000,
        final_sparsity=0.5,
        cycles=5,
        update_every=20_000,
        penalty_every=1,
        stabilise_fraction=0.5,
    )
    for start in (0, 20_000, 80_000):
        assert method.strength(start) == pytest.approx(1e-4)
        assert method.strength(start + 10_000) == method.strength(start + 19_999) == 1.0


def test_powers_of_the_penalty() -> None:
    model = eight()
    method = regrow.RST(
        model,
        SGD(model.parameters(), lr=0.1),
        total_steps=10,
        update_every=10,
        final_sparsity=0.5,
        penalty=2.0,
        penalty_every=1,
        penalty_power=2,
        stabilise_fraction=0.5,
    )
    assert [method.strength(t) for t in range(11)] == pytest.approx(
        [0.08, 0.32, 0.72, 1.28, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 0.0]
    )


@pytest.mark.parametrize("fused", [False, True])
def test_one_step_by_hand(fused: bool) -> None:
    """w = 0.5, a gradient of 0.2, lambda = 0.1, rate 0.001: 0.49975 for a victim, 0.4998 for what is kept."""
    model = nn.Sequential(nn.Linear(2, 1, bias=False)).double()
    nn.init.constant_(model[0].weight, 0.5)
    regrow.sparsify(model, 0.0, storage="masked")
    optimizer = SGD(model.parameters(), lr=0.001, fused=fused)
    victims = {"0.weight": torch.tensor([[True, False]])}
    regrow.RST(model, optimizer, total_steps=8, update_every=4, victims=victims, penalty=0.1)
    scale = 4.0 if fused else 1.0
    if fused:  # as GradScaler tells a fused optimizer
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(scale), torch.tensor(0.0)
    (model(torch.full((1, 2), 0.2, dtype=torch.float64)).sum() * scale).backward()
    optimizer.step()
    assert model[0].weight.tolist()[0] == pytest.approx([0.49975, 0.4998], abs=1e-12)


# --- the victims


def test_the_share_removed_after_each_cycle() -> None:
    torch.manual_seed(0)
    model = regrow.sparsify(nn.Sequential(nn.Linear(1000, 10, bias=False)), 0.0, storage="masked")
    optimizer = SGD(model.parameters(), lr=0.0)
    method = regrow.RST(model, optimizer, total_steps=20, update_every=2, cycles=5, final_sparsity=0.7)
    removed: list[int] = []
    method.register_update_hook(lambda record: removed.append(10_000 - sparse_weights(model)[0].nnz))
    steps(model, optimizer, 12, torch.ones(1, 1000))
    assert removed == [2139, 3821, 5144, 6183, 7000]
    assert [n / 10_000 for n in removed] == pytest.approx([0.2140, 0.3822, 0.5144, 0.6183, 0.7000], abs=1e-4)


def test_random_victims_depend_on_the_seed_and_not_on_the_weights() -> None:
    found = []
    for seed, scale in ((0, 1.0), (0, -3.0), (1, 1.0)):
        model = eight()
        model[0].weight.data.mul_(scale).sub_(scale / 10)
        optimizer = SGD(model.parameters(), lr=0.0)
        regrow.RST(model, optimizer, total_steps=4, update_every=2, final_sparsity=0.5, seed=seed)
        steps(model, optimizer, 4)
        found.append(left(model))
    assert found[0] == found[1] != found[2]
    assert all(len(own) == 4 for own in found)


def test_the_smallest_at_the_beginning_of_a_cycle_are_the_victims() -> None:
    model = eight()
    optimizer = SGD(model.parameters(), lr=1.0)
    regrow.RST(
        model,
        optimizer,
        total_steps=8,
        update_every=4,
        final_sparsity=0.5,
        victims="magnitude",
        penalty=1e-6,
    )
    steps(
        model, optimizer, 4, torch.tensor([[-50.0, 0, 0, -50.0, 0, -50.0, 0, -50.0]])
    )  # they grow meanwhile
    assert left(model) == [1, 2, 4, 6]


def test_victims_of_ones_own_go_a_part_in_each_cycle() -> None:
    model = eight()
    optimizer = SGD(model.parameters(), lr=0.0)
    mask = torch.tensor([[True, True, False, False, True, False, False, True]])
    regrow.RST(model, optimizer, total_steps=8, update_every=2, cycles=2, victims={"0.weight": mask})
    steps(model, optimizer, 2)
    assert set(left(model)) >= {2, 3, 5, 6}
    assert len(left(model)) == 6  # sqrt(8 * 4) is 5.7, and what goes is rounded down
    steps(model, optimizer, 4)
    assert left(model) == [2, 3, 5, 6]


# --- extrusion


def extruded(penalty: float) -> tuple[float, float]:
    """A regression that half of the connections can fit; the residue, and how far extrusion moves an output."""
    torch.manual_seed(0)
    model = regrow.sparsify(nn.Sequential(nn.Linear(16, 2)), 0.0, storage="masked")
    x, y = torch.randn(4, 16), torch.randn(4, 2)
    optimizer = SGD(model.parameters(), lr=0.02, momentum=0.9)
    before: list[Tensor] = []
    # behind the weight step, ahead of the update
    optimizer.register_step_post_hook(lambda *_: before.append(model(x).detach()))
    method = regrow.RST(
        model,
        optimizer,
        total_steps=900,
        update_every=900,
        final_sparsity=0.5,
        penalty=penalty,
        penalty_every=1,
    )
    records: list[dict[str, Any]] = []
    method.register_update_hook(records.append)
    for _ in range(900):
        optimizer.zero_grad()
        (model(x) - y).square().sum().backward()
        optimizer.step()
    assert [record["step"] for record in records] == [899]
    assert sparse_weights(model)[0].nnz == 16
    moved = float((model(x).detach() - before[-1]).abs().max())
    return records[0]["layers"]["0.weight"]["residue"], moved


def test_extrusion_does_not_change_the_output() -> None:
    residue, moved = extruded(1.0)
    assert residue < 1e-6
    assert moved <= 1e-6


def test_extrusion_changes_the_output_where_the_penalty_was_too_weak_and_says_so() -> None:
    residue, moved = extruded(1e-6)
    assert residue > 0.1
    assert moved > 1e-2


@pytest.mark.parametrize("hand_over", [False, True])
def test_the_others_are_trained_on_in_compressed_storage(hand_over: bool) -> None:
    case = Case(regrow.RST, options={"update_every": 40})
    masked, run = Run(case), Run(case)
    for one in (masked, run):
        for _ in one.train(0, 40):
            pass
        assert one.method is not None
        one.method.detach()
    if hand_over:
        regrow.compress(run.model, run.optimizer)
    for _ in masked.train(40, 100):
        pass
    for _ in run.train(40, 100):
        pass
    assert {w.storage for w in run.weights} == ({"compressed"} if hand_over else {"masked"})
    for one, two in zip(masked.dense(), run.dense(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-9 if hand_over else 0.0)


# --- going on


PHASE: dict[str, Any] = {"update_every": 40, "cycles": 2, "penalty_every": 2}


@pytest.mark.parametrize("victims", ["random", "magnitude"])
@pytest.mark.parametrize("optimizer", ["SGD with momentum", "AdamW"])
@pytest.mark.parametrize("at", [40, 57], ids=["between two cycles", "in the middle of a phase"])
def test_resume_bit_for_bit(victims: str, optimizer: str, at: int) -> None:
    case = Case(regrow.RST, options={**PHASE, "victims": victims})
    whole, cut = Run(case, optimizer_name=optimizer), Run(case, optimizer_name=optimizer)
    for _ in whole.train(0, 100):
        pass
    for _ in cut.train(0, at):
        pass
    for attach in (True, False):
        resumed = Run(case, optimizer_name=optimizer, attach=attach)
        saved = copy.deepcopy((cut.model.state_dict(), cut.optimizer.state_dict()))
        resumed.model.load_state_dict(saved[0])
        resumed.optimizer.load_state_dict(saved[1])
        if not attach:
            resumed.method = case.method(resumed.model, resumed.optimizer)
        for _ in resumed.train(at, 100):
            pass
        assert_same_run(whole, resumed)


def test_resume_with_victims_of_ones_own() -> None:
    torch.manual_seed(0)
    masks = {
        weight.name: weight.mask() & (torch.rand(weight.shape) < 0.3)
        for weight in Run(Case(regrow.Static)).weights
    }
    check_resume(Case(regrow.RST, options={**PHASE, "final_sparsity": None, "victims": masks}))


# --- what is not allowed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"update_every": 30, "cycles": 4}, r"`total_steps` 100 must hold .*`cycles` 4 of `update_every` 30"),
        ({"final_sparsity": None}, r"`final_sparsity` must be a number in \[0, 1\), got None"),
        (
            {"victims": "smallest"},
            "`victims` must be one of random, magnitude or {weight name: boolean mask}",
        ),
        ({"victims": {"0.weight": torch.ones(1, 8).bool()}}, "`final_sparsity` follows from `victims`"),
    ],
)
def test_options_that_are_not_allowed(options: dict[str, Any], message: str) -> None:
    model = eight()
    given = {"total_steps": 100, "final_sparsity": 0.5, "update_every": 10, **options}
    with pytest.raises(regrow.RegrowError, match=message):
        regrow.RST(model, SGD(model.parameters(), lr=0.1), **given)


@pytest.mark.parametrize(
    ("victims", "message"),
    [
        ({"0.weight": torch.ones(1, 8)}, r"`victims\['0.weight'\]` must be a boolean mask .*torch.float32"),
        ({"0.weight": torch.ones(8).bool()}, r"`victims\['0.weight'\]` must be a boolean mask .*\(8,\)"),
        ({"1.weight": torch.ones(1, 8).bool()}, r"`victims\['1.weight'\]` must be a boolean mask of one of"),
        ({"0.weight": [True]}, r"`victims\['0.weight'\]` must be a boolean mask, got list"),
        ({"0.weight": torch.ones(1, 8).bool()}, "`victims` must leave a connection in `0.weight`"),
    ],
)
def test_victims_that_are_not_allowed(victims: dict[str, Any], message: str) -> None:
    model = eight()
    with pytest.raises(regrow.RegrowError, match=message):
        regrow.RST(model, SGD(model.parameters(), lr=0.1), total_steps=10, update_every=10, victims=victims)
    assert sparse_weights(model)[0].driver() is None
