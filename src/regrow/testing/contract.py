"""The checks of what a method promises its callers: exact counts, options that are checked and compared, refusals."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer

from regrow.arguments import said
from regrow.errors import RegrowError
from regrow.methods import Dynamic
from regrow.sparsity.core import sparsify
from regrow.sparsity.distributions import whole_share
from regrow.testing.runs import STEPS, Case, Run
from regrow.weights import SparseWeight, sparse_weights
from regrow.weights.gates import Move


@contextmanager
def refused(*words: str) -> Iterator[None]:
    """Expect a `RegrowError` that says these words."""
    try:
        yield
    except RegrowError as error:
        for word in words:
            if word not in str(error):
                raise AssertionError(f"the error does not say {word!r}: {error}") from error
        return
    raise AssertionError(f"no RegrowError was raised; expected one that says {', '.join(words)}")


def check_counts(case: Case) -> None:
    """Check that as many connections go as `whole_share` says, and exactly as many positions come as are asked for.

    Seen on a layer of one row whose weights are positive, so that methods that count by row or by sign pass too.
    A method with a `moves` of its own counts there, and is not checked.
    """
    run = Run(case, attach=False)
    run.model = _one_row(case.storage, case.pattern or case.cls.pattern)
    run.optimizer = SGD(run.model.parameters(), lr=0.01)
    run.method = method = case.method(run.model, run.optimizer)
    if not isinstance(method, Dynamic) or type(method).moves is not Dynamic.moves:
        return
    seen: list[int] = []

    def moves(step: int, weights: list[SparseWeight]) -> list[Move]:
        for whole in sparse_weights(run.model):
            whole.fill(whole.positions(), whole.magnitudes() + 1)
        for weight in weights:
            for fraction in [i / 200 for i in range(201)]:
                _check_counts(method, weight, step, fraction)
        seen.append(step)
        return Dynamic.moves(method, step, weights)

    method.moves = moves  # type: ignore[method-assign]
    for _ in run.train(0, STEPS):
        if seen:
            return


def _one_row(storage: str, pattern: str | tuple[int, int] | None) -> nn.Module:
    """Make a network whose sparse layer has one row, with 100 of its 200 connections."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 200), nn.Linear(200, 1), nn.Linear(1, 5)).double()
    return sparsify(
        model, sparsity=0.5, distribution="uniform", include="2", storage=storage, pattern=pattern
    )


def _check_counts(method: Dynamic, weight: SparseWeight, step: int, fraction: float) -> None:
    drop = method.drop(weight, fraction)
    count = whole_share(fraction, weight.nnz)
    assert len(drop.unique()) == len(drop), f"drop names a connection twice at fraction {fraction}"
    assert len(drop) == count, (
        f"drop gives {len(drop)} of {weight.nnz} connections at fraction {fraction}, expected {count}: "
        f"regrow.distributions.whole_share({fraction}, {weight.nnz})"
    )
    if fraction not in (0.0, 0.29, 1.0):
        return
    survivors = weight.survivors(drop)
    grown = method.grow(weight, count, survivors, method.random(step, weight))
    assert grown.dtype == torch.int64, f"grow gives {grown.dtype}, expected torch.int64"
    assert grown.shape == (count,), f"grow gives a shape of {tuple(grown.shape)}, {(count,)} was asked for"
    assert (grown.diff() > 0).all(), "grow gives positions that are not ascending"
    assert not torch.isin(grown, survivors).any(), "grow gives a survivor"


def check_options(case: Case) -> None:
    """Check that every option is checked before anything is attached, and processes see where theirs differ."""
    model = case.network()
    optimizer = SGD(model.parameters(), lr=0.1)
    options = {k: v for k, v in case.arguments.items() if k not in ("model", "optimizer")}
    for name, value in options.items():
        for bad in (object(), math.nan, *(["nothing"] if isinstance(value, str) else [])):
            _check_refused(case, model, optimizer, name, bad)
    usual = _settings(case, model, optimizer)
    for name, value in options.items():
        others = [
            found for other in _others(value) if (found := _settings(case, model, optimizer, **{name: other}))
        ]
        assert not others or any(found != usual for found in others), (
            f"`{name}` is not in the method's `settings`, which processes that train one model compare.\n"
            f"Assign it to self.{name} as a number, a word or a tuple of them, before super().__init__(...)."
        )


def _check_refused(case: Case, model: nn.Module, optimizer: Optimizer, name: str, bad: object) -> None:
    wanted = f"expected a RegrowValueError that says `{name}`"
    try:
        case.method(model, optimizer, **{name: bad})
    except RegrowError as error:
        assert f"`{name}" in str(error), f"`{name}` = {said(bad)}: {wanted}, got: {error}"
    except Exception as error:
        raise AssertionError(
            f"`{name}` = {said(bad)}: {wanted}, got {type(error).__name__}: {error}"
        ) from error
    else:
        raise AssertionError(f"`{name}` = {said(bad)} is accepted: {wanted}, before super().__init__(...)")
    assert all(weight.driver() is None for weight in sparse_weights(model)), (
        f"`{name}` is checked once the method is attached: check it before super().__init__(...)"
    )


def _others(value: object) -> list[Any]:
    """Suggest other values of an option, by its present one; none are known for words and functions."""
    match value:
        case bool():
            return [not value]
        case int():
            return [value + 1, 2 * value + 2, value // 2]
        case float():
            return [value / 2, (1 + value) / 2, value + 1]
        case None:
            return [True, False, 1, 0.5]
    return []


def _settings(case: Case, model: nn.Module, optimizer: Optimizer, **options: Any) -> dict[str, Any] | None:
    """Return the settings of a method with these options, or None where they are not allowed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a schedule without an update
        try:
            method = case.method(model, optimizer, **options)
        except RegrowError:
            return None
    method.detach()
    return method.settings


def check_refusals(case: Case) -> None:
    """Check that wrong use is refused, with the remedy."""
    dense = nn.Sequential(nn.Linear(4, 4))
    with refused("regrow.sparsify(model"):
        case.method(dense, SGD(dense.parameters(), lr=0.1))
    model = case.network()
    with refused("`optimizer`", "does not hold"):
        case.method(model, SGD(case.network().parameters(), lr=0.1))
    optimizer = SGD(model.parameters(), lr=0.1)
    with refused("`optimizer`", "one optimizer"):
        case.method(model, [optimizer, optimizer])  # type: ignore[arg-type]
    with refused("`total_steps`", "0"):
        case.method(model, optimizer, total_steps=0)
    if "drop_fraction" in case.arguments:
        with refused("`drop_fraction`", "-0.1"):
            case.method(model, optimizer, drop_fraction=-0.1)
    case.method(model, optimizer)
    with refused("detach"):
        case.method(model, optimizer)
