"""What a run keeps beside the network that it trains: nothing, the best so far, or tickets."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import regrow
from regrow.app.recipes import Recipe
from regrow.app.tasks import Metric, Task
from regrow.app.training.batches import Batches
from regrow.app.training.evaluation import Evaluation, evaluate
from regrow.app.training.folder import RunFolder
from regrow.errors import RegrowRuntimeError
from regrow.methods import Method
from regrow.tickets import EarlyTicket, Plan, TicketKind, copied, kind_of, overlap
from regrow.tricks import has_ghosts
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
    """Forward passes over the training set that estimated batch norms again."""


class Keeper:
    """A run's record of itself; this one keeps nothing, so that the last weights are the result.

    The loop asks `due` and `logs` after each step, tells it each test of the working model (`tested`), and calls
    `collect` where it was due, before the checkpoint.
    """

    over = False
    """Whether the run ends here, before its last step: asked after `collect`."""

    def __init__(self, recipe: Recipe, batches: Batches, model: nn.Module, method: Method | None) -> None:
        self.recipe, self.batches, self.model, self.method = recipe, batches, model, method

    def due(self, step: int) -> bool:
        """Return whether a ticket is complete after `step` steps: the working model is tested, then `collect`
        called.
        """
        return False

    def logs(self, step: int) -> bool:
        """Return whether the loss is to be read, beside the regular readings."""
        return False

    def tested(self, step: int, evaluation: Evaluation) -> None:
        """Hear how good the working model is on what is tested during the run."""

    def collect(self, step: int, folder: RunFolder) -> float:
        """Take the ticket that is complete. Returns the seconds that this took, tests and files left out."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs to hold."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from it."""

    def finish(self, folder: RunFolder) -> Outcome:
        """Return what the run has come to."""
        return Outcome(self.model, [self.model])


class Best(Keeper):
    """Keeps the weights that are best on the examples held out, of those with the fewest connections.

    A method that prunes is not done before it has come down to the sparsity that is asked for, nor is a network with
    ghosts in it before they have ended.
    """

    best: tuple[float, nn.Module] | None = None

    def tested(self, step: int, evaluation: Evaluation) -> None:
        if has_ghosts(self.model):
            return
        fewer = self.best is not None and connections(self.model) < connections(self.best[1])
        value = evaluation[self.metric.name]
        if self.best is None or fewer or self.metric.better(value, self.best[0]):
            self.best = value, copied(self.model, self.method)

    @property
    def metric(self) -> Metric:
        """What says which weights are best."""
        return self.batches.task.measures.best

    def state_dict(self) -> dict[str, Any]:
        return {self.metric.name: self.best[0], "model": self.best[1].state_dict()} if self.best else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state:
            model = copied(self.model, self.method)
            model.load_state_dict(state["model"])
            self.best = state[self.metric.name], model

    def finish(self, folder: RunFolder) -> Outcome:
        network = self.best[1] if self.best else self.model
        return Outcome(network, [network])


class Settling(Keeper):
    """Ends the run after the epoch in which the mask that pruning would give has settled."""

    def __init__(self, recipe: Recipe, batches: Batches, model: nn.Module, method: Method | None) -> None:
        super().__init__(recipe, batches, model, method)
        where: dict[str, Any] = {key: recipe.sparsify.get(key) for key in ("include", "exclude")}
        self.ticket = EarlyTicket(model, **recipe.early, **where)

    def due(self, step: int) -> bool:
        return (step - self.recipe.first_step) % self.batches.steps_per_epoch == 0

    def collect(self, step: int, folder: RunFolder) -> float:
        begin = time.perf_counter()
        self.over = self.ticket.settled()
        spent = time.perf_counter() - begin
        folder.append("metrics.jsonl", {"kind": "mask", "step": step, "distances": self.ticket.distances})
        return spent

    def state_dict(self) -> dict[str, Any]:
        return self.ticket.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.ticket.load_state_dict(state)


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
        """Return a network like the run's own, with what file `name` holds."""
        return folder.load_model(name, copied(self.keeper.model, self.keeper.method))


