"""The protocol on both storages, against dense tensors, over random shapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import regrow
from regrow._random import generator, sample
from regrow.growth import gradient as growth_gradient
from regrow.methods.criteria import gradient_magnitude, random_positions
from regrow.weights import NonFiniteGradientError, SparseWeight, hook_of, sparse_weights

storages = ["masked", "compressed"]


def weight(
    storage: str, rows: int, columns: int, nnz: int, seed: int = 0
) -> tuple[nn.Sequential, SparseWeight]:
    model = nn.Sequential(nn.Linear(columns, rows).double())
    nn.init.normal_(model[0].weight, generator=generator(seed))
    mask = torch.zeros(rows * columns, dtype=torch.bool)
    mask[sample(nnz, rows * columns, generator(seed, "mask"))] = True
    regrow.sparsify(model, init={"0.weight": mask.view(rows, columns)}, storage=storage)
    (found,) = sparse_weights(model)
    return model, found


def stash(model: nn.Sequential, found: SparseWeight, seed: int = 0) -> torch.Tensor:
    """Run a backward pass that leaves its dense gradient stashed; returns that gradient."""

    class Driver:
        def wants_dense_gradient(self) -> bool:
            return True

    driver = Driver()
    columns, rows = model[0].in_features, model[0].out_features
    x = torch.randn(6, columns, generator=generator(seed, "x"), dtype=torch.float64)
    g = torch.randn(6, rows, generator=generator(seed, "g"), dtype=torch.float64)
    hook = hook_of(found.parameter)
    assert hook is not None
    hook.driver = __import__("weakref").ref(driver)
    model(x).backward(g)
    hook.driver = None
    return g.t() @ x


geometry = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(
    lambda shape: st.tuples(st.just(shape), st.integers(1, shape[0] * shape[1]))
)


@settings(deadline=None, max_examples=40)
@given(geometry=geometry, seed=st.integers(0, 1000))
def test_both_storages_say_the_same(geometry: Any, seed: int) -> None:
    (rows, columns), nnz = geometry
    (_, masked), (_, packed) = (weight(s, rows, columns, nnz, seed) for s in storages)
    assert (masked.storage, packed.storage) == ("masked", "compressed")
    for name in ("nnz", "shape", "numel", "density", "name"):
        assert getattr(masked, name) == getattr(packed, name)
    for name in ("positions", "values", "to_dense", "mask", "fan_in"):
        assert torch.equal(getattr(masked, name)(), getattr(packed, name)()), name
    assert masked.fingerprint() == packed.fingerprint()
    assert masked.fan_in().tolist() == masked.mask().sum(1).tolist()
    assert torch.equal(masked.mask().view(-1).nonzero().view(-1), masked.positions())


@settings(deadline=None, max_examples=40)
@given(geometry=geometry, data=st.data(), seed=st.integers(0, 1000))
def test_update_swaps_connections(geometry: Any, data: st.DataObject, seed: int) -> None:
    (rows, columns), nnz = geometry
    dropped = data.draw(st.integers(0, nnz))
    views = [weight(s, rows, columns, nnz, seed)[1] for s in storages]
    before = views[0].to_dense()
    drop = sample(dropped, nnz, generator(seed, "drop"))
    stays = torch.ones(nnz, dtype=torch.bool)
    stays[drop] = False
    survivors = views[0].positions()[stays]
    grown = data.draw(st.integers(0, dropped))
    grow = random_positions(views[0], grown, survivors, generator(seed, "grow"))
    expected_mask = torch.zeros(rows * columns, dtype=torch.bool)
    expected_mask[survivors], expected_mask[grow] = True, True
    expected = torch.where(expected_mask.view(rows, columns) & views[0].mask(), before, 0.0)
    for view in views:
        companion = view.parameter.detach().clone() * 3
        known = view.fingerprint()
        new = view.update(drop, grow, [companion])
        assert torch.equal(view.mask().view(-1), expected_mask)
        assert torch.equal(view.to_dense(), expected)
        assert torch.equal(view.take(companion), view.values() * 3)
        assert int(companion.count_nonzero()) == int(expected.count_nonzero())
        assert new == int((~torch.isin(grow, before.view(-1).nonzero())).sum())
        assert (view.fingerprint() == known) == torch.equal(expected_mask.view(rows, columns), before != 0)
        view.settle()


@pytest.mark.parametrize("storage", storages)
def test_no_candidates_in_a_full_weight(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        growth_gradient, "TILE", 1
    )  # larger than a tile, so that the kernels take a sample first
    model, view = weight(storage, 3, 4, 12, 0)
    stash(model, view, 0)
    assert len(view.best(0, view.positions(), gradient_magnitude)) == 0


@settings(deadline=None, max_examples=40)
@given(geometry=geometry, data=st.data(), seed=st.integers(0, 1000), tile=st.sampled_from([1, 7, 1 << 20]))
def test_the_best_candidates_are_those_of_the_dense_gradient(
    geometry: Any, data: st.DataObject, seed: int, tile: int
) -> None:
    (rows, columns), nnz = geometry
    kept = data.draw(st.integers(0, nnz))
    count = data.draw(st.integers(0, rows * columns - kept))
    growth_gradient.TILE, before = tile, growth_gradient.TILE
    try:
        for storage in storages:
            model, view = weight(storage, rows, columns, nnz, seed)
            gradient = stash(model, view, seed)
            survivors = view.positions()[sample(kept, nnz, generator(seed, "kept"))]
            free = torch.ones(rows * columns, dtype=torch.bool)
            free[survivors] = False
            candidates = free.nonzero().view(-1)
            order = gradient.abs().view(-1)[candidates].sort(descending=True, stable=True).indices[:count]
            expected = candidates[order].sort().values
            assert torch.equal(view.best(count, survivors, gradient_magnitude), expected)

            def farthest(tile: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
                return (row * 1.0 + column * 100 + tile * 0).to(tile.dtype)

            wanted = farthest(gradient, torch.arange(rows)[:, None], torch.arange(columns)[None, :]).view(-1)
            order = wanted[candidates].sort(descending=True, stable=True).indices[:count]
            assert torch.equal(view.best(count, survivors, farthest), candidates[order].sort().values)
    finally:
        growth_gradient.TILE = before


@pytest.mark.parametrize("storage", storages)
def test_a_gradient_that_is_not_finite_gives_no_candidates(storage: str) -> None:
    model, view = weight(storage, 4, 5, 6)
    stash(model, view)
    hook = hook_of(view.parameter)
    assert hook is not None
    if storage == "masked":
        hook.stash[1, 2] = float("nan")
    else:
        hook.stash[0][0][1, 2] = float("inf")
    with pytest.raises(NonFiniteGradientError):
        view.best(1, view.positions(), gradient_magnitude)


@settings(deadline=None, max_examples=60)
@given(free=st.integers(0, 30), taken=st.integers(0, 30), seed=st.integers(0, 10_000))
def test_random_positions_are_free_and_distinct(free: int, taken: int, seed: int) -> None:
    population = max(1, free + taken)
    _, view = weight("masked", 1, population, population)
    survivors = sample(population - free if free + taken else 0, population, generator(seed, "survivors"))
    count = min(3, population - len(survivors))
    found = random_positions(view, count, survivors, generator(seed))
    assert len(found.unique()) == count
    assert not torch.isin(found, survivors).any()
    assert count == 0 or (found.min() >= 0 and found.max() < population)


def test_random_positions_reach_every_free_position_equally_often() -> None:
    _, view = weight("compressed", 2, 5, 10)
    survivors = torch.tensor([0, 3, 4, 9])
    draws = torch.cat([random_positions(view, 2, survivors, generator(i)) for i in range(6000)])
    counts = draws.bincount(minlength=10).double()
    assert not counts[survivors].any()
    free = counts[torch.tensor([1, 2, 5, 6, 7, 8])]
    assert ((free - 2000) ** 2 / 2000).sum() < 20.5  # 5 degrees of freedom: once in a thousand


def test_more_connections_than_there_is_room_for() -> None:
    _, view = weight("compressed", 4, 5, 6)
    free = (~view.mask()).view(-1).nonzero().view(-1)
    with pytest.raises(
        regrow.RegrowError, match=r"room for 6 connections in compressed storage and would get 8.*masked"
    ):
        view.update(torch.tensor([0]), free[:3])


@pytest.mark.parametrize("storage", storages)
def test_assign_replaces_topology_and_values(storage: str) -> None:
    model, view = weight(storage, 4, 5, 6)
    parameter = view.parameter
    positions = torch.tensor([0, 7, 8, 19])
    view.assign(positions, torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64))
    assert view.parameter is parameter
    assert torch.equal(view.positions(), positions)
    assert view.values().tolist() == [1, 2, 3, 4]
    x = torch.randn(3, 5, dtype=torch.float64)
    torch.testing.assert_close(model(x), x @ view.to_dense().t() + model[0].bias)


def test_a_topology_that_others_overwrite_is_noticed_and_one_that_they_rewrite_is_not() -> None:
    for storage in storages:
        model, view = weight(storage, 4, 5, 6)
        buffer = next(iter(view.topology.values()))
        buffer.copy_(buffer.clone())
        model(torch.randn(2, 5, dtype=torch.float64))
        other = weight(storage, 4, 5, 6, seed=1)[1]
        for mine, theirs in zip(view.topology.values(), other.topology.values(), strict=True):
            mine.copy_(theirs)
        with pytest.raises(
            regrow.RegrowError, match="the topology of `0.weight` was overwritten by other code"
        ):
            model(torch.randn(2, 5, dtype=torch.float64))
