"""Distributions, exact counts and random topologies, against the figures of the RigL family's chapter 12 A and B."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import regrow
from regrow import _random, distributions
from regrow.errors import RegrowValueError


def resnet50() -> dict[str, tuple[int, ...]]:
    """The 54 kernels of ResNet-50 (stride on the 3x3), in torch's layout."""
    shapes: dict[str, tuple[int, ...]] = {"conv1": (64, 3, 7, 7)}
    channels = 64
    for stage, (width, blocks) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)], 1):
        for block in range(1, blocks + 1):
            name = f"stage{stage}.block{block}"
            shapes[f"{name}.conv1"] = (width, channels, 1, 1)
            shapes[f"{name}.conv2"] = (width, width, 3, 3)
            shapes[f"{name}.conv3"] = (4 * width, width, 1, 1)
            if block == 1:
                shapes[f"{name}.projection"] = (4 * width, channels, 1, 1)
            channels = 4 * width
    shapes["fc"] = (1000, 2048)
    return shapes


def wrn22() -> dict[str, tuple[int, ...]]:
    """The 23 kernels of WRN-22-2, skip convolutions included."""
    shapes: dict[str, tuple[int, ...]] = {"conv1": (16, 3, 3, 3)}
    channels = 16
    for group, width in enumerate((32, 64, 128), 1):
        for block in range(1, 4):
            shapes[f"group{group}.block{block}.conv1"] = (width, channels, 3, 3)
            shapes[f"group{group}.block{block}.conv2"] = (width, width, 3, 3)
            if block == 1:
                shapes[f"group{group}.skip"] = (width, channels, 1, 1)
            channels = width
    shapes["fc"] = (10, 128)
    return shapes


def eps(shapes: dict[str, tuple[int, ...]], sparsities: dict[str, float]) -> float:
    """The factor of ERK, from any layer that is not capped: connections = eps * sum(shape)."""
    name = min(shapes, key=lambda n: 1 - sparsities[n])
    return (1 - sparsities[name]) * math.prod(shapes[name]) / sum(shapes[name])


ERK_DENSITIES = {  # kernel: density at sparsity .8, .9, .95
    "conv1": (0.8572, 0.4200, 0.2098),
    "stage1.block1.conv1": (1, 1, 0.7735),
    "stage1.block1.conv2": (0.3619, 0.1773, 0.0886),
    "stage1.block1.conv3": (1, 0.9588, 0.4790),
    "stage1.block1.projection": (1, 0.9588, 0.4790),
    "stage2.block1.conv1": (1, 0.5747, 0.2871),
    "stage2.block1.conv2": (0.1769, 0.0867, 0.0433),
    "stage2.block1.conv3": (0.9753, 0.4779, 0.2388),
    "stage2.block1.projection": (0.5849, 0.2866, 0.1432),
    "stage3.block1.conv1": (0.5849, 0.2866, 0.1432),
    "stage3.block1.conv2": (0.0874, 0.0428, 0.0214),
    "stage3.block1.conv3": (0.4869, 0.2386, 0.1192),
    "stage3.block1.projection": (0.2921, 0.1431, 0.0715),
    "stage4.block1.conv1": (0.2921, 0.1431, 0.0715),
    "stage4.block1.conv2": (0.0435, 0.0213, 0.0106),
    "stage4.block1.conv3": (0.2433, 0.1192, 0.0595),
    "stage4.block1.projection": (0.1459, 0.0715, 0.0357),
    "fc": (0.1482, 0.0726, 0.0363),
}


@pytest.mark.parametrize(
    ("column", "sparsity", "factor", "capped"),
    [(0, 0.8, 99.5617, 8), (1, 0.9, 48.7866, 1), (2, 0.95, 24.3721, 0)],
)
def test_erk_densities_of_resnet50(column: int, sparsity: float, factor: float, capped: int) -> None:
    shapes = resnet50()
    assert sum(math.prod(shape) for shape in shapes.values()) == 25_502_912
    found = distributions.distribute("erk", shapes, sparsity)
    for name, densities in ERK_DENSITIES.items():
        assert 1 - found[name] == pytest.approx(densities[column], abs=5e-5), name
    assert sum(value == 0 for value in found.values()) == capped
    assert eps(shapes, found) == pytest.approx(factor, rel=1e-5)


@pytest.mark.parametrize(
    ("sparsity", "factor", "capped"), [(0.8, 45.696, 5), (0.9, 22.588, 1), (0.95, 11.252, 1)]
)
def test_er_of_resnet50(sparsity: float, factor: float, capped: int) -> None:
    shapes = resnet50()
    found = distributions.distribute("er", shapes, sparsity)
    assert sum(value == 0 for value in found.values()) == capped
    out, into = shapes["fc"]
    assert (1 - found["fc"]) * out * into / (out + into) == pytest.approx(factor, rel=1e-4)


