"""The formulas, on numbers that can be done by hand."""

import inspect

import pytest

from regrow.accounting import (
    FORMULAS,
    granet_levels,
    pruning_levels,
    ticket_multiples,
    training_multiple,
)
from regrow.errors import RegrowValueError
from regrow.methods.registry import get, methods

METHODS = {
    "dense": "dense",
    "static": "sparse",
    "snip": "sparse",
    "grasp": "sparse",
    "synflow": "sparse",
    "small-dense": "small-dense",
    "set": "sparse",
    "rigl": "rigl",
    "snfs": "snfs",
    "pruning": "pruning",
    "granet": "granet",
    "top-kast": "top-kast",
}
"""The eight methods of the RigL paper's tables, GraNet and Top-KAST, with the kind of cost of each."""


@pytest.mark.parametrize(
    ("cost", "multiple"),
    [
        ("dense", 1.0),
        ("sparse", 0.1),
        ("rigl", (3 * 10 * 9 + 2 * 10 + 100) / 10 / 300),
        ("snfs", (2 * 10 + 100) / 300),
    ],
)
def test_by_hand(cost, multiple):
    given = {"dense": 100.0, "sparse": 10.0, "update_every": 9}
    assert training_multiple(cost, **given) == pytest.approx(multiple)
    assert training_multiple(cost, **given, multiplier=5) == pytest.approx(5 * multiple)


def test_tickets_by_hand():
    # sup: 3 forward passes over the training set beside 250 epochs of 3; edst: 150 + 3 x 100 epochs; dst: 3 runs
    # lottery: a dense run and three tickets, each of 0.2^(1/3) of the FLOPs of the one before
    assert ticket_multiples(0.2, 3) == pytest.approx(
        {
            "sup": 0.2 * (1 + 3 / 750),
            "edst": 0.2 * 450 / 250,
            "dst": 0.6,
            "lottery": 1 + 0.2 ** (1 / 3) + 0.2 ** (2 / 3) + 0.2,
        }
    )
    assert ticket_multiples(0.2, 3).keys() == {"sup", "edst", "dst", "lottery"}
    own = ticket_multiples(0.5, 2, epochs=10, exploration=4, refinement=3, multiplier=2)
    multiples = {"sup": 0.5 * (2 + 2 / 30), "edst": 2 * 0.5 * 10 / 10, "dst": 2.0}
    assert own == pytest.approx(multiples | {"lottery": 2 * (1 + 0.5**0.5 + 0.5)})


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"tickets": 0}, "`tickets` must be a whole number of at least 1, got 0"),
        ({"forward": 0.0}, "`forward` must be a number above 0, got 0.0"),
        ({"multiplier": -1.0}, "`multiplier` must be a number above 0, got -1.0"),
        ({"epochs": 0}, "`epochs` must be a whole number of at least 1, got 0"),
        ({"exploration": -1}, "`exploration` must be a whole number of at least 0, got -1"),
    ],
)
def test_tickets_that_cannot_be(arguments, text):
    with pytest.raises(RegrowValueError, match=text):
        ticket_multiples(**{"forward": 0.5, "tickets": 3, **arguments})


def test_pruning_by_hand():
    # levels 0, 0, 1 - 1/8, 1: p = 0 at the begin, 1/2, 1
    levels = pruning_levels(steps=30, begin=10, end=30, every=10)
    assert levels == [0, 0, 0.875, 1]
    given = {"dense": 100.0, "sparse": 20.0, "levels": levels}
    assert training_multiple("pruning", **given) == pytest.approx((100 + 100 + 30 + 20) / 400)


def test_published_pruning_has_33_samples():
    levels = pruning_levels()
    assert (len(levels), levels[10], levels[25], levels[32]) == (33, 0, 1, 1)
    exact = pruning_levels(exact=True)
    assert len(exact) == 32_000
    assert sorted(set(exact)) == sorted(set(levels))
    assert sum(exact) / len(exact) < sum(levels) / len(levels)


def test_granet_is_priced_by_the_defaults_that_it_has():
    record = get("granet")
    given = inspect.signature(record.cls).parameters
    assert given["prune_stop_fraction"].default == 0.6875 == granet_levels(0.8).index(1.0) / 64
    assert given["update_every"].default == record.interval == 1000
    assert given["prune_start_fraction"].default == 0
    assert record.initial_sparsity == 0.5
    assert record.levels(0.8) == granet_levels(0.8)


def test_granets_levels():
    levels = granet_levels(0.8)
    assert len(levels) == 65
    assert [levels[0], levels[22], levels[44], levels[64]] == pytest.approx([0.625, 1 - 0.375 / 8, 1, 1])
    assert levels[43] < 1
    assert set(granet_levels(0.5)) == set(granet_levels(0.3)) == set(granet_levels(0.0)) == {1.0}


def test_every_method_names_a_formula():
    assert {record.cost for record in methods().values()} <= set(FORMULAS)
    assert set(METHODS.values()) == set(FORMULAS) | {"small-dense"}
    for name, record in methods().items():
        assert METHODS.get(name, record.cost) == record.cost


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"cost": "rigel"}, r"`cost` must be one of dense, sparse, rigl, .*got 'rigel', did you mean `rigl`"),
        ({"update_every": 0}, "`update_every` must be a whole number of at least 1, got 0"),
        ({"dense": 0.0}, "`dense` must be a number above 0, got 0.0"),
        ({"sparse": -1.0}, "`sparse` must be a number of at least 0, got -1.0"),
        ({"dense": float("nan")}, "`dense` must be a number above 0, got nan"),
        ({"multiplier": 0}, "`multiplier` must be a number above 0, got 0"),
        ({"cost": "pruning", "levels": []}, "`levels` must be numbers of at least 0, got \\[\\]"),
    ],
)
def test_bad_arguments(arguments, text):
    with pytest.raises(RegrowValueError, match=text):
        training_multiple(**{"cost": "rigl", "dense": 10.0, "sparse": 1.0, **arguments})


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            {"begin": 25_000},
            "`begin` must lie before `end`, and `end` within `steps` 32000, got 25000 and 25000",
        ),
        ({"end": 40_000}, "got 10000 and 40000"),
        ({"begin": -1}, "`begin` must be a whole number of at least 0, got -1"),
        ({"every": 0}, "`every` must be a whole number of at least 1, got 0"),
        ({"steps": 1.5}, "`steps` must be a whole number of at least 1, got 1.5"),
    ],
)
def test_bad_schedules(arguments, text):
    with pytest.raises(RegrowValueError, match=text):
        pruning_levels(**arguments)
