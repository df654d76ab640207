"""Bad arguments of tickets and their measures, of landscapes and costs."""

from __future__ import annotations

import torch
from given import (
    COUNTS,
    FLAGS,
    FRACTIONS,
    FUNCTIONS,
    MAYBE_FRACTIONS,
    MODELS,
    NAN,
    NOT_COUNTS,
    POSITIVE,
    PREDICTIONS,
    RATES,
    WORDS,
    Row,
    free,
    loss_fn,
    of_model,
    pair,
    phases,
    ticket,
)
from torch import nn

import regrow
from regrow import landscape, tickets
from regrow.accounting import granet_levels, pruning_levels, stored_size, ticket_multiples, training_multiple
from regrow.tickets.phases import Phases

TICKETS: list[Row] = [
    (
        "SupTickets",
        regrow.SupTickets,
        ticket,
        {
            "method": (None, 5, "rigl", regrow.RigL),
            "start": (None, 10**9, *COUNTS),
            "cycles": (None, *NOT_COUNTS),
            "cycle_steps": (None, *COUNTS),
            "lr": (None, (0.1,), (0.1, 0.2, 0.3), *RATES),
            "explore": MAYBE_FRACTIONS,
            "evolve": MAYBE_FRACTIONS,
            "average": WORDS,
            "factor": (None, *FRACTIONS),
            "rule": WORDS,
            "divide": WORDS,
            "scope": WORDS,
            "density": (0.0, *MAYBE_FRACTIONS),
        },
    ),
    (
        "FreeTickets",
        regrow.FreeTickets,
        free,
        {
            "method": (None, 5, regrow.RigL),
            "start": (None, 10**9, *NOT_COUNTS),
            "tickets": (None, *COUNTS),
            "ticket_steps": (None, *COUNTS),
            "lr": (None, *RATES),
            "explore": MAYBE_FRACTIONS,
        },
    ),
    (
        "Phases",
        Phases,
        phases,
        {
            "method": (None, 5, regrow.RigL),
            "start": (None, 10**9, *NOT_COUNTS),
            "count": (None, *NOT_COUNTS),
            "length": (None, *COUNTS),
            "rate": (None, *FUNCTIONS),
            "explore": MAYBE_FRACTIONS,
            "explore_first": (None, *FLAGS),
            "evolve": MAYBE_FRACTIONS,
            "check": (5, lambda a: None),
        },
    ),
    (
        "calendar",
        tickets.calendar,
        lambda w: {"total": 250, "share": 0.1, "cycle": 8},
        {"total": (None, *COUNTS), "share": (None, *MAYBE_FRACTIONS), "cycle": (None, *COUNTS)},
    ),
    (
        "Ensemble",
        regrow.Ensemble,
        lambda w: {"models": [w.dense]},
        {"models": (None, 5, [], [5], "ab", nn.Linear(2, 2))},
    ),
    (
        "superpose",
        tickets.superpose,
        lambda w: {"models": [w.sparse, w.sparse]},
        {
            "models": (None, 5, [], [5], "ab", nn.Linear(2, 2)),
            "factors": (5, [1.0], [1.0, -1.0], [1.0, "a"], [1.0, NAN], [True, True]),
            "divide": (None, *WORDS),
        },
    ),
    (
        "prune_back",
        tickets.prune_back,
        of_model,
        {"model": MODELS, "connections": (10**6, [5], {"a": 5}, *NOT_COUNTS), "density": MAYBE_FRACTIONS},
    ),
    (
        "prune_back of layers",
        tickets.prune_back,
        lambda w: {"model": w.sparse, "density": 0.1},
        {"scope": (None, *WORDS)},
    ),
    ("copied", tickets.copied, of_model, {"model": MODELS, "method": (5, "rigl", regrow.RigL)}),
    (
        "reestimate",
        tickets.reestimate,
        lambda w: {"model": w.sparse, "loader": [w.x]},
        {"model": MODELS, "loader": (5, None, "ab")},
    ),
    (
        "probabilities",
        tickets.probabilities,
        lambda w: {"model": w.dense, "batches": [(w.x, w.y)]},
        {"model": MODELS, "batches": (None, 5, [], [5], "ab")},
    ),
    ("accuracy", tickets.accuracy, pair, PREDICTIONS),
    (
        "negative_log_likelihood",
        tickets.negative_log_likelihood,
        pair,
        {**PREDICTIONS, "floor": ("a", -1.0, NAN, True)},
    ),
    (
        "expected_calibration_error",
        tickets.expected_calibration_error,
        pair,
        {**PREDICTIONS, "bins": (None, *COUNTS), "edges": (1, *COUNTS)},
    ),
    (
        "disagreement",
        tickets.disagreement,
        lambda w: {},
        {"predictions": (None, 5, [], [torch.zeros(2, 2)], [[[0.5]], [[0.5]]])},
    ),
    (
        "kl_diversity",
        tickets.kl_diversity,
        lambda w: {},
        {"predictions": (None, 5, [], [torch.zeros(2, 2)], [[[0.5]], [[0.5]]])},
    ),
    ("overlap", tickets.overlap, lambda w: {}, {"models": (None, 5, [], [5], "ab")}),
    (
        "triangular",
        tickets.triangular,
        lambda w: {"progress": 0.5, "low": 0.1, "high": 0.2},
        {"progress": (None, *FRACTIONS), "low": (None, *POSITIVE[1:]), "high": (None, *POSITIVE[1:])},
    ),
    (
        "steps",
        tickets.steps,
        lambda w: {"progress": 0.5, "rates": (0.1,)},
        {"progress": (None, *FRACTIONS), "rates": (None, *RATES)},
    ),
    (
        "bezier",
        landscape.bezier,
        lambda w: {"points": [w.x, w.x], "t": 0.5},
        {
            "points": (None, 5, [], [[1.0], [2.0]], [torch.zeros(2), torch.zeros(3)]),
            "t": (None, "a", NAN, True, [0.5]),
        },
    ),
    (
        "Curve",
        landscape.Curve,
        lambda w: {"start": w.sparse, "end": w.dense},
        {"start": MODELS, "end": MODELS, "degree": (None, 4, *COUNTS), "space": (None, *WORDS)},
    ),
    (
        "profile",
        landscape.profile,
        lambda w: {"curve": landscape.Curve(w.dense, w.dense), "loss_fn": loss_fn, "batches": [(w.x, w.y)]},
        {
            "curve": (None, 5, nn.Linear(2, 2)),
            "loss_fn": (None, *FUNCTIONS),
            "batches": (None, 5, "ab", []),
            "points": (None, 1, *COUNTS),
            "norm_batches": (5, "ab"),
        },
    ),
    ("barrier", landscape.barrier, lambda w: {}, {"losses": (None, 5, [], [5], "ab", [(0.0, "a")])}),
    (
        "training_multiple",
        training_multiple,
        lambda w: {"cost": "rigl", "dense": 2.0, "sparse": 1.0},
        {
            "cost": (None, *WORDS),
            "dense": (None, *POSITIVE),
            "sparse": (None, -1.0, "a", NAN, True, *FUNCTIONS[2:]),
            "update_every": (None, *COUNTS),
            "multiplier": (None, *POSITIVE),
        },
    ),
    (
        "training_multiple of pruning",
        training_multiple,
        lambda w: {"cost": "pruning", "dense": 2.0, "sparse": 1.0},
        {"levels": (5, [], "ab", ["a"], [-1.0], [NAN])},
    ),
    (
        "pruning_levels",
        pruning_levels,
        lambda w: {},
        {
            "steps": (None, *COUNTS),
            "begin": NOT_COUNTS,
            "end": COUNTS,
            "every": COUNTS,
            "initial": MAYBE_FRACTIONS,
            "exact": FLAGS,
        },
    ),
    ("granet_levels", granet_levels, lambda w: {}, {"sparsity": (None, *FRACTIONS)}),
    (
        "ticket_multiples",
        ticket_multiples,
        lambda w: {"forward": 0.3, "tickets": 3},
        {
            "forward": (None, *POSITIVE),
            "tickets": (None, *COUNTS),
            "epochs": COUNTS,
            "exploration": NOT_COUNTS,
            "refinement": COUNTS,
            "multiplier": POSITIVE,
        },
    ),
    (
        "stored_size",
        stored_size,
        of_model,
        {
            "model": MODELS,
            "sparsities": (5, ["a"], {"0.weight": "a"}, {"0.weight": 2.0}, {5: 0.5}),
            "convention": WORDS,
        },
    ),
]
