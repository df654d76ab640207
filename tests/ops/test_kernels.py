"""The kernels, each instruction set that this machine has, against dense float64."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from machine import ISAS, threads, using
from torch import Tensor

from regrow._random import generator, sample
from regrow.ops import csr, native
from regrow.ops.csr import Csr
from regrow.ops.linear import linear, sparse_linear
from regrow.ops.reference import ACTIVATIONS, THROUGH, stride_of
from regrow.ops.select import Best, top

pytestmark = pytest.mark.skipif(not native.available(), reason="the kernels were not built")

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.02}


def topology(rows: int, columns: int, density: float, seed: int) -> tuple[Tensor, Csr]:
    """A mask with some rows and columns left empty, and its index, with padding."""
    mask = torch.rand(rows, columns, generator=generator(seed, "mask")) < density
    if 0 < density < 1:
        mask[torch.rand(rows, generator=generator(seed, "rows")) < 0.2] = False
        mask[:, torch.rand(columns, generator=generator(seed, "columns")) < 0.2] = False
    crow = torch.zeros(rows + 1, dtype=torch.int32)
    crow[1:] = mask.sum(1).cumsum(0)
    col = torch.cat([mask.nonzero()[:, 1], torch.zeros(seed % 3)]).int()
    return mask, Csr.of(crow, col, columns)


def laid_out(x: Tensor, layout: str) -> Tensor:
    if layout == "inner":
        return x.t().contiguous().t()
    if layout == "ours":
        return x.new_empty(x.shape[1], stride_of(len(x)))[:, : len(x)].t().copy_(x)
    if layout == "slice of nan":  # what lies past the batch must not matter
        wide = x.new_full((x.shape[1], (len(x) + 15) // 16 * 16 + 16), float("nan"))
        return wide[:, : len(x)].t().copy_(x)
    if layout == "strided":
        return torch.stack([x, x], -1)[..., 0]
    return x


@pytest.mark.parametrize("isa", ISAS)
@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 70),
    columns=st.integers(1, 300),
    batch=st.sampled_from([0, 1, 3, 8, 15, 16, 17, 48, 100, 112, 128, 129, 260]),
    density=st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]),
    dtype=st.sampled_from(list(TOLERANCE)),
    layouts=st.tuples(*[st.sampled_from(["torch", "inner", "ours", "slice of nan", "strided"])] * 2),
    bias=st.booleans(),
    activation=st.sampled_from(list(ACTIVATIONS)),
    needs=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    seed=st.integers(0, 10**6),
)
def test_linear(
    isa: str,
    rows: int,
    columns: int,
    batch: int,
    density: float,
    dtype: torch.dtype,
    layouts: tuple[str, str],
    bias: bool,
    activation: str,
    needs: tuple[bool, bool, bool],
    seed: int,
) -> None:
    mask, index = topology(rows, columns, density, seed)
    draw = generator(seed, "values")

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

    weight = torch.zeros(rows, columns, dtype=torch.float64)
    weight[mask] = drawn(int(mask.sum())).double()
    values = torch.cat([weight[mask].to(dtype), torch.full((seed % 3,), 7.0, dtype=dtype)])[:, None]
    x, b, g = drawn(batch, columns), drawn(rows) if bias else None, drawn(batch, rows)
    exact = [t.double() for t in (x, weight)]
    reference = exact[0] @ exact[1].t() + (0 if b is None else b.double())

    leaves = [
        t if t is None else t.requires_grad_(need) for t, need in zip((x, values, b), needs, strict=True)
    ]
    with using(isa):
        output = linear(laid_out(x, layouts[0]), leaves[1], leaves[2], index, activation)
        if output.requires_grad:
            output.backward(laid_out(g, layouts[1]))

    def close(found: Tensor, expected: Tensor, terms: int) -> None:
        assert found.dtype == dtype
        limit = TOLERANCE[dtype] * (1 + terms**0.5) * 4
        torch.testing.assert_close(found.double(), expected, rtol=TOLERANCE[dtype], atol=limit)

    assert output.stride() == laid_out(output, "ours").stride()
    close(output.detach(), ACTIVATIONS[activation](reference), columns)
    kept = output.detach().double() if activation == "relu" else reference
    through = THROUGH[activation](g.double(), kept) if activation in THROUGH else g.double()
    if needs[0]:
        assert x.grad is not None
        close(x.grad, through @ exact[1], rows)
    if needs[1]:
        assert values.grad is not None
        close(values.grad[: len(values) - seed % 3, 0], (through.t() @ exact[0])[mask], batch)
        assert not values.grad[len(values) - seed % 3 :].any()
    if needs[2] and b is not None:
        assert b.grad is not None
        close(b.grad, through.sum(0), batch)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("rows", "columns", "density"), [(700, 900, 0.2), (2000, 1500, 0.03), (3000, 2500, 0.005)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_layers_and_the_number_of_threads(
    isa: str, rows: int, columns: int, density: float, dtype: torch.dtype
) -> None:
    """Many blocks and parts; a number of threads changes no bit."""
    mask, index = topology(rows, columns, density, 0)
    values = torch.randn(int(mask.sum()), 1, dtype=dtype, requires_grad=True)
    x = torch.randn(300, columns, dtype=dtype, requires_grad=True)
    b = torch.randn(rows, dtype=dtype, requires_grad=True)
    results = []
    for number in (1, 2, 3):
        with threads(number), using(isa):
            y = linear(x, values, b, index, "relu")
            results.append((y, *torch.autograd.grad(y.square().sum(), [x, values, b])))
    for several in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], several, strict=True))
    if dtype == torch.float32:
        weight = torch.zeros(rows, columns, dtype=torch.float64)
        weight[mask] = values[:, 0].detach().double()
        reference = (x.detach().double() @ weight.t() + b.detach()).relu()
        torch.testing.assert_close(results[0][0].double(), reference, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_gradcheck(isa: str, activation: str) -> None:
    _, index = topology(9, 14, 0.4, 1)
    values = torch.randn(len(index.col), 1, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 3, 14, dtype=torch.float64, requires_grad=True)
    b = torch.randn(9, dtype=torch.float64, requires_grad=True)
    with using(isa):
        assert torch.autograd.gradcheck(lambda *t: linear(*t, index, activation), (x, values, b))
        assert torch.autograd.gradcheck(lambda *t: sparse_linear(*t, *index, activation), (x, values, b))


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("shape", [(20, 14), (100, 14), (2, 3, 14), (14,)])
def test_opcheck(shape: tuple[int, ...], activation: str) -> None:
    _, index = topology(9, 14, 0.4, 1)
    values = torch.randn(len(index.col), 1, requires_grad=True)
    x, b = torch.randn(shape, requires_grad=True), torch.randn(9, requires_grad=True)
    torch.library.opcheck(sparse_linear, (x, values, b, *index, activation))


def test_a_chain_never_changes_its_layout() -> None:
    _, index = topology(30, 30, 0.4, 1)
    values = torch.randn(len(index.col), 1, requires_grad=True)
    x = torch.randn(100, 30).t().contiguous().t()
    y = linear(linear(x, values, None, index, "relu"), values, None, index)
    assert y.stride() == (1, 112)


@given(
    scores=st.lists(
        st.sampled_from([-2.0, -1.0, 0.0, -0.0, 0.5, 3.0, float("inf"), -float("inf")]), max_size=300
    ),
    height=st.integers(1, 100),
    magnitude=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    data=st.data(),
)
def test_the_best_of_tiles(
    scores: list[float], height: int, magnitude: bool, dtype: torch.dtype, data: st.DataObject
) -> None:
    all_scores = torch.tensor(scores, dtype=dtype)
    if magnitude:
        all_scores = all_scores.nan_to_num(posinf=5.0, neginf=-5.0)
    excluded = torch.tensor(sorted(data.draw(st.sets(st.integers(0, len(scores)), max_size=len(scores)))))
    excluded = excluded[excluded < len(scores)].long()
    free = torch.ones(len(scores), dtype=torch.bool)
    free[excluded] = False
    positions = free.nonzero().view(-1)
    count = data.draw(st.integers(0, len(positions)))
    ranked = all_scores.abs() if magnitude else all_scores
    expected = positions[top(ranked[positions], count)]

    best = Best(count, torch.device("cpu"))
    for start in range(0, len(scores), height):
        tile = all_scores[start : start + height]
        inside = excluded[(excluded >= start) & (excluded < start + height)]
        if magnitude:
            assert best.add_magnitude(tile, inside, start)
        else:
            best.add(tile, inside, start)
    assert torch.equal(best.positions(), expected)


def test_many_candidates_in_many_tiles() -> None:
    scores = torch.randn(600_000, generator=generator(0, "scores")).mul(50).round()
    excluded = sample(200_000, len(scores), generator(0, "excluded"))
    free = torch.ones(len(scores), dtype=torch.bool)
    free[excluded] = False
    positions = free.nonzero().view(-1)
    for count in (1, 1000, 150_000):
        best = Best(count, torch.device("cpu"))
        for start in range(0, len(scores), 100_000):
            inside = excluded[(excluded >= start) & (excluded < start + 100_000)]
            assert best.add_magnitude(scores[start : start + 100_000], inside, start)
        assert torch.equal(best.positions(), positions[top(scores.abs()[positions], count)])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_found(bad: float) -> None:
    tile = torch.zeros(200)
    tile[137] = bad
    assert not Best(3, torch.device("cpu")).add_magnitude(tile, torch.tensor([137]), 0)


@settings(deadline=None)
@given(rows=st.integers(1, 20), columns=st.integers(1, 20), seed=st.integers(0, 10**6), data=st.data())
def test_rewire_and_mirror_as_the_reference(rows: int, columns: int, seed: int, data: st.DataObject) -> None:
    mask, index = topology(rows, columns, 0.3, seed)
    crow, col, *mirrored = index
    nnz = int(crow[-1])
    drop = torch.tensor(data.draw(st.permutations(range(nnz))), dtype=torch.int64)[
        : data.draw(st.integers(0, nnz))
    ]
    kept = mask.view(-1).clone()
    kept[csr.positions(crow, col, columns)[drop]] = False
    free = (~kept).nonzero().view(-1)
    grow = free[sample(data.draw(st.integers(0, len(free))), len(free), generator(seed, "grow"))]

    changed = csr.rewire(crow, col, columns, drop, grow)
    moved = torch.arange(1, len(col) + len(grow) + 1, dtype=torch.float32)[:, None]
    before = moved.clone()
    csr.move(changed[2], moved)
    with without_kernels():
        expected = csr.rewire(crow, col, columns, drop, grow)
        reference = before.clone()
        csr.move(expected[2], reference)
        mirror = Csr.of(crow, col, columns)[2:]
        fingerprint = csr.fingerprint(crow, col, columns)
    assert all(torch.equal(*pair) for pair in zip(changed[:3], expected[:3], strict=True))
    assert changed[3] == expected[3] == int((changed[2] < 0).sum())
    assert all(torch.equal(*pair) for pair in zip(mirrored, mirror, strict=True))
    assert torch.equal(moved, reference)
    assert csr.fingerprint(crow, col, columns) == index.rebuild_mirror() == fingerprint


@contextmanager
def without_kernels() -> Iterator[None]:
    available, native.available = native.available, lambda: False
    try:
        yield
    finally:
        native.available = available


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda col: col.fill_(99), "`col` must be in"),
        (lambda col: col.long(), "`col` must be a contiguous int32 vector"),
        (lambda col: col[:2], "`col` must be a contiguous int32 vector on the CPU of at least"),
    ],
)
def test_an_index_that_does_not_fit(change: Callable[[Tensor], Tensor], message: str) -> None:
    _, index = topology(9, 14, 0.4, 1)
    with pytest.raises(RuntimeError, match=message):
        Csr.of(index.crow, change(index.col), 14)


def test_the_instruction_set_can_be_forced() -> None:
    code = "from regrow.ops import native; print(native.isa())"
    for isa in ISAS:
        run = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "REGROW_ISA": isa},
            check=True,
            capture_output=True,
            text=True,
        )
        assert run.stdout.strip() == isa
    with pytest.raises(RuntimeError, match="REGROW_ISA must be one of .*baseline on this machine, got sse9"):
        torch.ops.regrow_native.set_isa("sse9")
