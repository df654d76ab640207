"""Networks whose dense weights could not exist: made on the meta device, trained, updated, saved and read."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from tiny import ENVIRONMENT
from torch import nn

import regrow
from regrow.errors import RegrowError
from regrow.models import mlp

IN_LITTLE_MEMORY = """
import pathlib, resource, sys, tempfile
import torch, regrow
from torch import nn
from regrow.ops import native
native.load()

GIANT = 1_000_000
used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 3 * 2**29,) * 2)  # a byte for each position would be 10^12

def network(count):
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(6, GIANT), nn.ReLU(), nn.Linear(GIANT, GIANT), nn.ReLU(), nn.Linear(GIANT, 2))
    share = {"0": 0.5, "2": 1 - count / GIANT**2, "4": 0.9}
    return regrow.sparsify(model, distribution=share, storage="compressed", rescale=False)

def train(model, method, steps, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, fused=True)
    driver = method(model, optimizer, total_steps=10, update_every=2, **options)
    records = []
    driver.register_update_hook(records.append)
    for step in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(torch.randn(2, 6)), torch.tensor([0, 1])).backward()
        optimizer.step()
    return optimizer, driver, records

model = network(300_000)
counts = [row.connections for row in regrow.summary(model).rows]
assert counts == [3_000_000, 300_000, 200_000], counts
optimizer, rigl, records = train(model, regrow.RigL, 3, grow_columns=4)
assert len(records) == 1 and records[0]["layers"]["2.weight"]["grown"] > 0, records
rigl.detach()
_, _, records = train(model, regrow.SET, 3)
assert records[0]["layers"]["2.weight"]["grown"] > 50_000, records
assert [row.connections for row in regrow.summary(model).rows] == counts
regrow.costs(model, torch.zeros(1, 6))

with tempfile.TemporaryDirectory() as folder:
    regrow.save(model, folder + "/model.safetensors")
    with torch.device("meta"):
        again = nn.Sequential(nn.Linear(6, GIANT), nn.ReLU(), nn.Linear(GIANT, GIANT), nn.ReLU(), nn.Linear(GIANT, 2))
    regrow.load(folder + "/model.safetensors", again)
    x = torch.randn(3, 6)
    assert torch.equal(model(x), again(x))
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder + "/checkpoint.pt")
    kept = torch.load(folder + "/checkpoint.pt", weights_only=True)
    other = network(200_000)
    other.load_state_dict(kept["model"])
    assert torch.equal(model(x), other(x))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, limits the address space")
def test_nothing_of_the_size_of_the_dense_weight_is_ever_made() -> None:
    command = [sys.executable, "-W", "error", "-c", IN_LITTLE_MEMORY]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def on_meta(*sizes: int, **options: Any) -> nn.Module:
    with torch.device("meta"):
        model = mlp(sizes[0], sizes[1:-1], sizes[-1])
    return regrow.sparsify(model, **options)


def test_weights_are_drawn_as_the_dense_layer_draws_them() -> None:
    torch.manual_seed(0)
    model = on_meta(400, 500, 300, 10, distribution={"layers.0": 0.9, "layers.2": 0.5}, storage="compressed")
    dense = mlp(400, (500, 300), 10)
    regrow.sparsify(dense, distribution={"layers.0": 0.9, "layers.2": 0.5}, storage="compressed")
    masks, wanted = regrow.masks(model), regrow.masks(dense)
    assert all(torch.equal(masks[name], wanted[name]) for name in wanted)  # the topology is the seed's alone
    for (name, ours), theirs in zip(model.named_parameters(), dense.parameters(), strict=True):
        assert (ours.shape, ours.device.type, ours.requires_grad) == (theirs.shape, "cpu", True), name
        bound = 1 / math.sqrt({"0": 400, "2": 500, "4": 300}[name.split(".")[1]])
        assert ours.detach().abs().max() <= bound
        assert float(ours.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.2)
        assert abs(float(ours.detach().mean())) < 4 * bound / math.sqrt(3 * ours.numel())
    torch.manual_seed(0)
    again = on_meta(400, 500, 300, 10, distribution={"layers.0": 0.9, "layers.2": 0.5}, storage="compressed")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_rescaled_and_automatic() -> None:
    model = on_meta(400, 500, 300, 10, sparsity=0.96, distribution="uniform", rescale=True)
    rows = {row.name: row for row in regrow.summary(model).rows}
    assert rows["layers.2.weight"].storage == "compressed"
    assert rows["layers.0.weight"].storage == "dense"
    values = dict(model.named_parameters())["layers.2.weight_values"]
    assert float(values.detach().abs().max()) == pytest.approx(5 / math.sqrt(500), rel=0.01)


def test_masked_layers_and_norms_are_made_whole() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(30, 20), nn.BatchNorm1d(20), nn.Linear(20, 10))
    regrow.sparsify(model, 0.8, storage="masked")
    model(torch.randn(4, 30)).sum().backward()
    assert int(model[0].weight_mask.sum()) == int((model[0].weight != 0).sum())
    assert torch.equal(model[1].weight, torch.ones(20))


class Lost(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))


class Positional(nn.Linear):
    def __init__(self) -> None:
        super().__init__(8, 8)
        self.register_buffer("angles", torch.arange(8.0))


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    model[2].weight = model[1].weight
    return model


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(8, 8), Lost()), {}, "how `1` draws its weights"),
        (lambda: nn.Sequential(nn.Linear(8, 8), Positional()), {"include": "0"}, "how `1` draws its weights"),
        (tied, {}, "shares a weight between layers"),
        (
            lambda: nn.Sequential(nn.Linear(8, 8)),
            {"init": "magnitude"},
            "`init` is 'magnitude', but `model` is on",
        ),
    ],
)
def test_what_cannot_be_made_is_refused(build: Any, options: dict[str, Any], message: str) -> None:
    with torch.device("meta"):
        model = build()
    with pytest.raises(RegrowError, match=message):
        regrow.sparsify(model, 0.5, **options)
    assert not regrow.is_sparse(model)
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize("storage", ["masked", "compressed"])
def test_positions_of_ones_own(storage: str) -> None:
    model = regrow.sparsify(
        nn.Sequential(nn.Linear(4, 3)), init={"0.weight": torch.tensor([1, 5, 11])}, storage=storage
    )
    assert regrow.masks(model)["0.weight"].view(-1).nonzero().view(-1).tolist() == [1, 5, 11]
    for wrong in ([], [5, 1], [1, 1], [-1, 2], [3, 12]):
        with pytest.raises(RegrowError, match=r"or ascending positions in \[0, 12\)"):
            regrow.sparsify(
                nn.Sequential(nn.Linear(4, 3)), init={"0.weight": torch.tensor(wrong, dtype=torch.int64)}
            )
