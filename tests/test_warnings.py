"""Warnings point at the line of the user's that led to them."""

import copy
import functools
import warnings

import torch
from torch import nn

import regrow
from regrow.errors import warn


class Told:
    """An object whose copy, made by Python's own module, warns."""

    def __init__(self) -> None:
        self.__deepcopy__ = warn


def lines(caught):
    return [(warning.filename, warning.lineno) for warning in caught]


def test_from_a_copy():
    told = Told()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        copy.deepcopy(told)
        functools.partial(warn, "told")()
    first = test_from_a_copy.__code__.co_firstlineno
    assert lines(caught) == [(__file__, first + 4), (__file__, first + 5)]


def test_from_a_step_under_a_schedule_and_a_decorator():
    model = regrow.sparsify(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)), 0.5, rescale=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 10)  # wraps optimizer.step
    method = regrow.RigL(model, optimizer, total_steps=4, update_every=1)

    def train() -> None:
        optimizer.zero_grad()
        model(torch.randn(4, 8)).sum().backward()
        optimizer.step()
        schedule.step()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(5):
            train()
    assert method.step == 5
    assert lines(caught) == [(__file__, train.__code__.co_firstlineno + 3)]
    assert "past total_steps=4 the topology rests" in str(caught[0].message)


def test_from_a_hook_of_a_pass():
    model = regrow.sparsify(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)), 0.5, rescale=False)
    given = {"0.weight": torch.ones(8, 8)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.func.functional_call(model, given, (torch.randn(4, 8),))
    assert lines(caught) == [(__file__, test_from_a_hook_of_a_pass.__code__.co_firstlineno + 5)]
