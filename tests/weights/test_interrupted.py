"""A change of connections that stops half way is noticed: values are never at other connections in silence."""

from __future__ import annotations

import copy
import inspect
import itertools
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regrow
from regrow.errors import RegrowRuntimeError
from regrow.weights import SparseWeight, sparse_weights

WHERE = "/src/regrow/"


class Stop(BaseException):
    """As KeyboardInterrupt."""


class Interruption:
    """Raises `Stop` at one line of regrow after another, as Ctrl-C would."""

    def __init__(self, line: int) -> None:
        self.left = line

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if WHERE not in frame.f_code.co_filename:
            return None
        if event in ("line", "return"):
            self.left -= 1
            closes = (
                event == "return" and frame.f_code.co_flags & inspect.CO_GENERATOR
            )  # where errors are ignored
            if self.left < 0 and not closes:
                sys.settrace(None)
                raise Stop
        return self._trace

    def during(self, work: Callable[[], Any]) -> bool:
        """Whether it has come to that while `work` was done."""
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            work()
        except Stop:
            return True
        finally:
            sys.settrace(before)
        return False


def made(storage: str, dtype: torch.dtype) -> tuple[nn.Module, SparseWeight, Tensor]:
    """A model, its weight, and something that moves with it: both hold the numbers of their positions."""
    torch.manual_seed(0)
    model = regrow.sparsify(nn.Sequential(nn.Linear(6, 5)).to(dtype), 0.5, storage=storage, seed=0)
    (weight,) = sparse_weights(model)
    positions = weight.positions()
    weight.fill(positions, positions.to(dtype) + 1)
    companion = torch.zeros_like(weight.parameter)
    weight.fill(positions, positions.to(dtype) + 1, companion)
    return model, weight, companion


def refusal(run: Callable[[], Any]) -> str | None:
    """What `run` says where it refuses to go on."""
    try:
        run()
    except RegrowRuntimeError as error:
        return str(error)
    return None


def state(weight: SparseWeight, companion: Tensor) -> list[Tensor]:
    values = torch.zeros(weight.numel, dtype=companion.dtype)
    values[weight.positions()] = weight.take(companion)
    return [weight.to_dense(), values.view(weight.shape), weight.mask()]


@pytest.mark.parametrize("storage", ["masked", "compressed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("change", ["update", "assign"])
def test_every_line_of_a_change(storage: str, dtype: torch.dtype, change: str) -> None:
    drop = torch.tensor([0, 3, 4])
    line = noticed = 0
    while True:
        model, weight, companion = made(storage, dtype)
        before, x = state(weight, companion), torch.ones(2, 6, dtype=dtype)
        grow = (~weight.mask().view(-1)).nonzero().view(-1)[[1, 5, 7]]
        positions, companions = weight.survivors(drop), [companion]

        def work(
            weight: SparseWeight = weight,
            grow: Tensor = grow,
            positions: Tensor = positions,
            companions: list[Tensor] = companions,
        ) -> None:
            if change == "update":
                weight.update(drop, grow, companions)
            else:
                weight.assign(positions, torch.arange(len(positions)).to(weight.parameter) + 1)

        if not Interruption(line).during(work):
            break
        line += 1
        if (told := refusal(lambda model=model, x=x: model(x))) is not None:
            assert "`0.weight` was interrupted" in told
            noticed += 1
            with pytest.raises(RegrowRuntimeError, match="was interrupted"):
                model.state_dict()
            with pytest.raises(RegrowRuntimeError, match="was interrupted"):
                copy.deepcopy(model)(x)
            continue
        _, after_weight, after_companion = made(storage, dtype)
        work(after_weight, grow, positions, [after_companion])
        found, after = state(weight, companion), state(after_weight, after_companion)
        if change == "assign":
            found, after, before = found[::2], after[::2], before[::2]
        whole = [all(torch.equal(*pair) for pair in zip(found, one, strict=True)) for one in (before, after)]
        assert any(whole), f"line {line} of the change"
    assert noticed > 5
    assert line > noticed


@pytest.mark.parametrize("storage", ["masked", "compressed"])
def test_a_checkpoint_mends_it(storage: str) -> None:
    model, weight, _ = made(storage, torch.float32)
    saved, x = copy.deepcopy(model.state_dict()), torch.ones(2, 6)
    expected = model(x)
    for line in range(1000):
        if not Interruption(line).during(
            lambda: weight.update(torch.tensor([1]), torch.tensor([], dtype=torch.int64))
        ):
            break
        model.load_state_dict(saved)
        assert torch.equal(model(x), expected)
    assert line > 5


@pytest.mark.parametrize("storage", ["masked", "compressed"])
def test_steps_with_a_method(storage: str) -> None:
    """Ctrl-C within an update step: the run goes on with whole layers, or says that it cannot."""
    told = 0
    for line in itertools.count(150, 97):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
        regrow.sparsify(model, 0.5, storage=storage, seed=0)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        method = regrow.RigL(model, optimizer, total_steps=100, update_every=2)

        def step(model: nn.Module = model, optimizer: torch.optim.Optimizer = optimizer) -> None:
            optimizer.zero_grad()
            model(torch.randn(8, 8)).square().sum().backward()
            optimizer.step()

        step()
        step()
        optimizer.zero_grad()
        model(torch.randn(8, 8)).square().sum().backward()
        if not Interruption(line).during(optimizer.step):
            break  # the step is shorter
        message = refusal(step) or refusal(step)
        if message is not None:
            assert "was interrupted" in message
            told += 1
            continue
        for weight in method.weights:
            dense, mask = weight.to_dense(), weight.mask()
            assert not dense[~mask].any()
            state_ = optimizer.state[weight.parameter]["momentum_buffer"]
            assert torch.equal(weight.restrict(state_), state_)
    assert told
