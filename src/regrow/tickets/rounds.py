"""`lottery`: the ticket loop. Train, score, prune, rewind, and train again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from regrow.arguments import (
    number,
    require_choice,
    require_count,
    require_fraction,
    require_function,
    require_model,
    require_numbers,
    said,
)
from regrow.errors import RegrowRuntimeError, RegrowValueError
from regrow.sparsity.core import is_sparse
from regrow.sparsity.distributions import GLOBAL
from regrow.sparsity.initial import Criterion
from regrow.sparsity.selecting import Selector
from regrow.sparsity.storage import choices
from regrow.tickets.copying import copied
from regrow.tickets.prune import Distribution, budget_of, connections, pruned, rewound, shapes_of
from regrow.tickets.registry import Plan
from regrow.tickets.scores import require_score

START, RATE, NEW = "start", "rate", "new"
REWINDS = (START, RATE)


@dataclass(frozen=True)
class Round:
    """One round of a ticket loop."""

    number: int
    """From 0, the dense network, on."""
    sparsity: float
    """That was asked of its network."""
    model: nn.Module
    """The network, trained. It is the loop's own until the next round: copy what you change."""
    result: Any
    """What `train` returned."""


def lottery(
    model: nn.Module,
    train: Callable[[nn.Module, int, int], Any],
    sparsity: float | Sequence[float],
    *,
    steps: int,
    rounds: int | None = None,
    score: str | Criterion = "magnitude",
    distribution: Distribution = GLOBAL,
    rewind: str | int | Callable[[], nn.Module] = START,
    include: Selector | None = None,
    exclude: Selector | None = None,
    storage: str = "auto",
) -> Iterator[Round]:
    """Find lottery tickets: train, score, prune, rewind, repeat (iterative pruning; one round is one-shot).

        def train(network, start, stop):        # steps `start` to `stop - 1` of your own training
            optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
            for step in range(start, stop):
                ...

        for found in regrow.tickets.lottery(model, train, 0.9, steps=1000, rounds=5):
            print(found.sparsity, accuracy(found.model))

    The dense network is trained first, then a ticket in each round: the connections that score highest in the network
    just trained, with weights as `rewind` says. A method that moves connections may be attached in `train`.

    Args:
        model: dense, with its initial weights. It stays as it is.
        train: ``train(network, start, stop)`` trains `network`, in place, from step `start` of its schedule up to step
            `stop`, with an optimizer of its own. To stop early, see `EarlyTicket`.
        sparsity: of the last ticket, in (0, 1), or of each, ascending.
        steps: of the whole training: the `stop` of a run to its end.
        rounds: how many tickets there are if `sparsity` is one number: each loses the same share of the connections of
            the one before (`sparsities`). None is 1.
        score, distribution, include, exclude: as for `pruned`.
        rewind: what a ticket begins with: ``"start"``, the initial weights; a step k, the weights after the first k
            steps, from where it is trained; ``"rate"``, the weights just trained, so that only the learning rate is
            rewound; or a function that returns a network with new weights.
        storage: of the tickets, as for `sparsify`.

    Yields:
        A `Round` after each training, that of the dense network first.

    Raises:
        RegrowValueError: an argument that is not allowed, before anything is trained: sparsities that do not ascend, a
            step to rewind to that is not within the run. In a round, what `pruned` refuses.
        RegrowRuntimeError: `train` has left its network as it was, or made it dense.
    """
    require_model("model", model)
    require_function("train", train, "network", "start", "stop")
    shares = _shares(sparsity, rounds)
    steps = require_count("steps", steps)
    again = require_rewind("rewind", rewind, steps)
    criterion = require_score(score)
    require_choice("storage", storage, choices())
    if is_sparse(model):
        raise RegrowValueError("`model` is sparse already\nGive the dense network: regrow.densify(model).")
    shapes = shapes_of(model, connections(model, distribution, include, exclude))
    for share in shares:
        budget_of(shapes, share, distribution)
    how = {"score": criterion, "distribution": distribution, "include": include, "exclude": exclude}
    return _rounds(model, train, shares, steps, again, how, storage)


def _rounds(
    model: nn.Module,
    train: Callable[[nn.Module, int, int], Any],
    shares: Sequence[float],
    steps: int,
    rewind: str | int | Callable[[], nn.Module],
    how: dict[str, Any],
    storage: str,
) -> Iterator[Round]:
    network, first = copied(model).train(), rewind if isinstance(rewind, int) else 0
    if first:
        _trained(train, network, 0, first)
        model = copied(network)
    yield Round(0, 0.0, network, _trained(train, network, first, steps))
    for place, share in enumerate(shares, 1):
        if place > 1 and not is_sparse(network):
            raise RegrowRuntimeError(
                f"the ticket of round {place - 1} has been made dense, so that its connections are not known any more\n"
                "Change a copy: regrow.tickets.copied(found.model)."
            )
        kept = pruned(network, share, **how)
        source = network if rewind == RATE else rewind() if callable(rewind) else model
        network = rewound(source, kept, storage)
        if source is model:
            model = copied(network)  # what is rewound to next time are fewer weights
        yield Round(place, share, network, _trained(train, network, first, steps))


