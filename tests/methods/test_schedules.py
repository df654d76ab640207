"""Chapter 12 E of the RigL family: when, and what fraction."""

from __future__ import annotations

import pytest

from regrow.methods import schedules


@pytest.mark.parametrize(
    ("step", "fraction"), [(0, 0.3), (6250, 0.256066), (12500, 0.15), (18750, 0.043934), (25000, 0.0)]
)
def test_cosine(step: int, fraction: float) -> None:
    assert 0.3 * schedules.cosine(step / 25000) == pytest.approx(fraction, abs=5e-7)


def test_linear_and_constant() -> None:
    assert [schedules.linear(p) for p in (0, 0.25, 1)] == [1, 0.75, 0]
    assert [schedules.constant(p) for p in (0, 0.25, 1)] == [1, 1, 1]


def test_updates_of_resnet50_are_249() -> None:
    steps = [t for t in range(32_000) if schedules.is_update_step(t, 100, 25_000)]
    assert len(steps) == 249
    assert (steps[0], steps[-1]) == (100, 24_900)


@pytest.mark.parametrize(("every", "end"), [(1, 1), (1, 2), (7, 30), (7, 28), (10, 5), (3, 0)])
def test_next_and_last_agree_with_the_rule(every: int, end: int) -> None:
    steps = [t for t in range(end + 20) if schedules.is_update_step(t, every, end)]
    assert schedules.last_update(every, end) == (steps[-1] if steps else None)
    for t in range(end + 20):
        assert schedules.next_update(t, every, end) == next((s for s in steps if s >= t), None)


@pytest.mark.parametrize(
    ("fraction", "total", "every", "first", "last"),
    [
        (0.07, 10_000, 100, 700, 700),  # 700.0000000000001
        (0.29, 100, 1, 29, 29),  # 28.999999999999996
        (0.3125, 32_000, 100, 10_000, 10_000),
        (0.6875, 8, 1, 6, 5),
        (0.5, 100, 7, 56, 49),
        (0.0, 100, 7, 0, 0),
        (1.0, 100, 7, 105, 98),
    ],
)
def test_shares_of_a_run_as_multiples(fraction: float, total: int, every: int, first: int, last: int) -> None:
    assert schedules.first_step(fraction, total, every) == first
    assert schedules.last_step(fraction, total, every) == last
