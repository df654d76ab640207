"""The arithmetic of the tables, on numbers worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regrow.app.bench.linear import Linear
from regrow.app.bench.memory import Memory
from regrow.app.bench.peak import Run
from regrow.app.bench.rows import Comparison, exponent, milliseconds
from regrow.app.bench.scale import Scale, fit, square
from regrow.app.bench.updates import Update
from regrow.measure.timing import Load, Timing

QUIET = Load(0.5, 2, 0.01)


def timing(median: float) -> Timing:
    return Timing(median, 0.9 * median, 1.2 * median, 7)


def run(connections: int, start: int, steps: int, update: int, seconds: float = 1.0) -> Run:
    return Run(connections, 0.5, start, steps, update, timing(seconds), QUIET)


def test_a_comparison_is_with_the_best_dense_way() -> None:
    dense = {"eager": timing(0.010), "compiled": timing(0.008)}
    row = Comparison("linear 10x10", 4, 0.9, "forward", (8e9, 8e8), dense, timing(0.002), QUIET)
    assert (row.best, row.faster) == ("compiled", pytest.approx(4))
    assert row.gflops == pytest.approx(400)
    assert row.utilisation == pytest.approx(0.4)  # 400 of the dense side's 1000 GFLOP/s
    cells = row.cells()
    assert (cells["dense ms"], cells["sparse ms"], cells["faster"]) == ("8.00 ±15% c", "2.00 ±15%", "4.00x")
    assert row.to_dict()["dense"]["eager"]["median"] == 0.010


def test_what_nobody_can_count_has_no_rate() -> None:
    row = Comparison("own", 4, 0.9, "step", None, {"eager": timing(1)}, timing(2), QUIET)
    assert (row.gflops, row.utilisation, row.faster) == (None, None, 0.5)
    assert (row.cells()["GFLOP/s"], row.cells()["faster"]) == ("-", "0.50x")


def test_an_update_in_backward_passes() -> None:
    row = Update("linear", 128, 0.9, timing(0.004), timing(0.006), QUIET)
    assert row.passes == pytest.approx(1.5)
    assert row.cells()["update / backward"] == "1.50"


def test_memory_is_that_of_the_connections_alone() -> None:
    row = Memory("linear", 8, 0.9, run(1000, 55_000, 35_000, 48_000), run(100, 10_000, 12_500, 21_000))
    assert [row.bytes_of(part) for part in ("start", "steps", "update")] == [50, 25, 30]
    assert row.update_adds == 13_000
    assert row.to_dict()["bytes_per_connection"]["steps"] == 25


@given(
    factor=st.floats(1e-6, 1e3),
    power=st.floats(-3, 3),
    sizes=st.lists(st.integers(1, 10**9), min_size=2, unique=True),
)
def test_the_exponent_of_a_power_is_found(factor: float, power: float, sizes: list[int]) -> None:
    assert exponent(sizes, [factor * size**power for size in sizes]) == pytest.approx(power, abs=1e-5)


def test_the_exponent_is_least_squares() -> None:
    assert exponent([1, 10, 100], [1, 100, 100]) == pytest.approx(1.0)


def test_a_series_takes_its_highest_peak() -> None:
    rows = [
        Scale("s", "linear", 32, run(n, int(8 * n**1.5), 10 * n, 0, seconds=1e-9 * n)) for n in (10**4, 10**6)
    ]
    found = fit(rows)
    assert (found.sizes, found.time) == ((10**4, 10**6), pytest.approx(1.0))
    assert found.memory == pytest.approx(1.5)


def test_square_layers() -> None:
    assert square(10**5, None) == Linear(1000, 1000)
    assert square(10**6, 0.99) == Linear(10**4, 10**4)
    assert square(3 * 10**8, None) == Linear(3 * 10**6, 3 * 10**6)


@pytest.mark.parametrize(
    ("seconds", "text"), [(1.2345, "1234"), (0.012345, "12.3"), (1.2e-5, "0.0120"), (0.0, "0")]
)
def test_three_digits(seconds: float, text: str) -> None:
    assert milliseconds(Timing(seconds, seconds, seconds, 1)) == f"{text} ±0%"
