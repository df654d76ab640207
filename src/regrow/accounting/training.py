"""What training costs: FLOPs of a training step by each method's formula (RigL, arXiv 1911.11134, appendix H).

A backward pass costs twice its forward pass, so a dense step costs 3 f_D, where f_D are the FLOPs of a dense
forward pass and f_S those of the sparse one. A dense gradient of the weights costs f_D instead of f_S.
"""

from __future__ import annotations

from collections.abc import Callable

from regrow.arguments import (
    require_choice,
    require_count,
    require_flag,
    require_fraction,
    require_function,
    require_numbers,
    require_positive,
)
from regrow.errors import RegrowValueError
from regrow.tickets import Training, kinds

FORMULAS = {
    "dense": "3 f_D",
    "sparse": "3 f_S",
    "rigl": "(3 f_S dT + 2 f_S + f_D) / (dT + 1)",
    "snfs": "2 f_S + f_D",
    "pruning": "mean over the steps t of 3 f(s_t)",
    "granet": "mean over the steps t of (3 f(s_t) dT + 2 f(s_t) + f_D) / (dT + 1)",
}
"""The kinds of cost, and what each costs a step; a method's record names its kind."""

METHODS = {
    "dense": "dense",
    "static": "sparse",
    "snip": "sparse",
    "small-dense": "small-dense",
    "set": "sparse",
    "rigl": "rigl",
    "snfs": "snfs",
    "pruning": "pruning",
    "granet": "granet",
}
"""The eight methods of the RigL paper's tables, and GraNet, with the kind of cost of each."""


