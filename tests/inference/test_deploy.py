"""`regrow.deploy`: the same outputs, whatever the network is and however it is called, and clear errors before."""

from __future__ import annotations

import copy
import io
import pickle
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from inference.deployed import (
    NETWORKS,
    Several,
    deployed_of,
    network,
    pruned_by_half,
    sparse,
    usual,
    wanted_of,
    x,
)
from machine import ISAS, using
from tiny import ENVIRONMENT
from torch import Tensor, nn

import regrow
from regrow.errors import RegrowError, RegrowRuntimeError, RegrowValueError
from regrow.inference import deploying
from regrow.inference.graph import Connections, Graph

EVERYWHERE = pytest.mark.parametrize("implementation", ["reference", *ISAS])


@EVERYWHERE
@pytest.mark.parametrize("kind", NETWORKS)
def test_outputs_are_those_of_the_network(kind: str, implementation: str) -> None:
    model, made = deployed_of(kind)
    deployed = copy.deepcopy(made)  # without plans, which are for one implementation
    with using(implementation):
        for batch in (1, 2, 5, 17):
            some = torch.rand(batch, 3, 12, 12)
            torch.testing.assert_close(deployed(some), wanted_of(model, some), rtol=1e-5, atol=1e-5)
    assert made.difference is not None
    assert made.difference <= 1e-5
    assert made.reason is None


def test_zeros_are_found() -> None:
    for kind in ("masked", "compressed", "mixed", "densified", "pruned"):
        model, deployed = deployed_of(kind)
        graph = deployed.graph
        assert graph is not None
        dense = dict(regrow.densify(copy.deepcopy(model)).named_parameters())
        for name, weight in graph.weights.items():
            zeros = float((dense[name] == 0).float().mean())
            assert isinstance(weight, Connections) == (zeros >= 0.5), (kind, name)
            if isinstance(weight, Connections):
                left = len(weight.values) - int(dense[name].count_nonzero())
                assert left <= 0 if graph.cut else left == 0, name


