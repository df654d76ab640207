"""What a run keeps beside the network that it trains: nothing, the best so far, or tickets."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import regrow
from regrow.app.recipes import Plan, Recipe
from regrow.app.training.batches import Batches
from regrow.app.training.evaluation import Evaluation, evaluate
from regrow.app.training.folder import RunFolder
from regrow.errors import RegrowRuntimeError
from regrow.methods import Method
from regrow.sparsity.distributions import whole_share
from regrow.tickets import Ensemble, FreeTickets, SupTickets, copied, overlap
from regrow.weights.views import named_weights

READINGS = 20
"""Of the loss, in each window."""


@dataclass(frozen=True)
class Outcome:
    """What a run has come to."""

    network: nn.Module
    """What is tested."""
    parts: Sequence[nn.Module]
    """The networks that a test of it runs."""
    tickets: Sequence[nn.Module] = ()
    steps: Sequence[int] = ()
    """When each ticket was taken."""
    norm_passes: int = 0
    """Forward passes over the training set that estimated batch norms anew."""


class Keeper:
    """A run's record of itself; this one keeps nothing, so that the last weights are the result.

    The loop asks `due` and `logs` after each step, tells it each test of the working model (`tested`), and calls
    `collect` where it was due, before the checkpoint.
    """

    def __init__(self, recipe: Recipe, batches: Batches, model: nn.Module, method: Method | None) -> None:
        self.recipe, self.batches, self.model, self.method = recipe, batches, model, method

    def due(self, step: int) -> bool:
        """Whether a ticket is complete after `step` steps: the working model is tested, then `collect` called."""
        return False

    def logs(self, step: int) -> bool:
        """Whether the loss is to be read, beside the regular readings."""
        return False

    def tested(self, step: int, evaluation: Evaluation) -> None:
        """Hear how good the working model is on what is tested during the run."""

    def collect(self, step: int, folder: RunFolder) -> float:
        """Take the ticket that is complete. Returns the seconds that this took, tests and files left out."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs to hold."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from it."""

    def finish(self, folder: RunFolder) -> Outcome:
        """What the run has come to."""
        return Outcome(self.model, [self.model])


class Best(Keeper):
    """Keeps the weights with the best accuracy on the examples held out, of those with the fewest connections.

    A method that prunes is not done before it has come down to the sparsity that is asked for.
    """

    best: tuple[float, nn.Module] | None = None

    def tested(self, step: int, evaluation: Evaluation) -> None:
        fewer = self.best is not None and connections(self.model) < connections(self.best[1])
        if self.best is None or fewer or evaluation.accuracy > self.best[0]:
            self.best = evaluation.accuracy, copied(self.model, self.method)

    def state_dict(self) -> dict[str, Any]:
        return {"accuracy": self.best[0], "model": self.best[1].state_dict()} if self.best else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state:
            model = copied(self.model, self.method)
            model.load_state_dict(state["model"])
            self.best = state["accuracy"], model

    def finish(self, folder: RunFolder) -> Outcome:
        network = self.best[1] if self.best else self.model
        return Outcome(network, [network])


@dataclass
class Taken:
    """The tickets so far: the files ``tickets/0.safetensors``, ... hold them."""

    keeper: Keeper
    steps: list[int] = field(default_factory=list)

    def add(self, folder: RunFolder, ticket: nn.Module, step: int) -> list[float]:
        """Write `ticket`. Returns the share of its connections that each ticket before it has too."""
        earlier = self.models(folder)
        folder.save_model(f"tickets/{len(self.steps)}.safetensors", ticket)
        self.steps.append(step)
        return [float(overlap([ticket, one])[0, 1]) for one in earlier] if regrow.is_sparse(ticket) else []

    def models(self, folder: RunFolder) -> list[nn.Module]:
        """Read them."""
        return [self.read(folder, f"tickets/{index}.safetensors") for index in range(len(self.steps))]

    def read(self, folder: RunFolder, name: str) -> nn.Module:
        """A network like the run's own, with what file `name` holds."""
        return folder.load_model(name, copied(self.keeper.model, self.keeper.method))