class Tickets(Keeper):
    """Keeps the tickets of a run's windows, which are of equal length and end with it."""

    def __init__(
        self, recipe: Recipe, batches: Batches, model: nn.Module, method: Method, kind: TicketKind, plan: Plan
    ) -> None:
        super().__init__(recipe, batches, model, method)
        if kind.make is None:
            raise AssertionError("independent runs keep no tickets")
        self.kind, self.plan, self.taken = kind, plan, Taken(self)
        self.maker = kind.make(method, plan)
        self.norm_passes = 0
        self.best: tuple[int, Evaluation] | None = None
        """When the next ticket was as it will be taken, and how good it was."""

    def due(self, step: int) -> bool:
        return self.maker.due(step)

    def logs(self, step: int) -> bool:
        inside = step - self.plan.start
        return inside >= 0 and inside % max(1, self.plan.length // READINGS) == 0

    def tested(self, step: int, evaluation: Evaluation) -> None:
        metric = self.batches.task.measures.best
        if self.maker.consider(metric.score(evaluation[metric.name])):
            self.best = step, evaluation

    def collect(self, step: int, folder: RunFolder) -> float:
        begin = time.perf_counter()
        device, half = self.batches.device.type, self.recipe.precision == "bfloat16"
        with torch.autocast(device, torch.bfloat16, enabled=half):
            ticket = self.maker.collect(self._batches(step))
        spent = time.perf_counter() - begin
        if ticket is not None:
            if self.best is None:
                raise RegrowRuntimeError(
                    f"tickets {self.kind.name}: `collect` took one at step {step}, and `consider` refused every network"
                )
            self._record(folder, ticket, step, *self.best)
        self.best = None
        return spent

    def _record(self, folder: RunFolder, ticket: nn.Module, step: int, taken: int, alone: Evaluation) -> None:
        """Write `ticket` as it was at step `taken` and, `step` being now, what is known of it and of all together."""
        index, networks = len(self.taken.steps), self.maker.networks
        shares = self.taken.add(folder, ticket, taken)
        task, precision = self.batches.task, self.recipe.precision
        found = evaluate(task, together(self.kind, networks, task), self.batches.test(), precision)
        record = {
            "kind": "ticket",
            "step": step,
            "index": index,
            "taken": taken,
            **alone,
            "connections": connections(ticket),
            "overlap": shares,
            "together": {
                **found,
                "connections": sum(map(connections, networks)),
                "networks": len(networks),
            },
        }
        folder.append("metrics.jsonl", record)

    def _batches(self, step: int) -> Iterator[Tensor]:
        """Yield one pass over the training set, augmented as in training; counted if anybody asks for it."""
        self.norm_passes += 1
        yield from self.batches.epoch(step)

    def state_dict(self) -> dict[str, Any]:
        best = [self.best[0], dict(self.best[1])] if self.best else None
        own = {"steps": list(self.taken.steps), "best": best, "norm_passes": self.norm_passes}
        return {**own, "tickets": self.maker.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        # older checkpoints hold the one or the other
        self.norm_passes, best = state.get("norm_passes", 0), state.get("best")
        self.taken.steps = list(state["steps"])
        self.best = tuple(best) if best else None
        self.maker.load_state_dict(state["tickets"])

    def finish(self, folder: RunFolder) -> Outcome:
        networks = self.maker.networks
        network, steps = together(self.kind, networks, self.batches.task), list(self.taken.steps)
        return Outcome(network, networks, self.taken.models(folder), steps, self.norm_passes)


def together(kind: TicketKind, networks: Sequence[nn.Module], task: Task) -> nn.Module:
    """Return the network that is the result of tickets: an ensemble of all, or the last one."""
    return task.ensemble(networks) if kind.result == "ensemble" else networks[-1]


def keeper(
    recipe: Recipe, batches: Batches, model: nn.Module, method: Method | None, plan: Plan | None
) -> Keeper:
    """Return what keeps the result of a run of `recipe`."""
    if recipe.tickets is not None and plan is not None:
        kind = kind_of(recipe.tickets.name)
        together(kind, [model], batches.task)  # a task without ensembles refuses now, not at the end
        if method is not None and not kind.independent:
            return Tickets(recipe, batches, model, method, kind, plan)
    if recipe.early:
        return Settling(recipe, batches, model, method)
    return (Best if recipe.keep == "best" else Keeper)(recipe, batches, model, method)


def connections(model: nn.Module) -> int:
    """Count the connections of all sparse weights of `model`."""
    return sum(weight.nnz for _, weight in named_weights(model))
