"""What bad arguments are tried on, and the values that are wrong for each kind of argument."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import regrow

NAN, INF = float("nan"), float("inf")
NOT_COUNTS = (-1, 1.5, "a", True, NAN, INF, [3], torch.tensor([1, 2]), torch.tensor(True))
COUNTS = (0, *NOT_COUNTS)
MAYBE_FRACTIONS = (-0.1, 1.5, "half", True, NAN, [0.5], torch.tensor([0.5]))
FRACTIONS = (1.0, *MAYBE_FRACTIONS)
POSITIVE = (0, -1.0, "a", True, NAN, INF, [1.0])
FLAGS = ("maybe", 5, 0.0, [True])
WORDS = ("nonsense", 5, ["layer"], True)
MODELS = (None, 5, "model", nn.Linear, {"weight": torch.zeros(2, 2)})
OPTIMIZERS = (None, 5, "SGD", torch.optim.SGD)
GROUPS = (5, "world", [0, 1])
FUNCTIONS = (5, [1], nn.CrossEntropyLoss, lambda: 1.0, lambda a, b, c, d: 1.0)
TENSORS = ([[0.5, 0.5]], np.ones((2, 2)), None, "a")
PATTERNS = (5, [5], [None], {"0": 0.5}, lambda: True)


def loss_fn(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, target)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))


class World:
    """What arguments refer to, none of which may change: a dense model, a sparse one, and one that is driven."""

    def __init__(self) -> None:
        self.dense = network()
        self.sparse = regrow.sparsify(network(), 0.5, storage="masked", rescale=False)
        self.optimizer = torch.optim.SGD(self.sparse.parameters(), lr=0.1, momentum=0.9)
        self.driven = regrow.sparsify(network(), 0.5, storage="masked", rescale=False)
        self.its_optimizer = torch.optim.SGD(self.driven.parameters(), lr=0.1, momentum=0.9)
        self.method = regrow.RigL(self.driven, self.its_optimizer, total_steps=40, update_every=4)
        self.x, self.y = torch.randn(5, 6), torch.tensor([0, 1, 2, 3, 0])
        self.p = torch.randn(5, 4).softmax(1)
        self.conv, self.images = nn.Conv2d(1, 2, 3), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
        kept = {"inputs": self.x, "targets": self.y}
        self.tensors: dict[str, Any] = {
            f"{split}_{k}": v for split in ("train", "test") for k, v in kept.items()
        }
        self.tensors["classes"] = 4

    def state(self) -> tuple[list[Any], list[Tensor]]:
        """All that a refused call could have changed."""
        networks = (self.dense, self.sparse, self.driven)
        optimizers = (self.optimizer, self.its_optimizer)
        plain: list[Any] = [[type(m) for m in network.modules()] for network in networks]
        plain += [[m.training for m in network.modules()] for network in networks]
        for o in optimizers:
            plain += [len(o._optimizer_step_pre_hooks), sorted(o.__dict__), len(o.state)]
            plain += [
                {k: v for k, v in group.items() if k != "params"} | {"held": [id(p) for p in group["params"]]}
                for group in o.param_groups
            ]
        tensors = [t.detach().clone() for network in networks for t in network.state_dict().values()]
        return plain, [*tensors, torch.get_rng_state()]


Base = Callable[[World], dict[str, Any]]
Row = tuple[str, Callable[..., Any], Base, Mapping[str, tuple[Any, ...]]]


def both(w: World) -> dict[str, Any]:
    return {"model": w.sparse, "optimizer": w.optimizer, "total_steps": 40}


def of_model(w: World) -> dict[str, Any]:
    return {"model": w.sparse}


METHOD = {"model": MODELS, "optimizer": OPTIMIZERS, "total_steps": COUNTS, "seed": NOT_COUNTS}
METHOD |= {"process_group": GROUPS}
PERIODIC = {**METHOD, "total_steps": (None, *COUNTS), "update_every": (None, *COUNTS), "skip_step": FLAGS}
DYNAMIC = {
    **PERIODIC,
    "drop_fraction": MAYBE_FRACTIONS,
    "stop_fraction": MAYBE_FRACTIONS,
    "schedule": (5, None, "cosin", "inverse-power-x", "inverse-power-nan", "cosine-to-2", *FUNCTIONS),
    "grow_init": WORDS,
    "grow_scale": POSITIVE,
}
COLUMNS = (0, -1, 1.5, "all", True, NAN)


class Grown(regrow.Dynamic):
    """A method of somebody's own."""

    def grow(self, weight: Any, count: int, survivors: Tensor, generator: torch.Generator) -> Tensor:
        raise NotImplementedError


def ticket(w: World) -> dict[str, Any]:
    return {"method": w.method, "start": 20, "cycles": 1, "cycle_steps": 10, "explore": 0.5}


def free(w: World) -> dict[str, Any]:
    return {"method": w.method, "start": 20, "tickets": 2, "ticket_steps": 10}


def phases(w: World) -> dict[str, Any]:
    return {"method": w.method, "start": 20, "count": 2, "length": 10, "rate": lambda progress: 0.1}


def pair(w: World) -> dict[str, Any]:
    return {"probabilities": w.p, "targets": w.y}


def shapes(w: World) -> dict[str, Any]:
    return {"shapes": {"a": (4, 4), "b": (4, 2)}, "sparsity": 0.5}


SHAPES = {"shapes": (5, None, {"a": 4}, {"a": ("x",)}, [(4, 4)]), "sparsity": FRACTIONS}
PREDICTIONS = {"probabilities": (*TENSORS, torch.zeros(5)), "targets": (*TENSORS, torch.zeros(4).long())}
RATES = (5, (), "ab", [0.1, -1.0], [0.1, "a"], [NAN], [True])
