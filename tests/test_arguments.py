"""Bad arguments to everything public: refused by name before anything has changed; odd numbers are numbers."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from bad_of_layers import LAYERS
from bad_of_methods import METHODS
from bad_of_tickets import TICKETS
from given import (
    Base,
    World,
    loss_fn,
    network,
)
from torch import Tensor, nn

import regrow
from regrow import _random, data, models, tickets
from regrow.accounting import pruning_levels
from regrow.app.recipes import rates
from regrow.methods import schedules

CASES = [
    pytest.param(function, base, argument, value, id=f"{name}-{argument}-{place}")
    for name, function, base, bad in [*METHODS, *TICKETS, *LAYERS]
    for argument, values in bad.items()
    for place, value in enumerate(values)
]


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.mark.parametrize(("function", "base", "argument", "value"), CASES)
def test_a_bad_argument_is_refused_by_its_name(
    world: World, function: Callable[..., Any], base: Base, argument: str, value: Any
) -> None:
    arguments = {**base(world), argument: value}
    plain, tensors = world.state()
    with pytest.raises(regrow.RegrowError, match=rf"`(data\.|schedule\.|augment\.)?{argument}\b"):
        function(**arguments)
    plain_after, tensors_after = world.state()
    assert plain_after == plain
    assert all(map(torch.equal, tensors_after, tensors))


def test_there_are_enough_bad_arguments() -> None:
    assert len(CASES) >= 250


# --- good arguments in unusual types

THREE = (3.0, np.int64(3), np.float32(3), np.array(3), torch.tensor(3), torch.tensor(3.0), Fraction(3))


@pytest.mark.parametrize("three", THREE, ids=lambda three: type(three).__name__)
def test_a_seed_of_another_type_gives_the_same_topology(three: Any) -> None:
    plain = regrow.masks(regrow.sparsify(network(), 0.5, rescale=False, seed=3))
    other = regrow.masks(regrow.sparsify(network(), 0.5, rescale=False, seed=three))
    assert all(torch.equal(plain[name], other[name]) for name in plain)
    assert _random.generator(three, "a").initial_seed() == _random.generator(3, "a").initial_seed()


def trained(seed: Any, every: Any, total: Any, drop: Any = 0.5) -> dict[str, Tensor]:
    model = regrow.sparsify(network(), 0.5, rescale=False, storage="masked")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = regrow.SET(
        model,
        optimizer,
        total_steps=total,
        update_every=every,
        drop_fraction=drop,
        seed=seed,
        stop_fraction=1,
    )
    x, y = torch.randn(5, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 0])
    for _ in range(8):
        optimizer.zero_grad()
        loss_fn(model(x), y).backward()
        optimizer.step()
    assert type(method.seed) is type(method.update_every) is type(method.total_steps) is int
    return regrow.masks(model)


@pytest.mark.parametrize("three", THREE, ids=lambda three: type(three).__name__)
def test_a_method_takes_whole_numbers_of_another_type_for_what_they_are(three: Any) -> None:
    plain, other = trained(3, 3, 9), trained(three, three, 3 * three)
    assert all(torch.equal(plain[name], other[name]) for name in plain)


@pytest.mark.parametrize("half", [np.float64(0.5), np.float32(0.5), torch.tensor(0.5), Fraction(1, 2)])
def test_a_share_of_another_type_is_that_share(half: Any) -> None:
    plain = regrow.masks(regrow.sparsify(network(), 0.5, rescale=False))
    other = regrow.masks(regrow.sparsify(network(), half, rescale=False))
    assert all(torch.equal(plain[name], other[name]) for name in plain)
    plain, other = trained(0, 2, 9), trained(0, 2, 9, half)
    assert all(torch.equal(plain[name], other[name]) for name in plain)


@pytest.mark.parametrize("three", THREE, ids=lambda three: type(three).__name__)
def test_sizes_steps_and_places_of_another_type_are_those_numbers(three: Any) -> None:
    assert tickets.calendar(30 * three, 0.5, three) == tickets.calendar(90, 0.5, 3)
    assert pruning_levels(10, 1, 9, three) == pruning_levels(10, 1, 9, 3)
    assert models.mlp(three, (three,), three).layers[0].weight.shape == (3, 3)
    assert rates.step(40, milestones=[three])(3) == rates.step(40, milestones=[3])(3) == 0.1
    assert data.Augment(crop=three) == data.Augment(crop=3)
    assert torch.equal(data.order(three, three, 5 + three), data.order(3, 3, 8))
    images = torch.full((2, 1, 8, 8), 100, dtype=torch.uint8)
    plain = data.corrupt(images, "gaussian_noise", 3, seed=3, start=3)
    assert torch.equal(data.corrupt(images, "gaussian_noise", three, seed=three, start=three), plain)
    layer = regrow.SparseLinear(three, three, positions=torch.tensor([0, 4]), values=torch.ones(2))
    assert layer.weight.shape == (3, 3)
    method = regrow.RigL(*_sparse(), total_steps=400, grow_columns=np.int64(3))
    assert method.searched(5) == 3


def _sparse() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = regrow.sparsify(network(), 0.5, rescale=False, storage="masked")
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def test_numpy_flags_and_words_are_taken() -> None:
    method = regrow.SET(*_sparse(), total_steps=10, update_every=2, per_sign=np.bool_(True), skip_step=False)
    assert method.per_sign is True
    assert regrow.sparsify(network(), 0.5, np.str_("er"), rescale=np.bool_(False)) is not None


def test_a_class_in_place_of_what_it_makes_is_told_so() -> None:
    with pytest.raises(
        ValueError, match=r"`model` must be a torch.nn.Module, got the class Linear\nMake one: Linear"
    ):
        regrow.masks(nn.Linear)  # type: ignore[arg-type]


def test_a_function_of_other_arguments_is_shown_with_what_it_is_called_with() -> None:
    with pytest.raises(
        ValueError,
        match=r"`distribution` must be a function \(shapes, sparsity\), got the function <lambda>\(a\): too many",
    ):
        regrow.sparsify(network(), 0.5, lambda a: a)  # type: ignore[arg-type, misc]


def test_functions_that_python_cannot_look_into_are_taken() -> None:
    assert schedules.drop_schedule(abs)(0.5) == 0.5  # type: ignore[arg-type]


def test_a_start_of_tickets_that_the_method_never_reaches_is_refused(world: World) -> None:
    with pytest.raises(
        ValueError, match=r"`start` must be at most 40, the `total_steps` of the method, got 1000000000"
    ):
        regrow.SupTickets(world.method, start=10**9, cycles=0, cycle_steps=5)


@pytest.mark.parametrize("state", [None, 5, {}, {"settings": {}}, [("settings", {})]])
def test_a_state_that_is_not_of_tickets_is_refused(state: Any) -> None:
    model, optimizer = _sparse()
    method = regrow.RigL(model, optimizer, total_steps=40, update_every=4)
    made: Any = regrow.SupTickets(method, start=20, cycles=1, cycle_steps=5)
    with pytest.raises(ValueError, match=r"`state` must be what state_dict\(\) of SupTickets gave, got"):
        made.load_state_dict(state)
    made.detach()
    made = regrow.FreeTickets(method, start=20, ticket_steps=5)
    with pytest.raises(ValueError, match=r"`state` must be what state_dict\(\) of FreeTickets gave, got"):
        made.load_state_dict(state)


def test_compress_refuses_the_optimizer_of_another_model() -> None:
    model, _ = _sparse()
    with pytest.raises(
        RuntimeError, match=r"`optimizer` holds none of \['0.weight', '2.weight'\].*\nGive the one"
    ):
        regrow.compress(model, _sparse()[1])
    assert regrow.summary(model).rows[0].storage == "masked"


def test_a_process_group_is_taken_where_processes_run() -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        group = torch.distributed.new_group([0])
        assert regrow.Static(*_sparse(), process_group=group).process_group is group
        outside = torch.distributed.GroupMember.NON_GROUP_MEMBER
        with pytest.raises(ValueError, match=r"`process_group` must be .*which this one does not belong to"):
            regrow.Static(*_sparse(), process_group=outside)
    finally:
        torch.distributed.destroy_process_group()