def pruning_levels(
    steps: int = 32_000,
    begin: int = 10_000,
    end: int = 25_000,
    every: int = 1_000,
    *,
    initial: float = 0.0,
    exact: bool = False,
) -> list[float]:
    """Sparsity over a run of gradual pruning, as shares of the final one: ``i + (1 - i) (1 - (1 - p)^3)``.

    Args:
        steps: length of the run; the defaults are ResNet-50's in the RigL paper.
        begin: first step of pruning.
        end: last step of pruning.
        every: steps between two prunings.
        initial: the share i at which the run starts: initial over final sparsity; GraNet's sparse to sparse is
            0.5 / 0.9 of the way to 90% already.
        exact: a value for each step, 0 to ``steps - 1``. Default: one each `every` steps, both ends included, as
            the published figures were computed (33 values); it weighs the last step like a thousand others, which
            makes pruning look cheaper by about 0.01.

    Raises:
        RegrowValueError: a schedule that cannot be.
    """
    steps, every, end = (
        require_count("steps", steps),
        require_count("every", every),
        require_count("end", end),
    )
    begin, exact = require_count("begin", begin, least=0), require_flag("exact", exact)
    initial = require_fraction("initial", initial, one=True)
    if not begin < end <= steps:
        raise RegrowValueError(
            f"`begin` must lie before `end`, and `end` within `steps` {steps}, got {begin} and {end}"
        )

    def level(step: int) -> float:
        progress = (step // every * every - begin) / (end - begin)
        return 1 - (1 - initial) * (1 - min(max(progress, 0.0), 1.0)) ** 3

    return [level(step) for step in (range(steps) if exact else range(0, steps + 1, every))]


GRANET = {"initial": 0.5, "stop": 0.6875, "every": 1_000}
"""GraNet's own defaults: the sparsity that it starts at, the share of the run that it prunes in, its interval."""


def granet_levels(sparsity: float) -> list[float]:
    """Give the sparsity over a run of GraNet by its own defaults, as shares of the final `sparsity`.

    64 intervals, about its 160 epochs of CIFAR, both ends included as in `pruning_levels`: 65 values.
    """
    sparsity = require_fraction("sparsity", sparsity)
    initial = min(1.0, GRANET["initial"] / sparsity) if sparsity else 1.0
    every = int(GRANET["every"])
    return pruning_levels(64 * every, 0, round(GRANET["stop"] * 64) * every, every, initial=initial)


def training_multiple(
    cost: str,
    *,
    dense: float,
    sparse: float | Callable[[float], float],
    update_every: int = 100,
    multiplier: float = 1.0,
    levels: list[float] | None = None,
) -> float:
    """FLOPs of training as a multiple of those of dense training of the plain length.

    Args:
        cost: kind of cost, a key of `FORMULAS`.
        dense: FLOPs of a dense forward pass, f_D.
        sparse: FLOPs of a sparse one, f_S. For ``pruning`` and ``granet`` also a function of the level, the share
            of the final sparsity that is reached: 0 gives f_D and 1 gives f_S. A number means a straight line
            between, which is exact where each layer's sparsity grows in proportion to its final one, as in
            `regrow.Pruning`.
        update_every: steps between two updates, dT. RigL's update cost is spread over the whole run, as the
            paper has it, though none comes after ``stop_fraction``.
        multiplier: length of the run as a multiple of dense training's; dT stays.
        levels: the levels over a run of ``pruning`` or ``granet``. Default: `pruning_levels()`; GraNet's own are
            `granet_levels`, with an update every 1,000 steps.

    Raises:
        RegrowValueError: an unknown kind of cost, or numbers that cannot be.

    Example:
        >>> round(training_multiple("rigl", dense=8.2023e9, sparse=0.2254 * 8.2023e9, multiplier=5), 3)
        1.14
    """
    require_choice("cost", cost, FORMULAS)
    every = require_count("update_every", update_every)
    if callable(sparse):
        require_function("sparse", sparse, "level")
    final = require_positive("sparse", sparse(1.0) if callable(sparse) else sparse, zero=True)
    dense = require_positive("dense", dense)
    multiplier = require_positive("multiplier", multiplier)
    if cost == "dense":
        step = 3 * dense
    elif cost == "sparse":
        step = 3 * final
    elif cost == "rigl":
        step = (3 * final * every + 2 * final + dense) / (every + 1)
    elif cost == "snfs":
        step = 2 * final + dense
    else:
        run = pruning_levels() if levels is None else require_numbers("levels", levels, zero=True)
        forward = sparse if callable(sparse) else lambda level: dense - level * (dense - final)
        mean = sum(forward(level) for level in run) / len(run)
        step = 3 * mean if cost == "pruning" else (3 * mean * every + 2 * mean + dense) / (every + 1)
    return multiplier * step / (3 * dense)


TICKETS = {name: kind.cost.formula for name, kind in kinds().items() if kind.cost is not None}
"""What training with M tickets costs by the kinds that come with regrow, as a multiple of dense training of T epochs
(tables of FreeTickets)."""


def ticket_multiples(
    forward: float,
    tickets: int,
    *,
    epochs: int = 250,
    exploration: int = 150,
    refinement: int = 100,
    multiplier: float = 1.0,
) -> dict[str, float]:
    """Return the FLOPs of training with each kind of tickets, as multiples of dense training of `epochs` epochs.

    As FreeTickets counts them (arXiv 2106.14568): dense gradients at updates are left out. Sup-tickets (arXiv
    2205.15322) train as long as one network, and pass once over the training set for the batch norms of each
    superposition; EDST explores, then refines each ticket; DST trains as many networks. A test of an ensemble costs
    `tickets` times one of a network.

    Args:
        forward: FLOPs of a sparse forward pass over those of the dense one, f_S / f_D.
        tickets: M; of Sup-tickets those beside the pre-trained network.
        epochs: T, of dense training. The defaults of all three are the paper's for CIFAR.
        exploration: E, epochs before EDST's first ticket.
        refinement: R, epochs of each of its tickets.
        multiplier: of every length.

    Raises:
        RegrowValueError: numbers that cannot be.

    Example:
        >>> {name: round(cost, 3) for name, cost in ticket_multiples(0.33956, 3).items()}
        {'sup': 0.341, 'edst': 0.611, 'dst': 1.019}
    """
    count, epochs = require_count("tickets", tickets), require_count("epochs", epochs)
    refinement = require_count("refinement", refinement)
    exploration = require_count("exploration", exploration, least=0)
    forward, multiplier = require_positive("forward", forward), require_positive("multiplier", multiplier)
    run = Training(forward, count, epochs, exploration, refinement, multiplier)
    return {name: kind.cost.multiple(run) for name, kind in kinds().items() if kind.cost is not None}
