"""The states of a buffer and of a reader, without any layer."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from regrow.tiles.deferred import Contents, FusedSum, Reader, State


def deferred(compute: Callable[[], Tensor]) -> Contents:
    return Contents(None, compute, FusedSum(lambda added: added, True))


def test_a_buffer_is_computed_once_and_without_gradients() -> None:
    modes: list[bool] = []

    def compute() -> Tensor:
        modes.append(torch.is_grad_enabled())
        return torch.ones(3)

    contents = deferred(compute)
    assert contents.state is State.DEFERRED
    assert contents.fused_sum is not None
    assert contents.state is State.DEFERRED  # questions change nothing
    assert modes == []
    buffer = contents.computed()
    assert contents.state is State.COMPUTED
    assert contents.fused_sum is None
    assert contents.computed() is buffer
    assert modes == [False]


def test_a_computation_that_fails_may_be_tried_again() -> None:
    answers: list[Any] = [MemoryError(), torch.ones(3)]

    def compute() -> Tensor:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    contents = deferred(compute)
    with pytest.raises(MemoryError):
        contents.computed()
    assert contents.state is State.DEFERRED
    assert torch.equal(contents.computed(), torch.ones(3))


def test_rectified_until_it_is_written_to() -> None:
    contents = Contents(torch.ones(3))
    assert contents.state is State.COMPUTED
    contents.mark_rectified()
    assert contents.state is State.RECTIFIED
    contents.computed().sub_(2)
    assert contents.state is State.COMPUTED
    contents.mark_rectified()
    assert contents.state is State.RECTIFIED


def test_what_is_rectified_is_computed() -> None:
    contents = deferred(lambda: torch.ones(3))
    contents.mark_rectified()
    assert contents.state is State.RECTIFIED


def test_in_inference_mode_nobody_could_see_what_is_written() -> None:
    with torch.inference_mode():
        contents = Contents(torch.ones(3))
    contents.mark_rectified()
    assert contents.state is State.COMPUTED


class Node(torch.autograd.Function):
    """Passes values and gradients on; calls `act` with its reader in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, act: Callable[[Reader], None]) -> Tensor:
        ctx.reader, ctx.act = Reader(ctx), act
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        ctx.act(ctx.reader)
        return gradients[0], None


def test_the_last_reader_is_told_once() -> None:
    x, contents = torch.ones(3, requires_grad=True), Contents(torch.ones(3))
    first, last = (Node.apply(x, lambda reader: None) for _ in range(2))
    assert contents.pop_reader() is None
    for y in (first, last):
        contents.mark_read(y.grad_fn.reader)
    assert contents.reader is last.grad_fn.reader
    assert contents.pop_reader() is last.grad_fn.reader
    assert contents.pop_reader() is None


def test_a_reader_of_other_values_is_none() -> None:
    y, contents = Node.apply(torch.ones(3, requires_grad=True), lambda reader: None), Contents(torch.ones(3))
    contents.mark_read(y.grad_fn.reader)
    contents.computed().add_(1)
    assert contents.pop_reader() is None


def test_a_reader_whose_graph_is_gone_is_none() -> None:
    y, contents = Node.apply(torch.ones(3, requires_grad=True), lambda reader: None), Contents(torch.ones(3))
    contents.mark_read(y.grad_fn.reader)
    del y
    gc.collect()
    assert contents.pop_reader() is None


def test_a_reader_is_open_then_holding_then_closed() -> None:
    x, gradient = torch.ones(3, requires_grad=True), torch.full((3,), 5.0)
    found: list[Any] = []

    def take(reader: Reader) -> None:
        found.append(reader.take())
        found.append(reader.leave(gradient))  # CLOSED
        found.append(reader.take())

    def leave(_: Reader) -> None:
        found.append(first.grad_fn.reader.leave(gradient))
        found.append(first.grad_fn.reader.leave(gradient))  # HOLDING

    first = Node.apply(x, take)
    second = Node.apply(x, leave)
    total = (first + second).sum()
    for _ in range(2):  # each backward pass begins with OPEN
        found.clear()
        total.backward(retain_graph=True)
        assert found[:2] == [True, False]
        assert found[2] is gradient
        assert found[3:] == [False, None]


def test_nothing_is_left_with_a_reader_that_will_not_run() -> None:
    x, found = torch.ones(3, requires_grad=True), []
    first = Node.apply(x, lambda reader: found.append(reader.take()))
    second = Node.apply(x, lambda _: found.append(first.grad_fn.reader.leave(torch.ones(3))))
    second.sum().backward()
    assert found == [False]
    first.sum().backward()
    assert found == [False, None]