class Windows(Keeper):
    """What both kinds of tickets share: windows of equal length that end with the run."""

    def __init__(
        self, recipe: Recipe, batches: Batches, model: nn.Module, method: Method, plan: Plan
    ) -> None:
        super().__init__(recipe, batches, model, method)
        self.plan, self.taken = plan, Taken(self)

    def logs(self, step: int) -> bool:
        inside = step - self.plan.start
        return inside >= 0 and inside % max(1, self.plan.length // READINGS) == 0

    def test(self, model: nn.Module) -> Evaluation:
        """Test `model` as the working model is tested during the run."""
        return evaluate(model, self.batches.test(), self.recipe.precision)

    def record(
        self,
        folder: RunFolder,
        ticket: nn.Module,
        step: int,
        at: int,
        alone: Evaluation,
        together: dict[str, Any],
    ) -> None:
        """Write `ticket` of step `at` and, `step` being now, what is known of it."""
        index = len(self.taken.steps)
        shares = self.taken.add(folder, ticket, at)
        own = {"index": index, "taken": at, **alone.to_dict(), "connections": connections(ticket)}
        folder.append(
            "metrics.jsonl", {"kind": "ticket", "step": step, **own, "overlap": shares, "together": together}
        )


class Superposing(Windows):
    """Sup-tickets: the working model at the end of each cycle, superposed with those before."""

    def __init__(
        self, recipe: Recipe, batches: Batches, model: nn.Module, method: Method, plan: Plan
    ) -> None:
        super().__init__(recipe, batches, model, method, plan)
        self.tickets = SupTickets(
            method, start=plan.start, cycles=plan.count, cycle_steps=plan.length, **plan.options
        )
        self.norm_passes = 0
        self.alone: Evaluation | None = None

    def due(self, step: int) -> bool:
        return self.tickets.ready

    def tested(self, step: int, evaluation: Evaluation) -> None:
        self.alone = evaluation

    def collect(self, step: int, folder: RunFolder) -> float:
        begin, before = time.perf_counter(), self.tickets.count
        device, half = self.batches.device.type, self.recipe.precision == "bfloat16"
        with torch.autocast(device, torch.bfloat16, enabled=half):
            self.tickets.collect(self._batches(step))
        spent = time.perf_counter() - begin
        if self.tickets.count > before and self.alone is not None:
            network = self.tickets.model
            self._check(network)
            found = {**self.test(network).to_dict(), "connections": connections(network), "networks": 1}
            self.record(folder, self.model, step, step, self.alone, found)
        return spent

    def _batches(self, step: int) -> Iterator[Tensor]:
        """One pass over the training set, augmented as in training; counted if anybody asks for it."""
        self.norm_passes += 1
        yield from self.batches.epoch(step)

    def _check(self, network: nn.Module) -> None:
        asked, density = connections(self.model), self.tickets.density
        if density is not None:
            asked = whole_share(density, sum(weight.numel for _, weight in named_weights(network)))
        if connections(network) > asked:
            raise RegrowRuntimeError(
                f"the superposed network has {connections(network):,} connections, and {asked:,} were asked for"
            )

    def state_dict(self) -> dict[str, Any]:
        own = {"steps": list(self.taken.steps), "norm_passes": self.norm_passes}
        return {**own, "tickets": self.tickets.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.taken.steps, self.norm_passes = list(state["steps"]), state["norm_passes"]
        self.tickets.load_state_dict(state["tickets"])

    def finish(self, folder: RunFolder) -> Outcome:
        network = self.tickets.model
        return Outcome(
            network, [network], self.taken.models(folder), list(self.taken.steps), self.norm_passes
        )


class Refining(Windows):
    """FreeTickets' EDST ensemble: the best checkpoint of each window."""

    def __init__(
        self, recipe: Recipe, batches: Batches, model: nn.Module, method: Method, plan: Plan
    ) -> None:
        super().__init__(recipe, batches, model, method, plan)
        self.tickets = FreeTickets(method, start=plan.start, ticket_steps=plan.length, **plan.options)
        self.best: tuple[int, Evaluation] | None = None  # of the present window

    def due(self, step: int) -> bool:
        inside = step - self.plan.start
        return inside > 0 and inside % self.plan.length == 0

    def tested(self, step: int, evaluation: Evaluation) -> None:
        if self.tickets.consider(evaluation.accuracy):
            self.best = step, evaluation

    def collect(self, step: int, folder: RunFolder) -> float:
        if self.best is not None:
            at, alone = self.best
            ensemble = self.tickets.ensemble
            found = {
                **self.test(ensemble).to_dict(),
                "connections": connections(ensemble),
                "networks": len(ensemble.members),
            }
            self.record(folder, self.tickets.tickets[-1], step, at, alone, found)
        self.best = None
        return 0.0

    def state_dict(self) -> dict[str, Any]:
        best = [self.best[0], self.best[1].to_dict()] if self.best else None
        return {"steps": list(self.taken.steps), "best": best, "tickets": self.tickets.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.taken.steps, best = list(state["steps"]), state["best"]
        self.best = (best[0], Evaluation(**best[1])) if best else None
        self.tickets.load_state_dict(state["tickets"])

    def finish(self, folder: RunFolder) -> Outcome:
        tickets = self.tickets.tickets
        return Outcome(Ensemble(tickets), tickets, tickets, list(self.taken.steps))


def keeper(
    recipe: Recipe, batches: Batches, model: nn.Module, method: Method | None, plan: Plan | None
) -> Keeper:
    """What keeps the result of a run of `recipe`."""
    kinds = {"sup": Superposing, "edst": Refining}
    if (
        recipe.tickets is not None
        and recipe.tickets.name in kinds
        and plan is not None
        and method is not None
    ):
        return kinds[recipe.tickets.name](recipe, batches, model, method, plan)
    return (Best if recipe.keep == "best" else Keeper)(recipe, batches, model, method)


def connections(model: nn.Module) -> int:
    """Of all sparse weights of `model`."""
    return sum(weight.nnz for _, weight in named_weights(model))
