"""The number of threads changes no bit of any result."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from machine import threads
from torch import Tensor

from regrow._random import generator, sample
from regrow.ops import csr, native
from regrow.ops.csr import Csr
from regrow.ops.linear import linear
from regrow.ops.reference import ACTIVATIONS
from regrow.ops.select import Best, top

pytestmark = pytest.mark.skipif(not native.available(), reason="the kernels were not built")


def alike(compute: Callable[[], list[Tensor]]) -> list[Tensor]:
    """What `compute` returns, with any number of threads."""
    found = []
    for number in (1, 2, 3, 4):
        with threads(number):
            found.append(compute())
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))
    return found[0]


@settings(deadline=None, max_examples=25)
@given(
    rows=st.integers(200, 900),
    columns=st.integers(200, 900),
    batch=st.sampled_from([1, 17, 64, 130, 300]),
    density=st.sampled_from([0.0, 0.01, 0.2, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    activation=st.sampled_from(list(ACTIVATIONS)),
    empty=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_passes(
    rows: int,
    columns: int,
    batch: int,
    density: float,
    dtype: torch.dtype,
    activation: str,
    empty: bool,
    seed: int,
) -> None:
    draw = generator(seed, "all")
    mask = torch.rand(rows, columns, generator=draw) < density
    if empty:
        mask[: rows // 2] = False
        mask[:, 3::2] = False
    crow, col = csr.from_positions(mask.view(-1).nonzero().view(-1), rows, columns)
    index = Csr.of(crow, col, columns)
    leaves = [
        torch.randn(*shape, generator=draw).to(dtype).requires_grad_()
        for shape in ((batch, columns), (len(col), 1), (rows,))
    ]

    def passes() -> list[Tensor]:
        output = linear(*leaves, index, activation)
        return [output, *torch.autograd.grad(output.square().sum(), leaves)]

    alike(passes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 5000, 200_000])
def test_selection(dtype: torch.dtype, count: int) -> None:
    """Few distinct scores, so that many are tied where the best end."""
    scores = torch.randn(700_000, generator=generator(0, "scores"), dtype=dtype).mul(20).round()
    excluded = sample(300_000, len(scores), generator(0, "excluded"))
    free = torch.ones(len(scores), dtype=torch.bool)
    free[excluded] = False
    ranked = scores.abs().where(free, -1)
    expected = torch.sort(ranked, descending=True, stable=True).indices[:count].sort().values

    def select() -> list[Tensor]:
        best = Best(count, torch.device("cpu"))
        assert best.add_magnitude(scores, excluded, 0)
        return [top(ranked, count), best.positions()]

    assert all(torch.equal(found, expected) for found in alike(select))


@pytest.mark.parametrize(("rows", "columns", "connections"), [(700, 1100, 200_000), (50_000, 3, 90_000)])
def test_updates(rows: int, columns: int, connections: int) -> None:
    """Against the reference on plain torch, with enough connections for several parts."""
    before = sample(connections, rows * columns, generator(0, "before"))
    drop = sample(connections // 3, connections, generator(0, "drop"))
    survivors = before[torch.ones(connections, dtype=torch.bool).index_fill(0, drop, False)]
    after = torch.cat([survivors, before[drop[::7]]])
    free = torch.ones(rows * columns, dtype=torch.bool).index_fill(0, after, False).nonzero().view(-1)
    grow = torch.cat([before[drop[::7]], free[:: len(free) // 10_000]]).unique()
    crow, col = csr.from_positions(before, rows, columns)
    values = torch.randn(connections, 1)

    def update() -> list[Tensor]:
        new_crow, new_col, source, _ = csr.rewire(crow, col, columns, drop, grow)
        moved = torch.cat([values, torch.zeros(len(source), 1)])
        csr.move(source, moved)
        known = torch.tensor(csr.fingerprint(new_crow, new_col, columns))
        kept = csr.positions(crow, col, columns, drop)
        return [new_crow, new_col, source, moved, known, kept, *Csr.of(new_crow, new_col, columns)[2:]]

    found = alike(update)
    assert torch.equal(found[5], survivors)
    assert torch.equal(csr.positions(found[0], found[1], columns), torch.cat([survivors, grow]).unique())
    dense = torch.zeros(rows * columns).index_put((before,), values[:, 0])
    stays = torch.ones(rows * columns, dtype=torch.bool).index_fill(0, before[drop], False)
    stays[grow] = True
    expected = (dense * stays)[csr.positions(found[0], found[1], columns)]
    assert torch.equal(found[3][: len(expected), 0], expected)
