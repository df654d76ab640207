"""What each method trains, compared with what was recorded: topologies bit for bit, weights up to rounding.

Everything here is public, so that this file outlives whatever is rebuilt behind it.

`python tests/test_digests.py` records again. That is right where results are meant to change (a method, the numbers of
a kernel) or a run is added here, and the commit says so. It is never right to make a refactoring pass. Exact digests
are those of the machine that recorded last; on any other the runs in float32, which have nothing else, are skipped.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adam, Optimizer

import regrow

RECORDED = Path(__file__).with_name("digests.json")
STORAGES = ("masked", "compressed")
STEPS, EVERY, BATCH, CLASSES, SIZE = 40, 5, 24, 5, 12
TOLERANCE = 1e-9
"""Share of a tensor's norm. Storages, instruction sets and the reference differ by less than 1e-13 here."""

Loader = list[tuple[Tensor, Tensor]]


# --- what is trained on what


@cache
def images(seed: int, batches: int, dtype: torch.dtype) -> Loader:
    """Smooth noise with a brighter spot where the class says, in a border without information."""
    generator = torch.Generator().manual_seed(seed)  # its uniform numbers are the same on every machine
    centres = torch.tensor([[3, 3], [3, 8], [8, 3], [8, 8], [5, 6]])
    loader = []
    for _ in range(batches):
        targets = torch.randint(CLASSES, (BATCH,), generator=generator)
        pixels = torch.rand(BATCH, 1, SIZE, SIZE, generator=generator, dtype=torch.float64)
        for image, target in zip(pixels[:, 0], targets, strict=True):
            row, column = (int(centre) for centre in centres[target])
            image[row - 1 : row + 2, column - 1 : column + 2] += 0.5
        pixels = 2 * functional.avg_pool2d(pixels - 0.5, 3, 1, 1)
        pixels[:, :, [0, -1]] = pixels[:, :, :, [0, -1]] = 0
        loader.append((pixels.to(dtype), targets))
    return loader


class Residual(nn.Module):
    """A small residual network with batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.down_norm = nn.BatchNorm2d(16)
        self.inner = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.inner_norm = nn.BatchNorm2d(16)
        self.pool = nn.MaxPool2d(3)
        self.last = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.first_norm(self.first(x)))
        x = functional.relu(self.down_norm(self.down(x)))
        x = functional.relu(self.inner_norm(self.inner(x)) + x)
        return self.last(self.pool(x).flatten(1))


def mlp() -> nn.Module:
    hidden = [nn.Linear(SIZE * SIZE, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(32, CLASSES))


def initial(network: nn.Module) -> nn.Module:
    """Draw the weights of `network` in float64: in float32 machines round them apart by more than is allowed here."""
    torch.manual_seed(0)
    for module in network.double().modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.reset_parameters()
    return network


NETWORKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "mlp": (mlp, "erk"),
    "residual": (Residual, "uniform"),
}
"""By name: what builds it, and the distribution of its sparsity."""


def sgd(parameters: Any) -> Optimizer:
    return SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-4)


def adam(parameters: Any) -> Optimizer:
    return Adam(parameters, lr=0.003)


@dataclass(frozen=True)
class Way:
    """A method with its options; `tickets` go on behind it."""

    method: Callable[..., Any]
    options: dict[str, Any] = field(default_factory=lambda: {"update_every": EVERY})
    sparsity: float = 0.8
    optimizer: Callable[[Any], Optimizer] = sgd
    tickets: str | None = None
    storages: tuple[str, ...] = STORAGES


GRADUAL = {"update_every": EVERY, "final_sparsity": 0.9}
CONSTANT = {"update_every": EVERY, "drop_fraction": 0.5, "stop_fraction": 1.0, "schedule": "constant"}
WAYS = {
    "RigL": Way(regrow.RigL),
    "RigL, Adam": Way(regrow.RigL, optimizer=adam),
    "RigL, some columns": Way(regrow.RigL, {"update_every": EVERY, "grow_columns": 0.5}),
    "SET": Way(regrow.SET),
    "SET, original": Way(regrow.SET.original, {"steps_per_epoch": EVERY}),
    "SNFS": Way(regrow.SNFS, storages=("masked",)),  # refused on the other
    "GraNet": Way(regrow.GraNet, GRADUAL, sparsity=0.5),
    "Pruning": Way(regrow.Pruning, GRADUAL | {"start_fraction": 0.1}, sparsity=0.0),
    "SupTickets": Way(regrow.RigL, tickets="sup"),
    "FreeTickets": Way(regrow.RigL, CONSTANT, tickets="free"),
}
RUNS = [f"{network}, {way}" for network in NETWORKS for way in WAYS]


def way_of(run: str) -> Way:
    return WAYS[run.partition(", ")[2]]


# --- a run and what it leaves


@dataclass
class Outcome:
    """What a run leaves: its topologies, by the step that made them, and its networks' tensors in dense form."""

    topologies: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def watch(self, when: str, model: nn.Module) -> None:
        """Note the topology of `model`, where it is not the one noted last."""
        found = topology(model)
        if found not in list(self.topologies.values())[-1:]:
            self.topologies[when] = found

    def keep(self, what: str, model: nn.Module) -> None:
        """Note the topology of `model` and all its tensors."""
        self.topologies[what] = topology(model)
        dense = regrow.dense_state_dict(model)
        self.tensors |= {f"{what}: {name}": tensor.detach().clone() for name, tensor in dense.items()}

    def summary(self) -> dict[str, list[float]]:
        """Of each tensor its norm and its product with fixed random numbers, which any change of an element moves."""
        return {name: [float(t.double().norm()), project(t)] for name, t in self.tensors.items()}

    def exact(self) -> str:
        return digest([self.topologies, *self.tensors.items()])