def test_the_model_is_left_as_it_is() -> None:
    model = sparse("compressed")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regrow.RigL(model, optimizer, total_steps=10, update_every=2)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    deployed = regrow.deploy(model, x)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert torch.equal(random, torch.get_rng_state())
    assert not any(module.training for module in model.modules())
    found = deployed(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(deployed(x), found)
    model.train()
    model(x).sum().backward()
    optimizer.step()


def test_arguments_and_outputs_of_any_structure() -> None:
    model = pruned_by_half(Several()).eval()
    a, b, c = torch.rand(3, 6), torch.rand(3, 4), torch.rand(3, 4)
    deployed = regrow.deploy(model, {"first": a, "second": b, "scale": c, "twice": True})
    for size in (1, 3, 8):
        a, b, c = torch.rand(size, 6), torch.rand(size, 4), torch.rand(size, 4)
        found = deployed(twice=True, scale=c, second=b, first=a)
        wanted = model(first=a, second=b, scale=c, twice=True)
        assert found.keys() == wanted.keys()
        assert isinstance(found["all"], list)
        assert isinstance(found["all"][1], tuple)
        assert found["all"][1][1] is None
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@EVERYWHERE
@pytest.mark.parametrize(("precision", "most"), [("bfloat16", 0.02), ("int8", 0.02)])
def test_precisions(precision: str, most: float, implementation: str) -> None:
    model = sparse()
    with using(implementation):
        calibration = [torch.rand(4, 3, 12, 12) for _ in range(2)] if precision == "int8" else None
        deployed = regrow.deploy(model, x, precision=precision, calibration=calibration)
        wanted = wanted_of(model, x)
        assert 0 < float((deployed(x) - wanted).abs().max() / wanted.abs().max()) < most
    graph, exact = deployed.graph, regrow.deploy(model, x).graph
    assert graph is not None
    assert exact is not None
    assert graph.precision == precision
    for name, weight in graph.weights.items():
        full = exact.weights[name]
        if not isinstance(weight, Connections):
            assert weight.dtype == torch.float32
            continue
        assert isinstance(full, Connections)
        assert weight.values.dtype == getattr(torch, precision)
        if precision == "bfloat16":
            assert torch.equal(weight.values, full.values.bfloat16())
            continue
        assert weight.scale is not None
        for row in range(weight.shape[0]):
            here = slice(int(weight.crow[row]), int(weight.crow[row + 1]))
            if here.start == here.stop:
                continue
            largest = full.values[here].abs().max()
            torch.testing.assert_close(weight.scale[row], largest / 127)
            assert int(weight.values[here].abs().max()) == 127
            assert (
                float((weight.floats()[here] - full.values[here]).abs().max())
                <= float(weight.scale[row]) / 1.99
            )


def test_it_is_a_module_for_inference_alone() -> None:
    deployed = regrow.deploy(sparse(), x)
    assert list(deployed.parameters()) == []
    assert list(deployed.buffers()) == []
    assert not deployed.training
    assert deployed.train() is deployed
    assert not nn.Sequential(deployed).train()[0].training
    some = x.clone().requires_grad_()
    wanted = deployed(x)
    assert not deployed(some).requires_grad
    with torch.no_grad():
        assert torch.equal(deployed(some), wanted)
    with torch.inference_mode():
        assert torch.equal(deployed(some), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(deployed(x), wanted)
    assert torch.equal(deployed(x.to(memory_format=torch.channels_last)), wanted)
    assert torch.equal(deployed(x.flip(3).flip(3)), wanted)
    assert re.fullmatch(
        r"Deployed\(float32, [\d,]+ connections in 3 layers, 400 dense weights in 1 layer, takes \(N, 3, 12, 12\)\)",
        repr(regrow.deploy(mixed_dense_last(), x)),
    )


def mixed_dense_last() -> nn.Module:
    return regrow.sparsify(network(), sparsity=0.8, exclude=["9"]).eval()


@pytest.mark.parametrize(
    "move",
    [lambda d: d.half(), lambda d: d.to("meta"), lambda d: d.double(), lambda d: nn.Sequential(d).bfloat16()],
)
def test_it_cannot_be_moved_or_converted(move: Callable[[nn.Module], Any]) -> None:
    deployed = usual()
    with pytest.raises(
        RegrowRuntimeError,
        match=r"cannot be moved or converted to .*: it runs on the CPU, .*\nDeploy again with",
    ):
        move(deployed)
    assert deployed.to("cpu") is deployed
    assert deployed.float() is deployed


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_copies(precision: str, tmp_path: Path) -> None:
    deployed = regrow.deploy(
        sparse(), x, precision=precision, calibration=[x] if precision == "int8" else None
    )
    wanted, stream = deployed(x), io.BytesIO()
    torch.save(deployed, stream)
    stream.seek(0)
    copies = [
        copy.deepcopy(deployed),
        pickle.loads(pickle.dumps(deployed)),
        torch.load(stream, weights_only=False),
        regrow.Deployed.load(deployed.save(tmp_path / "deployed")),
    ]
    for each in copies:
        assert torch.equal(each(x), wanted)
        assert repr(each) == repr(deployed)
    assert deployed.size() == (tmp_path / "deployed").stat().st_size


def test_plans_are_bounded() -> None:
    deployed = copy.deepcopy(usual())
    engine: Any = deployed._engine
    with using(ISAS[0] if ISAS else "reference"):
        for batch in (*range(1, 20), 2, 30):
            deployed(torch.rand(batch, 3, 12, 12))
        assert len(engine._plans) == (8 if ISAS else 0)
        batches = {shapes[0][0] for shapes in engine._plans}
        assert not ISAS or {2, 30, 19} <= batches


def test_one_plan_is_made_for_threads_that_begin_together() -> None:
    deployed = copy.deepcopy(usual())
    some = torch.rand(6, 3, 12, 12)
    wanted, found, begin = wanted_of(sparse(), some), [], threading.Barrier(8)

    def call() -> None:
        begin.wait()
        found.append(deployed(some))

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    for each in found:
        assert torch.equal(each, found[0])
        torch.testing.assert_close(each, wanted, rtol=1e-5, atol=1e-5)


def own_memory() -> int:
    """Bytes of this process that are no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


@pytest.mark.skipif(not ISAS, reason="there are no kernels")
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system tells no memory")
def test_eight_threads_call_one_network_ten_thousand_times() -> None:
    deployed = copy.deepcopy(usual())
    batches = [torch.rand(size, 3, 12, 12) for size in (1, 2, 5)]
    wanted = [deployed(batch) for batch in batches]

    def call(times: int) -> bool:
        return all(torch.equal(deployed(batches[i % 3]), wanted[i % 3]) for i in range(times))

    with ThreadPoolExecutor(max_workers=8) as pool:
        assert all(pool.map(call, [250] * 8))
        before = own_memory()
        assert all(pool.map(call, [1000] * 8))
        assert own_memory() - before < 2**22


# What cannot be traced


class ByValue(nn.Module):
    """Decides by the values of its input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(12, 12), nn.BatchNorm1d(12))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers(x)
        return found if float(found.detach().sum()) > 0 else -found


def test_what_cannot_be_traced_runs_as_it_did(tmp_path: Path) -> None:
    model = regrow.sparsify(ByValue(), sparsity=0.8).eval()
    some = torch.rand(3, 12)
    with pytest.warns(
        RuntimeWarning, match="`model` runs at dense cost, in float32, and cannot be saved: ByValue"
    ):
        deployed = regrow.deploy(model, some)
    assert "ByValue cannot be traced" in str(deployed.reason)
    assert "at dense cost: ByValue cannot" in repr(deployed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in (1, 3, 40):
            some = torch.randn(batch, 12).requires_grad_()
            found = deployed(some)
            assert not found.requires_grad
            torch.testing.assert_close(found, model(some), rtol=1e-5, atol=1e-5)
    assert list(deployed.parameters()) == []
    assert torch.equal(copy.deepcopy(deployed)(some), found)
    for ask in (lambda: deployed.save(tmp_path / "deployed"), deployed.size):
        with pytest.raises(
            RegrowRuntimeError, match=r"cannot be saved, since it could not be traced: .*\nChange its"
        ):
            ask()
    assert not list(tmp_path.iterdir())


# Bad input


@EVERYWHERE
def test_outputs_that_differ_are_refused_with_the_first_layer(
    implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    simplify = deploying.simplify

    def wrong(graph: Graph) -> Graph:
        found = simplify(graph)
        name = "7.weight"
        weight = found.weights[name]
        assert isinstance(weight, Connections)
        values = weight.values.clone()
        values[3] += 0.1
        return replace(found, weights={**found.weights, name: replace(weight, values=values)})

    monkeypatch.setattr(deploying, "simplify", wrong)
    with (
        using(implementation),
        pytest.raises(RegrowRuntimeError, match=r"differs from `model` by .*, first in `7`, which"),
    ):
        regrow.deploy(sparse(), x)


SAVER = """
import sys, torch, regrow
from torch import nn

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(20, 30), nn.Linear(30, 5)
    def forward(self, x, *, more):
        return {"found": self.two(torch.relu(self.one(x))) + more}

torch.manual_seed(0)
model = regrow.sparsify(Own(), sparsity=0.8).eval()
x, more = torch.rand(3, 20), torch.rand(3, 5)
regrow.deploy(model, {"x": x, "more": more}).save(sys.argv[1] + "/deployed")
with torch.no_grad():
    torch.save({"x": x, "more": more, "found": model(x, more=more)["found"]}, sys.argv[1] + "/wanted.pt")
"""
LOADER = """
import sys, torch, regrow
wanted = torch.load(sys.argv[1] + "/wanted.pt")
deployed = regrow.Deployed.load(sys.argv[1] + "/deployed")
found = deployed(x=wanted["x"], more=wanted["more"])["found"]
torch.testing.assert_close(found, wanted["found"], rtol=1e-5, atol=1e-5)
assert "__main__" in sys.modules and not hasattr(sys.modules["__main__"], "Own")
"""


def test_a_file_loads_in_a_process_without_the_class(tmp_path: Path) -> None:
    for program in (SAVER, LOADER):
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)], env=ENVIRONMENT, check=True, timeout=120
        )


def test_a_file_of_training_is_not_a_deployed_one(tmp_path: Path) -> None:
    deployed = usual()
    with pytest.raises(RegrowError):
        regrow.load(deployed.save(tmp_path / "deployed"), into=network())
    with pytest.raises(
        RegrowValueError, match="does not hold a deployed network\nLoad a file of regrow.save with"
    ):
        regrow.Deployed.load(regrow.save(sparse(), tmp_path / "model"))


def test_a_deep_network_may_be_as_inexact_as_float32_is() -> None:
    class Amplified(nn.Module):
        """Multiplies the rounding of its first layer by far more than the output is large."""

        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = nn.Linear(512, 64), nn.BatchNorm1d(64)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.layer(x))
            return torch.sin(3e3 * x)

    torch.manual_seed(0)
    model, some = Amplified().eval(), torch.randn(4, 512)
    with torch.no_grad():
        model.norm.running_mean.normal_()  # type: ignore[union-attr]
        exact, own = copy.deepcopy(model).double()(some.double()), model(some)
        found = regrow.deploy(model, some)(some)
    rounding = (own - exact).abs().max()
    assert rounding > 1e-4  # else this shows nothing
    assert (found - exact).abs().max() < 12 * rounding
