"""Two real processes with torch.distributed over loopback, and what they do in the tests of `test_ddp.py`.

A file of its own, because processes that are started fresh must be able to import it.
"""

import multiprocessing
import time
import traceback
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from integration.loops import CLIP, METHODS, OPTIMIZERS, UPDATES, History, batches, network
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import regrow

WORLD, STEPS = 2, 16
LIMIT = 60  # seconds; a test takes about one

# the server imports what is slow once (DDP itself imports torch._dynamo), and every process is a fork of it
multiprocessing.set_forkserver_preload(["torch._dynamo", "regrow"])


def run(scenario: Callable[..., Any], folder: Path, *args: Any) -> list[Any]:
    """What `scenario(rank, *args)` returns in each of two processes; a deadlock fails after `LIMIT` seconds."""
    context = multiprocessing.get_context("forkserver")
    folder = folder / uuid.uuid4().hex
    folder.mkdir()
    processes = [context.Process(target=_rank, args=(rank, scenario, folder, args)) for rank in range(WORLD)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + LIMIT
    while any(p.is_alive() for p in processes) and time.monotonic() < deadline:
        if any(p.exitcode for p in processes):
            deadline = min(deadline, time.monotonic() + 5)  # the other one waits for it
        time.sleep(0.02)
    ends = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    errors = "\n".join(file.read_text() for file in sorted(folder.glob("*.error")))
    assert not errors, errors
    assert ends == [0] * WORLD, (
        f"exit codes {ends}; None is a process that still waited for the other after {LIMIT} s"
    )
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]


def _rank(rank: int, scenario: Callable[..., Any], folder: Path, args: tuple[Any, ...]) -> None:
    warnings.simplefilter("error")
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
        result = scenario(rank, *args)
        torch.save(result, folder / f"{rank}.pt")
        dist.destroy_process_group()
    except BaseException:
        (folder / f"{rank}.error").write_text(f"rank {rank}: {traceback.format_exc()}")
        raise


def data(dtype: torch.dtype, accumulate: int) -> list[tuple[Tensor, Tensor]]:
    return batches(STEPS * accumulate, 8, dtype=dtype)


