"""What training costs: FLOPs of a training step by each method's formula (RigL, arXiv 1911.11134, appendix H)."""

from __future__ import annotations

from collections.abc import Callable

from regrow.arguments import (
    require_choice,
    require_count,
    require_function,
    require_numbers,
    require_positive,
)
from regrow.methods.formulas import BY_NAME, DENSE, pruning_levels, step
from regrow.methods.granet import granet_levels
from regrow.tickets import Training, kinds

__all__ = [
    "FORMULAS",
    "granet_levels",
    "pruning_levels",
    "ticket_multiples",
    "training_multiple",
]

FORMULAS = {name: formula.text for name, formula in BY_NAME.items()}
"""The kinds of cost, and what each costs a step; a method's record names its kind."""


def training_multiple(
    cost: str,
    *,
    dense: float,
    sparse: float | Callable[[float], float],
    update_every: int = 100,
    multiplier: float = 1.0,
    levels: list[float] | None = None,
    trained: float | None = None,
) -> float:
    """Return the FLOPs of training as a multiple of those of dense training of the plain length.

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
        levels: the levels over a run in which the network becomes sparser. Default, for ``pruning`` and ``granet``:
            `pruning_levels()`; GraNet's own are `granet_levels`, with an update every 1,000 steps.
        trained: FLOPs of a forward pass with all weights that are trained, f_B, which ``top-kast`` alone is priced by.

    Raises:
        RegrowValueError: an unknown kind of cost, numbers that cannot be, or a cost without its `trained`.

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
    formula = BY_NAME[cost]
    wider = require_positive("trained", trained) if formula.wider else None
    mean = dense if cost == DENSE else final
    if formula.gradual or levels is not None:
        run = pruning_levels() if levels is None else require_numbers("levels", levels, zero=True)
        forward = sparse if callable(sparse) else lambda level: dense - level * (dense - final)
        mean = sum(forward(level) for level in run) / len(run)
    return multiplier * step(formula.gradient, mean, dense, every, wider) / (3 * dense)


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
    superposition; EDST explores, then refines each ticket; DST trains as many networks; a ticket loop trains the dense
    network, then each ticket, whose FLOPs fall to the last one's by one factor. A test of an ensemble costs
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
        {'sup': 0.341, 'edst': 0.611, 'dst': 1.019, 'lottery': 2.524}
    """
    count, epochs = require_count("tickets", tickets), require_count("epochs", epochs)
    refinement = require_count("refinement", refinement)
    exploration = require_count("exploration", exploration, least=0)
    forward, multiplier = require_positive("forward", forward), require_positive("multiplier", multiplier)
    run = Training(forward, count, epochs, exploration, refinement, multiplier)
    return {name: kind.cost.multiple(run) for name, kind in kinds().items() if kind.cost is not None}
