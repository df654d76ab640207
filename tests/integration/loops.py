"""What the integration tests share: a network, its batches, and the plain loop that every trainer is compared with."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import regrow

METHODS = {"rigl": regrow.RigL, "set": regrow.SET}
STORAGES = ("masked", "compressed")
UPDATES = {"drop_fraction": 0.5, "update_every": 2, "stop_fraction": 1.0, "schedule": "constant"}
CLIP = 0.25


def network(storage: str, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Sequential:
    """A small sparse MLP, the same at every call; three of its layers are sparse."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(10, 24), nn.Tanh(), nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 4)).to(
        dtype
    )
    regrow.sparsify(model, sparsity=0.7, distribution="erk", storage=storage, seed=seed)
    return model


def batches(count: int, size: int = 6, *, dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    """The same batches at every call."""
    generator = torch.Generator().manual_seed(5)
    return [
        (
            torch.randn(size, 10, generator=generator, dtype=torch.float64).to(dtype),
            torch.randint(4, (size,), generator=generator),
        )
        for _ in range(count)
    ]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.01)


OPTIMIZERS = {"sgd": sgd, "adamw": adamw}


def dense(model: nn.Module) -> dict[str, Tensor]:
    """The sparse weights of a model as dense tensors (copies), whatever their storage."""
    return {weight.name: weight.to_dense() for weight in regrow.weights.sparse_weights(model)}


@dataclass
class History:
    """Topology and weights of a model after each optimizer step."""

    model: nn.Module
    masks: list[dict[str, Tensor]] = field(default_factory=list)
    weights: list[dict[str, Tensor]] = field(default_factory=list)
    updates: list[dict[str, Any]] = field(default_factory=list)
    """The method's record of each update: what was dropped and grown, and the share that was ever active."""

    def __call__(self, *_: object) -> None:
        self.masks.append(regrow.masks(self.model))
        self.weights.append(dense(self.model))

    def follow(self, method: regrow.Method) -> None:
        """Record from now on; the optimizer's hooks run in their order, so this comes after the method."""
        method.register_update_hook(self.updates.append)
        method.optimizer.register_step_post_hook(self)


def assert_same(one: History, other: History, *, start: int = 0, tolerance: float = 1e-10) -> None:
    """`other` has the topologies and weights of `one` from step `start` on, and both did move."""
    assert len(other.masks) == len(one.masks) - start
    assert other.updates == [record for record in one.updates if record["step"] >= start]
    assert len(other.updates) >= 3
    for step, (mine, theirs) in enumerate(zip(one.masks[start:], other.masks, strict=True), start):
        assert mine.keys() == theirs.keys()
        for name in mine:
            assert torch.equal(mine[name], theirs[name]), f"topology of {name} at step {step}"
            torch.testing.assert_close(
                one.weights[step][name], other.weights[step - start][name], rtol=0, atol=tolerance
            )
    first, last = one.masks[0], one.masks[-1]
    assert all(not torch.equal(first[name], last[name]) for name in first), "a topology never moved"


def plain(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    method: regrow.Method,
    data: list[tuple[Tensor, Tensor]],
    *,
    accumulate: int = 1,
    clip: float | None = CLIP,
) -> History:
    """The loop of the README, with clipping and accumulation: what it gives is what any trainer must give."""
    history = History(model)
    history.follow(method)
    clipped = 0
    for number, (x, y) in enumerate(data, 1):
        (cross_entropy(model(x), y) / accumulate).backward()
        if number % accumulate == 0:
            if clip is not None:
                clipped += bool(nn.utils.clip_grad_norm_(model.parameters(), clip) > clip)
            optimizer.step()
            optimizer.zero_grad()
    assert clip is None or clipped > 2, "clipping was never on"
    return history