def attach(method: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> regrow.Method:
    return METHODS[method](model, optimizer, total_steps=STEPS, **UPDATES)


def state(model: nn.Module, optimizer: torch.optim.Optimizer, history: History) -> dict[str, Any]:
    """All that two processes must agree about."""
    return {
        "masks": history.masks,
        "weights": history.weights,
        "updates": history.updates,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }


def train(
    rank: int,
    storage: str,
    method: str,
    optimizer: str = "sgd",
    dtype: torch.dtype = torch.float64,
    accumulate: int = 1,
    **settings: Any,
) -> dict[str, Any]:
    """Each process takes its half of every batch of the plain loop."""
    model = network(storage, dtype=dtype)
    wrapped = DistributedDataParallel(model, **settings)
    driven = OPTIMIZERS[optimizer](wrapped)
    history = History(model)
    history.follow(attach(method, wrapped, driven))
    for number, (x, y) in enumerate(data(dtype, accumulate), 1):
        x, y = x[rank::WORLD], y[rank::WORLD]
        if number % accumulate:
            with wrapped.no_sync():
                (cross_entropy(wrapped(x), y) / accumulate).backward()
            continue
        (cross_entropy(wrapped(x), y) / accumulate).backward()
        nn.utils.clip_grad_norm_(wrapped.parameters(), CLIP)
        driven.step()
        driven.zero_grad()
    return state(model, driven, history)


def other_seeds(rank: int, storage: str) -> str:
    """The refusal of processes whose topologies differ."""
    model = network(storage, seed=rank)
    wrapped = DistributedDataParallel(model)
    try:
        attach("rigl", wrapped, OPTIMIZERS["sgd"](wrapped))
    except regrow.RegrowError as error:
        return str(error)
    return "not refused"


def other_arguments(rank: int, method: str, by_rank: list[dict[str, Any]]) -> str:
    """The refusal of processes whose methods differ."""
    model = network("masked")
    wrapped = DistributedDataParallel(model)
    try:
        METHODS[method](
            wrapped, OPTIMIZERS["sgd"](wrapped), **({"total_steps": STEPS} | UPDATES | by_rank[rank])
        )
    except regrow.RegrowError as error:
        return str(error)
    return "not refused"


def other_layers(rank: int, include: list[list[str] | None]) -> str:
    """The refusal of processes of which each has sparse layers of its own; None is a dense model."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(10, 24), nn.Tanh(), nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 4))
    mine = include[rank]
    if mine is not None:
        regrow.sparsify(model, sparsity=0.7, include=mine)
    try:
        attach("rigl", model, OPTIMIZERS["sgd"](model))
    except regrow.RegrowError as error:
        return str(error)
    return "not refused"


def parted(rank: int, storage: str, method: str, how: str) -> tuple[int, str]:
    """Train until the processes are found to have parted: the step at which they are, and what is said."""
    model = network(storage)
    wrapped = model if how == "no DDP" else DistributedDataParallel(model)
    driven = OPTIMIZERS["sgd"](wrapped)
    settings: dict[str, Any] = {"total_steps": STEPS, **UPDATES}
    if how == "schedule":
        settings["schedule"] = lambda t: 1.0 - t * rank
    attached = METHODS[method](wrapped, driven, **settings)
    if how == "length" and rank:
        attached.stop_step = 3
    for number, (x, y) in enumerate(data(torch.float64, 1)):
        if how == "topology" and rank and number == 3:
            weight = attached.weights[1]
            free = weight.mask().logical_not().flatten().nonzero().flatten()[:2]
            attached.move(weight, torch.tensor([0, 1]), free)
        cross_entropy(wrapped(x[rank::WORLD]), y[rank::WORLD]).backward()
        try:
            driven.step()
        except regrow.RegrowError as error:
            return number, str(error)
        driven.zero_grad()
    return STEPS, "not found"


class Branches(nn.Module):
    """A trunk, and a branch that only some inputs take."""

    def __init__(self, storage: str, include: list[str]) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.trunk, self.branch, self.head = nn.Linear(10, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.double()
        regrow.sparsify(self, sparsity=0.7, include=include, storage=storage)

    def forward(self, x: Tensor, through_branch: bool) -> Tensor:
        x = self.trunk(x).tanh()
        return self.head(x + self.branch(x).tanh() if through_branch else x)


def branches(rank: int, storage: str, method: str, include: list[str]) -> dict[str, Any]:
    """The first process never takes the branch, the second always; every fifth step nobody does."""
    model = Branches(storage, include)
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    driven = OPTIMIZERS["sgd"](wrapped)
    history = History(model)
    history.follow(attach(method, wrapped, driven))
    for number, (x, y) in enumerate(data(torch.float64, 1)):
        x, y = x[rank::WORLD], y[rank::WORLD]
        cross_entropy(wrapped(x, rank == 1 and number % 5 > 0), y).backward()
        driven.step()
        driven.zero_grad()
    return state(model, driven, history)


def branches_alone(storage: str, method: str, include: list[str]) -> History:
    """What `branches` must give, in one process."""
    model = Branches(storage, include)
    driven = OPTIMIZERS["sgd"](model)
    history = History(model)
    history.follow(attach(method, model, driven))
    for number, (x, y) in enumerate(data(torch.float64, 1)):
        losses = [
            cross_entropy(model(x[rank::WORLD], rank == 1 and number % 5 > 0), y[rank::WORLD])
            for rank in range(WORLD)
        ]
        (sum(losses) / WORLD).backward()
        driven.step()
        driven.zero_grad()
    return history


def ignored(rank: int, storage: str) -> dict[str, Any]:
    """How many buffers DDP broadcasts, and the model has."""
    model = nn.Sequential(network(storage), nn.BatchNorm1d(4).double())
    model = regrow.densify(model)
    regrow.sparsify(model, sparsity=0.7, storage=storage)
    wrapped = DistributedDataParallel(model)
    attach("rigl", wrapped, OPTIMIZERS["sgd"](wrapped))
    return {"broadcast": len(list(wrapped.modules_buffers)), "buffers": len(list(model.buffers()))}


def inside_another(rank: int, storage: str) -> dict[str, Any]:
    """`sparsify` on a part of what DDP wraps."""
    outer = nn.Sequential(network(storage), nn.Tanh())
    wrapped = DistributedDataParallel(outer)
    driven = OPTIMIZERS["sgd"](wrapped)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        method = attach("rigl", wrapped, driven)
    history = History(outer)
    history.follow(method)
    for x, y in data(torch.float64, 1):
        cross_entropy(wrapped(x[rank::WORLD]), y[rank::WORLD]).backward()
        driven.step()
        driven.zero_grad()
    return {**state(outer, driven, history), "warnings": [str(w.message) for w in caught]}