def topology(model: nn.Module) -> str:
    """A word for each layer: the start of the digest of its connections' indices."""
    return " ".join(digest([mask.nonzero()])[:12] for mask in regrow.masks(model).values())


def digest(values: Any) -> str:
    found = hashlib.sha256()
    for value in values:
        if isinstance(value, tuple):
            found.update(digest(value).encode())
        elif isinstance(value, Tensor):
            found.update(f"{value.dtype} {list(value.shape)}".encode() + value.contiguous().numpy().tobytes())
        else:
            found.update(json.dumps(value).encode())
    return found.hexdigest()


def project(tensor: Tensor) -> float:
    generator = torch.Generator().manual_seed(tensor.numel())
    fixed = torch.rand(tensor.numel(), generator=generator, dtype=torch.float64) + 0.5
    return float(fixed @ tensor.flatten().double())


@contextmanager
def one_thread() -> Iterator[None]:
    """A sum over several threads may be rounded otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def outcome(run: str, storage: str, dtype: torch.dtype) -> Outcome:
    with one_thread():
        return train(run, storage, dtype)


def train(run: str, storage: str, dtype: torch.dtype) -> Outcome:
    network, way = run.partition(", ")[0], way_of(run)
    build, distribution = NETWORKS[network]
    model = regrow.sparsify(
        initial(build()).to(dtype), way.sparsity, distribution, storage=storage, rescale=True
    )
    if network == "residual" and storage == "compressed":
        regrow.fuse(model)
    optimizer = way.optimizer(model.parameters())
    method = way.method(model, optimizer, total_steps=STEPS, **way.options)
    found, loader, held_out = Outcome(), images(1, 12, dtype), images(2, 2, dtype)
    tickets: Any = None
    if way.tickets == "sup":
        tickets = regrow.SupTickets(method, start=STEPS, cycles=2, cycle_steps=10, lr=(0.005, 0.05))
    elif way.tickets == "free":
        tickets = regrow.FreeTickets(
            method, start=STEPS // 3, tickets=2, ticket_steps=STEPS // 3, lr=(0.05, 0.01)
        )
    found.watch("start", model)
    for step in range(STEPS + 20 * (way.tickets == "sup")):
        x, y = loader[step % len(loader)]
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        found.watch(f"step {step}", model)
        if way.tickets == "sup" and tickets.ready:
            found.keep(f"superposed at {step}", tickets.collect(loader))
        if way.tickets == "free" and step % 4 == 3:
            tickets.consider(regrow.tickets.accuracy(*regrow.tickets.probabilities(model, held_out)))
    found.keep("trained", model)
    if way.tickets == "free":
        for number, member in enumerate(tickets.tickets):
            found.keep(f"member {number}", member)
        found.tensors["ensemble"] = regrow.tickets.probabilities(tickets.ensemble, held_out)[0].detach()
    return found


# --- what was recorded


@cache
def recorded() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RECORDED.read_text(encoding="utf-8"))
    return found


@cache
def machine() -> dict[str, Any]:
    """All that decides how a sum is rounded."""
    command = [sys.executable, "-m", "regrow", "doctor", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(Path(regrow.__file__).parents[1])}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    said = json.loads(ended.stdout)  # its exit code tells whether there are kernels
    capability = torch.backends.cpu.get_cpu_capability()
    parts = {key: said[key] for key in ("kernels", "processor", "caches")}
    return {"torch": torch.__version__, "vectors of torch": capability, **parts}


CASES = [(run, storage, torch.float64) for run in RUNS for storage in way_of(run).storages]
CASES += [(f"residual, {way}", storage, torch.float32) for way in ("RigL", "SET") for storage in STORAGES]


def key(storage: str, dtype: torch.dtype) -> str:
    return f"{storage}, {str(dtype).removeprefix('torch.')}"


def record() -> None:
    """Write what the library does now, where both storages agree on it."""
    runs: dict[str, Any] = {}
    for run, storage, dtype in CASES:
        found = outcome(run, storage, dtype)
        kept = runs.setdefault(run, {"topologies": found.topologies, "weights": found.summary(), "exact": {}})
        if dtype == torch.float64:
            check(found, kept)
        kept["exact"][key(storage, dtype)] = found.exact()
    text = json.dumps({"machine": machine(), "runs": runs}, indent=1)
    RECORDED.write_text(re.sub(r"\[\s+(\S+),\s+(\S+)\s+\]", r"[\1, \2]", text) + "\n", encoding="utf-8")


def check(found: Outcome, kept: dict[str, Any]) -> None:
    """Compare all topologies exactly and all weights up to rounding."""
    assert found.topologies == kept["topologies"]
    summary = found.summary()
    assert summary.keys() == kept["weights"].keys()
    for name, numbers in summary.items():
        wanted = kept["weights"][name]
        assert math.dist(numbers, wanted) <= TOLERANCE * wanted[0], name


# --- the tests


@pytest.mark.parametrize(("run", "storage", "dtype"), CASES, ids=lambda value: str(value).split(".")[-1])
def test_a_run_comes_to_what_was_recorded(run: str, storage: str, dtype: torch.dtype) -> None:
    found, kept = outcome(run, storage, dtype), recorded()["runs"][run]
    if dtype == torch.float64:
        check(found, kept)
    if recorded()["machine"] == machine():
        assert found.exact() == kept["exact"][key(storage, dtype)]
    elif dtype == torch.float32:
        pytest.skip(f"recorded on {recorded()['machine']}")


def test_every_run_is_recorded_moves_its_topology_and_stays_finite() -> None:
    runs = recorded()["runs"]
    exact = {(run, name) for run, kept in runs.items() for name in kept["exact"]}
    assert exact == {(run, key(storage, dtype)) for run, storage, dtype in CASES}
    for kept in runs.values():
        assert len(set(kept["topologies"].values())) > 4
        assert all(math.isfinite(sum(numbers)) for numbers in kept["weights"].values())


if __name__ == "__main__":
    with one_thread():
        record()
