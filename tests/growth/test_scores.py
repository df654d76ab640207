"""Growth by scores of every kind, on both storages, against dense tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import regrow
from regrow._random import generator, sample
from regrow.growth import gradient as growth_gradient
from regrow.growth.among import Among
from regrow.growth.scores import FunctionScore, GradientMagnitude, Score, as_score, gradient_magnitude
from regrow.growth.search import best_of_rows
from regrow.weights import NonFiniteGradientError, SparseWeight, hook_of, sparse_weights

STORAGES = ["masked", "compressed"]


class Driver:
    def wants_dense_gradient(self) -> bool:
        return True


def with_gradient(storage: str, rows: int, columns: int, nnz: int, seed: int) -> tuple[SparseWeight, Tensor]:
    """A weight whose dense gradient is stashed, which is of small whole numbers with many ties."""
    model = nn.Sequential(nn.Linear(columns, rows, bias=False).double())
    mask = torch.zeros(rows * columns, dtype=torch.bool)
    mask[sample(nnz, rows * columns, generator(seed, "mask"))] = True
    regrow.sparsify(model, init={"0.weight": mask.view(rows, columns)}, storage=storage)
    (weight,) = sparse_weights(model)
    x, g = (
        torch.randint(-2, 3, (3, size), generator=generator(seed, name)).double()
        for size, name in ((columns, "x"), (rows, "g"))
    )
    hook, driver = hook_of(weight.parameter), Driver()
    assert hook is not None
    hook.driver = __import__("weakref").ref(driver)
    model(x).backward(g)
    hook.driver = None
    return weight, g.t() @ x


def of_rows(scores: Tensor, free: Tensor, counts: Tensor) -> Tensor:
    """The positions with the best scores of each row, one row after the other."""
    found = []
    for row, count in enumerate(counts.tolist()):
        candidates = free[row].nonzero().view(-1)
        order = scores[row, candidates].sort(descending=True, stable=True).indices[:count]
        found.append(candidates[order].sort().values + row * scores.shape[1])
    return torch.cat(found)


def far(tile: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """A plain function, whose scores may be -inf."""
    return torch.where((row + column) % 3 == 0, -float("inf"), tile + row - column)


class Relative(Score):
    """A score without a kernel."""

    def __call__(self, gradient: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        return gradient.abs() / (1 + rows)


geometry = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda shape: st.tuples(st.just(shape), st.integers(1, shape[0] * shape[1]))
)


@settings(deadline=None, max_examples=30)
@given(
    geometry=geometry,
    data=st.data(),
    seed=st.integers(0, 1000),
    tile=st.sampled_from([1, 20, 1 << 19]),
    narrow=st.booleans(),
)
def test_the_best_of_each_row(geometry: Any, data: st.DataObject, seed: int, tile: int, narrow: bool) -> None:
    (rows, columns), nnz = geometry
    kept = data.draw(st.integers(0, nnz))
    growth_gradient.TILE, before = tile, growth_gradient.TILE
    try:
        for storage in STORAGES:
            weight, gradient = with_gradient(storage, rows, columns, nnz, seed)
            survivors = weight.positions()[sample(kept, nnz, generator(seed, "kept"))]
            free = torch.ones(rows * columns, dtype=torch.bool).index_fill(0, survivors, False)
            free, among = free.view(rows, columns), None
            if narrow:
                some = sample(max(1, columns // 2), columns, generator(seed, "columns"))
                among = Among(some, columns)
                free = free & torch.zeros(columns, dtype=torch.bool).index_fill(0, some, True)
            counts = (free.sum(1) * torch.rand(rows, generator=generator(seed, "counts"))).round().long()
            row, column = torch.arange(rows)[:, None], torch.arange(columns)[None, :]
            for score in (gradient_magnitude, Relative(), far):
                expected = of_rows(score(gradient, row, column), free, counts)
                assert torch.equal(weight.best_of_rows(counts, survivors, score, among=among), expected)
    finally:
        growth_gradient.TILE = before


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("tile", [1, 50, 1 << 19])
def test_a_plain_function_finds_what_a_kernel_finds(
    storage: str, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth_gradient, "TILE", tile)
    weight, gradient = with_gradient(storage, 20, 30, 60, 0)
    survivors = weight.positions()
    free = torch.ones(600, dtype=torch.bool).index_fill(0, survivors, False).nonzero().view(-1)
    for count in (0, 1, 100, len(free)):
        order = gradient.abs().view(-1)[free].sort(descending=True, stable=True).indices[:count]
        expected = free[order].sort().values
        for score in (gradient_magnitude, GradientMagnitude(), lambda g, *_: g.abs()):
            assert torch.equal(weight.best(count, survivors, score), expected)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_score_of_rows_alone(storage: str) -> None:
    """Which has the shape [r, 1]."""
    weight, _ = with_gradient(storage, 4, 5, 6, 0)
    survivors = weight.positions()
    in_last = 5 - int((survivors >= 15).sum())
    found = weight.best(in_last, survivors, lambda g, rows, columns: rows.to(g.dtype))
    assert (found >= 15).all()


@pytest.mark.parametrize("storage", STORAGES)
def test_scores_of_survivors_do_not_count(storage: str) -> None:
    weight, gradient = with_gradient(storage, 4, 5, 6, 0)
    survivors, mask = weight.positions(), weight.mask()

    def score(tile: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        return tile.abs().masked_fill(mask[rows, columns], float("nan"))

    expected = weight.best(5, survivors, gradient_magnitude)
    assert torch.equal(weight.best(5, survivors, score), expected)
    counts = torch.ones(4, dtype=torch.int64)
    free = gradient.abs().masked_fill(mask, -1)
    assert torch.equal(weight.best_of_rows(counts, survivors, score) % 5, free.max(1).indices)
    for form in (weight.best, weight.best_of_rows):
        with pytest.raises(regrow.RegrowError, match="a score is nan"):
            form(5 if form == weight.best else counts, survivors[:0], score)  # type: ignore[operator]


@pytest.mark.parametrize("storage", STORAGES)
def test_what_cannot_be_chosen_by_rows(storage: str) -> None:
    weight, gradient = with_gradient(storage, 4, 5, 6, 0)
    survivors = weight.positions()
    with pytest.raises(regrow.RegrowError, match=r"6 are to come where \d are free"):
        weight.best_of_rows(torch.tensor([0, 6, 0, 0]), survivors, gradient_magnitude)
    for wrong in (torch.tensor([1, 1, 1]), torch.ones(4), torch.tensor([1, 1, 1, -1])):
        with pytest.raises(regrow.RegrowError, match="`counts` must hold a whole number of at least 0"):
            weight.best_of_rows(wrong, survivors, gradient_magnitude)
    with pytest.raises(NonFiniteGradientError):
        best_of_whole(gradient.index_fill(0, torch.tensor([2]), float("inf")))


def best_of_whole(gradient: Tensor) -> Tensor:
    counts, nothing = torch.ones(len(gradient), dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    return best_of_rows(growth_gradient.Whole(gradient), counts, nothing, gradient_magnitude)


def test_scores_are_made_of_functions_and_kernels_are_not_inherited() -> None:
    assert as_score(gradient_magnitude) is gradient_magnitude
    assert isinstance(as_score(far), FunctionScore)
    with pytest.raises(regrow.RegrowError, match=r"`score` must be a function \(gradient, rows, columns\)"):
        as_score(lambda gradient: gradient)  # type: ignore[misc,arg-type]
    with pytest.raises(TypeError, match="subclass Score"):
        type("Mine", (GradientMagnitude,), {})
