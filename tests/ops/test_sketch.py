"""The sketch of distinct positions."""

from __future__ import annotations

import pytest
import torch

from regrow._random import generator, sample
from regrow.ops import csr, sketch


@pytest.mark.parametrize("population", [1, 100, sketch.SIZE])
def test_small_populations_are_counted_exactly(population: int) -> None:
    entries, seen = None, set()
    for i in range(5):
        positions = sample(population // 3, population, generator(i))
        entries = sketch.add(positions, population, entries)
        seen |= set(positions.tolist())
    assert entries is not None
    assert sketch.count(entries, population) == len(seen)


@pytest.mark.parametrize("distinct", [1, 1000, 30_000, 300_000, 3_000_000])
def test_large_populations_within_three_standard_errors(distinct: int) -> None:
    population = 10**12
    positions = sample(distinct, population, generator(distinct))
    half = sketch.add(positions[: distinct // 2], population, None)
    entries = sketch.add(positions, population, sketch.add(positions[::2], population, half))
    assert len(entries) == sketch.SIZE
    assert sketch.count(entries, population) == pytest.approx(distinct, rel=0.025)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_a_cast_changes_nothing(dtype: torch.dtype) -> None:
    entries = sketch.add(sample(100_000, 10**9, generator(0)), 10**9, None)
    more = sample(1000, 10**9, generator(1))
    assert torch.equal(sketch.add(more, 10**9, entries.to(dtype)), sketch.add(more, 10**9, entries))


@pytest.mark.parametrize(
    ("rows", "columns", "count"), [(3, 5, 7), (300, 200, 0), (300, 200, 20_000), (70_000, 90_000, 400_000)]
)
def test_of_an_index_as_of_its_positions(rows: int, columns: int, count: int) -> None:
    positions = sample(count, rows * columns, generator(count))
    crow, col = csr.from_positions(positions, rows, columns)
    before = sketch.add(sample(count // 2, rows * columns, generator(1)), rows * columns, None)
    kept = before.clone()
    found = csr.explored(crow, col, columns, before)
    assert torch.equal(found, sketch.add(positions, rows * columns, before))
    assert torch.equal(before, kept)
    assert torch.equal(csr.explored(crow, col, columns, None), sketch.add(positions, rows * columns, None))