@pytest.mark.parametrize(
    ("sparsity", "factor", "capped"), [(0.5, 209.77, 12), (0.8, 75.61, 5), (0.9, 35.94, 4), (0.95, 17.35, 3)]
)
def test_erk_of_wrn22(sparsity: float, factor: float, capped: int) -> None:
    shapes = wrn22()
    assert sum(math.prod(shape) for shape in shapes.values()) == 1_076_912
    found = distributions.distribute("erk", shapes, sparsity)
    assert eps(shapes, found) == pytest.approx(factor, rel=1e-3)
    assert sum(value == 0 for value in found.values()) == capped


@pytest.mark.parametrize("name", ["er", "erk"])
@pytest.mark.parametrize("shapes", [resnet50(), wrn22(), {"a": (300, 784), "b": (100, 300), "c": (10, 100)}])
@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9, 0.95, 0.98])
def test_the_budget_is_met(name: str, shapes: dict[str, tuple[int, ...]], sparsity: float) -> None:
    found = distributions.distribute(name, shapes, sparsity)
    total = sum(math.prod(shape) for shape in shapes.values())
    budget = sum((1 - s) * math.prod(shapes[layer]) for layer, s in found.items())
    assert abs(budget - (1 - sparsity) * total) <= len(shapes)
    count = sum(distributions.connections(shapes[layer], s) for layer, s in found.items())
    assert -1e-6 <= count - budget <= len(shapes)  # zeros are floor(s N) in each layer


@pytest.mark.parametrize(
    ("shape", "sparsity", "count"),
    [
        ((30, 4), 0.5, 60),
        ((1, 2, 1, 4), 0.8, 2),
        ((30,), 0.1, 27),
        ((300, 784), 0.98, 4704),
        ((100, 300), 0.9 * 0.98, 3540),
        ((300, 784), 0.99, 2352),
        ((100, 300), 0.9 * 0.99, 3270),
        ((10, 100), 0.0, 1000),
    ],
)
def test_counts_are_exact(shape: tuple[int, ...], sparsity: float, count: int) -> None:
    assert distributions.connections(shape, sparsity) == count


@given(st.integers(0, 400), st.integers(0, 400), st.integers(0, 2**31))
def test_a_sample_is_distinct_and_sorted(count: int, extra: int, seed: int) -> None:
    drawn = _random.sample(count, count + extra, _random.generator(seed))
    assert len(drawn) == count
    assert (drawn.diff() > 0).all()
    assert count == 0 or (drawn[0] >= 0 and drawn[-1] < count + extra)


@pytest.mark.parametrize("count", [2, 4])  # drawn one by one, and cut from a permutation
def test_every_sample_is_equally_likely(count: int) -> None:
    draws = 12_000
    generator = _random.generator(0, "uniform")
    seen: dict[tuple[int, ...], int] = {}
    for _ in range(draws):
        key = tuple(_random.sample(count, 6, generator).tolist())
        seen[key] = seen.get(key, 0) + 1
    assert len(seen) == math.comb(6, count) == 15
    expected = draws / 15
    chi_square = sum((n - expected) ** 2 / expected for n in seen.values())
    assert chi_square < 36.1  # 14 degrees of freedom: exceeded once in a thousand


def test_a_sample_of_a_huge_population_needs_no_dense_array() -> None:
    drawn = _random.sample(1000, 10**12, _random.generator(1))
    assert len(drawn) == 1000
    assert drawn[-1] > 10**11


def test_a_large_sample_is_that_of_its_seed() -> None:
    count, population = 2_300_000, 10_000_000  # several pieces, and many that are drawn twice
    drawn = _random.sample(count, population, _random.generator(5))
    reference = _random.generator(5)
    wanted = torch.randint(population, (count,), generator=reference).unique()
    while len(wanted) < count:
        more = torch.randint(population, (count - len(wanted),), generator=reference)
        wanted = torch.cat([wanted, more]).unique()
    assert torch.equal(drawn, wanted)


def test_generators_are_a_pure_function_of_their_words() -> None:
    def draw(*words: object) -> int:
        return int(torch.randint(2**31, (1,), generator=_random.generator(*words)))  # type: ignore[arg-type]

    assert draw(3, 100, "layers.0.weight") == draw(3, 100, "layers.0.weight") == 334914702
    assert len({draw(3, 100, "a"), draw(3, 200, "a"), draw(4, 100, "a"), draw(3, 100, "b")}) == 4


@pytest.mark.parametrize(
    ("distribution", "message"),
    [
        ("erkk", r"`distribution` must be one of uniform, er, erk.*got 'erkk', did you mean `erk`"),
        (lambda shapes, s: {}, r"`distribution` cannot be met.*missing or unknown: \['0.weight'\]"),
        (
            lambda shapes, s: {"0.weight": 1.0},
            r"`distribution` cannot be met: layer `0.weight`.*sparsity 1, allowed",
        ),
        (
            lambda shapes, s: {"0.weight": -0.5},
            r"`distribution` cannot be met: layer `0.weight`.*sparsity -0.5",
        ),
    ],
)
def test_a_distribution_that_cannot_be_met(distribution: object, message: str) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 4))
    with pytest.raises(RegrowValueError, match=message):
        regrow.sparsify(model, 0.5, distribution)  # type: ignore[arg-type]
    assert not regrow.is_sparse(model)
