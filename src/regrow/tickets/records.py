"""The kinds of tickets that come with regrow, one record each."""

from __future__ import annotations

from regrow.tickets import ensembles, rounds, superposing
from regrow.tickets.registry import Cost, register

SUP = register(
    "sup",
    superposing.plan,
    superposing.Superposing,
    result="superposed",
    made="of {0} tickets, superposed",
    windows="cycles",
    alternatives={"cycle_epochs": 8, "cycle_steps": None},
    cost=Cost(
        "f_S/f_D (1 + M / (3 T))",
        lambda run: run.forward * (run.multiplier + run.tickets / (3 * run.epochs)),
    ),
)

EDST = register(
    "edst",
    ensembles.windows,
    ensembles.Refining,
    result="ensemble",
    made="of an ensemble of {0} tickets from one run",
    alternatives={
        "start": 1 / 3,
        "start_epochs": None,
        "start_steps": None,
        "ticket_epochs": None,
        "ticket_steps": None,
    },
    needs_validation=True,
    cost=Cost(
        "f_S/f_D (E + R M) / T",
        lambda run: (
            run.multiplier * run.forward * (run.exploration + run.refinement * run.tickets) / run.epochs
        ),
        "150 epochs of exploration and 100 for each ticket, against 250 of dense training",
    ),
    # the topology moves by a constant fraction to the end, and the exploration is at a constant rate
    method_options={"stop_fraction": 1.0, "schedule": "constant"},
    schedule="constant",
)

DST = register(
    "dst",
    ensembles.runs,
    None,
    result="ensemble",
    made="of an ensemble of {0} independent runs",
    cost=Cost("f_S/f_D M", lambda run: run.multiplier * run.forward * run.tickets),
)

LOTTERY = register(
    "lottery",
    rounds.plan,
    None,
    result="last",
    made="of the last of {0} tickets, each pruned out of the network before, the first out of a dense one",
    cost=Cost(
        "1 + the sum over tickets m of (f_S/f_D)^(m/M)",
        lambda run: (
            run.multiplier * (1 + sum(run.forward ** (m / run.tickets) for m in range(1, run.tickets + 1)))
        ),
        "dense training in full, then each ticket, whose FLOPs fall by one factor in each round",
    ),
    method="static",
)