def _trained(train: Callable[[nn.Module, int, int], Any], network: nn.Module, start: int, stop: int) -> Any:
    """Train `network` and return what `train` returned."""
    before = _sums(network)
    result = train(network, start, stop)
    if _sums(network) == before:
        raise RegrowRuntimeError(
            "`train` has left the network that it was given as it was\nTrain the network that is its first argument, "
            "in place, with an optimizer made of its parameters."
        )
    return result


def _sums(network: nn.Module) -> list[float]:
    return [float(p.detach().to(torch.float64).abs().sum()) for p in network.parameters()]


def sparsities(sparsity: float, rounds: int) -> list[float]:
    """Return the sparsities of `rounds` tickets up to `sparsity`: each keeps the same share of the one before.

    Raises:
        RegrowValueError: a sparsity outside (0, 1), or no rounds.

    Example:
        >>> [round(share, 3) for share in sparsities(0.9, 3)]
        [0.536, 0.785, 0.9]
    """
    count, final = require_count("rounds", rounds), require_fraction("sparsity", sparsity)
    if not final:
        raise RegrowValueError(f"`sparsity` must be in (0, 1), got {said(sparsity)}")
    return [*(1 - (1 - final) ** (place / count) for place in range(1, count)), final]


def _shares(sparsity: float | Sequence[float], rounds: int | None) -> list[float]:
    if number(sparsity) is not None:
        return sparsities(sparsity, 1 if rounds is None else rounds)  # type: ignore[arg-type]
    if rounds is not None:
        raise RegrowValueError(
            f"`rounds` is {said(rounds)}, but `sparsity` gives the sparsity of each round\nLeave one of them out."
        )
    shares = require_numbers("sparsity", sparsity)
    if list(shares) != sorted(set(shares)) or shares[-1] >= 1:
        raise RegrowValueError(
            f"`sparsity` must ascend within (0, 1), got {said(sparsity)}\n"
            "Each round prunes the network of the one before."
        )
    return list(shares)


def require_rewind(
    name: str, rewind: object, steps: int, words: Sequence[str] = REWINDS, *, own: bool = True
) -> Any:
    """Return `rewind`: a word, a step within a run of `steps`, or (`own`) a function.

    Raises:
        RegrowValueError: naming the argument, what was given and what is allowed.
    """
    if own and callable(rewind):
        return require_function(name, rewind)
    if number(rewind) is None:
        return require_choice(name, rewind, words, others=", a step" + (" or a function" if own else ""))
    step = require_count(name, rewind)
    if step >= steps:
        raise RegrowValueError(
            f"`{name}` is step {step:,}, and the run ends after {steps:,}\nGive an earlier step, or '{START}'."
        )
    return step


def plan(
    total: int,
    epoch: int,
    *,
    tickets: int = 1,
    score: str = "magnitude",
    rewind: str | int = START,
    find_lr: float | None = None,
    early: float | None = None,
    masks: int = 5,
) -> Plan:
    """Plan the runs of a ticket loop: one of the dense network, and one of each ticket, pruned out of the one before.

    Args:
        total: steps of each run.
        epoch: steps of an epoch.
        tickets: how many, each with the same share of the connections of the one before.
        score: ``magnitude``, ``normalised``, ``gradient``, or an initial topology such as ``snip``.
        rewind: as for `lottery`; ``new`` draws new weights.
        find_lr: the learning rate of all runs but the last; None is the recipe's.
        early: end the first run as soon as its mask has settled: `EarlyTicket`'s `distance`. None trains to the end.
        masks: that are compared for that, one after each epoch.
    """
    count = require_count("tickets.tickets", tickets)
    again = require_rewind("tickets.rewind", rewind, total, (*REWINDS, NEW), own=False)
    if early is not None:
        require_fraction("tickets.early", early, one=True)
    if find_lr is not None:
        require_numbers("tickets.find_lr", [find_lr])
    options = {
        "score": score,
        "rewind": again,
        "find_lr": find_lr,
        "early": early,
        "masks": require_count("tickets.masks", masks, least=2),
    }
    return Plan(total, count, total, total, options)
