"""`check_counts` and `check_options` find small wrong methods, and let right ones pass that count in groups."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from runs import storages
from torch import Tensor, nn
from torch.optim import Optimizer

import regrow
from regrow.arguments import require_positive
from regrow.ops.select import top
from regrow.sparsity.distributions import whole_share
from regrow.testing import CHECKS, Case, check_counts, check_options
from regrow.weights import SparseWeight


class Truncated(regrow.SET):
    """Drops ``int(fraction * connections)``, which is one less where the product is 28.999999999999996."""

    def drop(self, weight: SparseWeight, fraction: float) -> Tensor:
        return top(weight.magnitudes(), int(fraction * weight.nnz), lowest=True)


class Nearest(regrow.SET):
    def drop(self, weight: SparseWeight, fraction: float) -> Tensor:
        return top(weight.magnitudes(), round(fraction * weight.nnz), lowest=True)


class Up(regrow.SET):
    def drop(self, weight: SparseWeight, fraction: float) -> Tensor:
        return top(weight.magnitudes(), math.ceil(fraction * weight.nnz), lowest=True)


class Twice(regrow.SET):
    def drop(self, weight: SparseWeight, fraction: float) -> Tensor:
        return super().drop(weight, fraction) * 0


class Short(regrow.SET):
    def grow(self, weight: SparseWeight, count: int, survivors: Tensor, generator: torch.Generator) -> Tensor:
        return super().grow(weight, count, survivors, generator)[1:]


class Backwards(regrow.SET):
    def grow(self, weight: SparseWeight, count: int, survivors: Tensor, generator: torch.Generator) -> Tensor:
        return super().grow(weight, count, survivors, generator).flip(0)


class Survivors(regrow.SET):
    def grow(self, weight: SparseWeight, count: int, survivors: Tensor, generator: torch.Generator) -> Tensor:
        return torch.arange(count, device=survivors.device)


class Floats(regrow.SET):
    def grow(self, weight: SparseWeight, count: int, survivors: Tensor, generator: torch.Generator) -> Tensor:
        return super().grow(weight, count, survivors, generator).double()


class Kept(regrow.SET):
    def grow(self, weight: SparseWeight, count: int, survivors: Tensor, generator: torch.Generator) -> Tensor:
        return survivors[:count]


class Rows(regrow.SET):
    """Drops in each row by itself."""

    def drop(self, weight: SparseWeight, fraction: float) -> Tensor:
        rows = weight.positions() // math.prod(weight.shape[1:])
        own = [(rows == row).nonzero().view(-1) for row in range(weight.shape[0])]
        score = weight.magnitudes()
        return torch.cat([one[top(score[one], whole_share(fraction, len(one)), lowest=True)] for one in own])


@pytest.mark.parametrize(
    ("cls", "text"),
    [
        (Truncated, "drop gives 28 of 100 connections at fraction 0.29, expected 29"),
        (Nearest, "drop gives 2 of 100 connections at fraction 0.015, expected 1"),
        (
            Up,
            "drop gives 1 of 100 connections at fraction 0.005, expected 0: regrow.distributions.whole_share",
        ),
        (Twice, "names a connection twice"),
        (Short, r"a shape of \(28,\), \(29,\) was asked for"),
        (Backwards, "not ascending"),
        (Survivors, "a survivor"),
    ],
)
@storages
def test_wrong_counts_are_found(cls: type[regrow.Method], text: str, storage: str) -> None:
    with pytest.raises(AssertionError, match=text):
        check_counts(Case(cls, storage))


@storages
@pytest.mark.parametrize(("cls", "options"), [(Rows, {}), (regrow.SET, {"per_sign": True})])
def test_counts_in_groups_are_right(cls: type[regrow.Method], options: dict[str, Any], storage: str) -> None:
    check_counts(Case(cls, storage, options))


class Weighted(regrow.SET):
    """The right way; the wrong ones change what is done with the option."""

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, *, total_steps: int, power: float = 1.0
    ) -> None:
        self.keep(power)
        super().__init__(model, optimizer, total_steps=total_steps)
        self.keep_late(power)

    def keep(self, power: float) -> None:
        self.power = require_positive("power", power)

    def keep_late(self, power: float) -> None: ...


class Unchecked(Weighted):
    def keep(self, power: float) -> None:
        self.power = power


class Misnamed(Weighted):
    def keep(self, power: float) -> None:
        self.power = require_positive("exponent", power)


class Failing(Weighted):
    def keep(self, power: float) -> None:
        self.power = power + 0.0


class CheckedLate(Weighted):
    def keep(self, power: float) -> None:
        self.power = power

    def keep_late(self, power: float) -> None:
        require_positive("power", power)


class RecordedLate(Weighted):
    def keep(self, power: float) -> None:
        require_positive("power", power)

    def keep_late(self, power: float) -> None:
        self.power = power


class NotPlain(Weighted):
    def keep(self, power: float) -> None:
        self.power = torch.tensor(require_positive("power", power))


@pytest.mark.parametrize(
    ("cls", "text"),
    [
        (Unchecked, "`power` = <object object .* is accepted"),
        (Misnamed, "expected a RegrowValueError that says `power`, got: `exponent` must be"),
        (Failing, "expected a RegrowValueError that says `power`, got TypeError"),
        (CheckedLate, "`power` is checked once the method is attached"),
        (RecordedLate, "`power` is not in the method's `settings`"),
        (NotPlain, "`power` is not in the method's `settings`"),
    ],
)
def test_an_option_that_is_not_checked_or_not_recorded_is_found(cls: type[regrow.Method], text: str) -> None:
    check_options(Case(Weighted))
    with pytest.raises(AssertionError, match=text):
        check_options(Case(cls))


def test_check_method_makes_these_checks() -> None:
    assert {check_counts, check_options} <= set(CHECKS)


def test_settings_are_the_plain_attributes_before_the_method_is_attached() -> None:
    model = regrow.sparsify(nn.Sequential(nn.Linear(8, 8)), sparsity=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = regrow.GraNet(model, optimizer, total_steps=100, update_every=5, final_sparsity=0.9, seed=3)
    wanted = {"method": "GraNet", "step": 0, "total_steps": 100, "final_sparsity": 0.9, "seed": 3}
    assert wanted.items() <= method.settings.items()
    assert (0.0, 0.6875) in method.settings.values()


@storages
@pytest.mark.parametrize(
    ("cls", "got"),
    [
        (Short, "1 of them"),
        (Backwards, "some twice, out of order, or out of range"),
        (Kept, "survivors among them"),
        (Floats, r"a tensor of float64 of shape \(2,\)"),
    ],
)
def test_what_grow_gives_is_looked_at_before_anything_moves(storage, cls, got):
    torch.manual_seed(0)
    model = regrow.sparsify(nn.Sequential(nn.Linear(10, 2)), 0.5, include=["0"], storage=storage)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    cls(model, optimizer, total_steps=100, update_every=2)
    before = {name: mask.clone() for name, mask in regrow.masks(model).items()}
    text = f"`grow` of {cls.__name__} must give 2 free positions of `0.weight`, .*; got {got}"
    with pytest.raises(regrow.errors.RegrowValueError, match=text):
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(4, 10)).sum().backward()
            optimizer.step()
    assert all(torch.equal(mask, before[name]) for name, mask in regrow.masks(model).items())
