"""Optimizers that hold parameters which the model no longer has."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer

import regrow
from regrow.weights import replaced

MESSAGE = r"`optimizer` holds the former parameters of \['0.weight', '2.weight'\].*\nMake it afterwards:\n.*sparsify"


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


def step(model: nn.Module, optimizer: Optimizer) -> None:
    model(torch.randn(4, 8)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def compressed(model: nn.Module) -> None:
    regrow.sparsify(model, 0.5, "uniform", include="*", storage="compressed")


def densified(model: nn.Module) -> None:
    regrow.densify(model)


def packed(model: nn.Module) -> None:
    regrow.compress(model)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    ("before", "convert"), [(None, compressed), ("compressed", densified), ("masked", packed)]
)
def test_an_optimizer_made_before_is_noticed_at_its_first_step(
    before: str | None, convert: Any, trained: bool
) -> None:
    model = net()
    if before is not None:
        regrow.sparsify(model, 0.5, "uniform", include="*", storage=before)
    optimizer = SGD(model.parameters(), lr=0.1)
    if trained:
        model(torch.randn(4, 8)).sum().backward()
        optimizer.step()
    convert(model)
    with pytest.raises(regrow.RegrowError, match=MESSAGE):
        step(model, optimizer)
    step(model, SGD(model.parameters(), lr=0.1))


def test_an_optimizer_that_has_been_given_the_new_parameters_goes_on() -> None:
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    compressed(model)
    optimizer.add_param_group({"params": [p for n, p in model.named_parameters() if "values" in n]})
    step(model, optimizer)
    regrow.densify(model)
    regrow.sparsify(model, 0.5, "uniform", include="*", storage="masked")
    optimizer = SGD(model.parameters(), lr=0.1)
    regrow.compress(model, optimizer)
    step(model, optimizer)


def test_a_former_layer_that_is_used_elsewhere_may_be_trained() -> None:
    model = net()
    teacher = nn.Sequential(model[0], model[2])
    optimizer = SGD(teacher.parameters(), lr=0.1)
    compressed(model)
    step(teacher, optimizer)


def test_nothing_is_kept_of_parameters_that_are_gone() -> None:
    gc.collect()
    known = len(replaced._replaced)
    model = net()
    compressed(model)
    gc.collect()
    assert len(replaced._replaced) == known
    assert len(replaced._watching) == 1
