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
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from machine import ISAS, using
from tiny import ENVIRONMENT
from torch import Tensor, nn

import regrow
from regrow.errors import RegrowError, RegrowRuntimeError, RegrowValueError
from regrow.inference import deploying
from regrow.inference.graph import Connections, Graph

EVERYWHERE = pytest.mark.parametrize("implementation", ["reference", *ISAS])


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2, padding=1),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(96, 40),
        nn.GELU(),
        nn.Linear(40, 10),
    )
    norm: Any = model[1]
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    return model


def sparse(storage: str = "auto") -> nn.Module:
    return regrow.sparsify(network(), sparsity=0.8, storage=storage).eval()


def pruned() -> nn.Module:
    """Somebody's dense network whose weights are mostly zero."""
    model = network().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter *= parameter.abs() > parameter.abs().quantile(0.9)
    return model


def mixed() -> nn.Module:
    model = regrow.sparsify(network(), sparsity=0.8, include=["3"], storage="masked")
    return regrow.sparsify(model, sparsity=0.8, include=["7"], storage="compressed").eval()


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "masked": lambda: sparse("masked"),
    "compressed": lambda: sparse("compressed"),
    "fused": lambda: regrow.fuse(sparse("compressed")),
    "mixed": mixed,
    "densified": lambda: regrow.densify(sparse()),
    "pruned": pruned,
    "dense": lambda: network().eval(),
    "folded": lambda: regrow.fold(sparse()),
    "compact": lambda: regrow.compact(sparse()),
    "wrapped": lambda: nn.DataParallel(sparse()),
    "double": lambda: sparse("masked").double(),
}
x = torch.rand(2, 3, 12, 12)


@cache
def deployed_of(kind: str) -> tuple[nn.Module, regrow.Deployed]:
    """A network and what it is deployed as; tests change neither."""
    model = NETWORKS[kind]()
    return model, regrow.deploy(model, x)


@cache
def usual() -> regrow.Deployed:
    """A deployed network that tests call, and do not change."""
    return regrow.deploy(sparse(), x)


def wanted_of(model: nn.Module, batch: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = copy.deepcopy(model).float()(batch)
    return found


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


class Several(nn.Module):
    """Takes and returns several tensors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 4)

    def forward(self, first: Tensor, second: Tensor, *, scale: Tensor, twice: bool = False) -> dict[str, Any]:
        found = self.layer(first) + second
        return {"sum": found * scale, "all": [found, (first, None)], "twice": 2 * found if twice else found}


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


def pruned_by_half(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= parameter > 0
    return model


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


def in_training() -> nn.Module:
    return regrow.sparsify(network(), sparsity=0.8)


def partly_in_training() -> nn.Module:
    model = sparse()
    model.get_submodule("1").train()
    return model


def elsewhere() -> nn.Module:
    return network().eval().to("meta")


def not_finite() -> nn.Module:
    model = pruned()
    with torch.no_grad():
        model.get_parameter("3.weight")[0, 0, 0, 0] = float("inf")
    return model


INT8 = {"precision": "int8"}
BAD: dict[str, tuple[Callable[[], Any], Any, dict[str, Any], str]] = {
    "no-model": (lambda: 3, x, {}, r"`model` must be a torch.nn.Module, got 3"),
    "training": (
        in_training,
        x,
        {},
        r"`model` must be in evaluation mode, got training mode\nCall model.eval\(\)",
    ),
    "training-part": (
        partly_in_training,
        x,
        {},
        r"in evaluation mode, got training mode \(`1`\)\nCall model.eval",
    ),
    "device": (
        elsewhere,
        x,
        {},
        r"`model` must be on the CPU, .* got `0.weight` on meta\nCall model.to\(\"cpu\"\)",
    ),
    "deployed": (
        usual,
        x,
        {},
        r"`model` is a deployed network, which runs and has no parameters\nGive the network",
    ),
    "example-type": (sparse, "x", {}, r"`example` must be a batch: a tensor, or a list or dictionary"),
    "example-empty": (
        sparse,
        x[:0],
        {},
        r"`example` must hold at least one example in its first dimension, got",
    ),
    "example-shape": (
        sparse,
        torch.rand(2, 4, 12, 12),
        {},
        r"`example` does not go through `model`: a tensor of .*4",
    ),
    "example-dtype": (sparse, x.long(), {}, r"`example` does not go through `model`: a tensor of int64"),
    "example-more": (
        sparse,
        (x, x),
        {},
        r"`example` does not go through `model`: .*takes 2 positional arguments",
    ),
    "example-name": (
        sparse,
        {"images": x},
        {},
        r"`example` does not go through `model`: .*unexpected keyword",
    ),
    "precision": (
        sparse,
        x,
        {"precision": "int4"},
        r"`precision` must be one of float32, bfloat16, int8, got 'int4'",
    ),
    "no-calibration": (
        sparse,
        x,
        INT8,
        r"`calibration` must be a list of batches .* got None\nGive some typical",
    ),
    "calibration-one": (
        sparse,
        x,
        {**INT8, "calibration": x},
        r"`calibration` must be a list of batches .*a tensor",
    ),
    "calibration-none": (
        sparse,
        x,
        {**INT8, "calibration": []},
        r"`calibration` must hold at least one batch",
    ),
    "calibration-float": (
        sparse,
        x,
        {"calibration": [x]},
        r"`calibration` is for `precision` int8, got it with float",
    ),
    "calibration-targets": (
        sparse,
        x,
        {**INT8, "calibration": [(x, torch.zeros(2))]},
        r"`calibration\[0\]`: .* called as in its example, with \(tensor\), got .*\nA batch of training data is",
    ),
    "calibration-shape": (
        sparse,
        x,
        {**INT8, "calibration": [x, x[:, :, 1:]]},
        r"`calibration\[1\]` must be float32 of shape \(N, 3, 12, 12\) on the CPU, got a tensor of float32 of",
    ),
    "calibration-nan": (
        sparse,
        x,
        {**INT8, "calibration": [x * float("nan")]},
        r"`calibration` leads to activations that are not finite, at `.*`\nGive batches of your data",
    ),
    "int8-infinite": (
        not_finite,
        x,
        {**INT8, "calibration": [x]},
        r"`precision` int8 needs finite weights, and those of `3.weight` are not",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_has_its_answer(case: str) -> None:
    make, example, options, pattern = BAD[case]
    with pytest.raises(RegrowValueError, match=re.compile(pattern, re.DOTALL)):
        regrow.deploy(make(), example, **options)


@pytest.mark.parametrize(
    "function",
    [
        regrow.summary,
        regrow.masks,
        regrow.is_sparse,
        regrow.densify,
        regrow.compact,
        regrow.fold,
        regrow.fuse,
        lambda model: regrow.sparsify(model, sparsity=0.5),
        lambda model: regrow.save(model, "model.safetensors"),
        lambda model: regrow.costs(model, x),
    ],
)
def test_what_looks_for_parameters_refuses_a_deployed_network(function: Callable[[Any], object]) -> None:
    with pytest.raises(RegrowValueError, match="`model` is a deployed network, .*\nGive the network that"):
        function(usual())


def test_deployed_networks_can_be_members_of_an_ensemble() -> None:
    deployed = usual()
    together = regrow.Ensemble([deployed, deployed])
    assert torch.allclose(together(x).softmax(-1), deployed(x).softmax(-1), atol=1e-6)


CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "none": ((), {}, r"called as in its example, with \(tensor\), got \(\)"),
    "two": ((x, x), {}, r"with \(tensor\), got \(tensor, tensor\)"),
    "name": ((), {"input": x}, r"with \(tensor\), got \(input=tensor\)"),
    "type": (([1.0],), {}, r"with \(tensor\), got \(\[1.0\]\)"),
    "array": ((x.numpy(),), {}, r"called with tensors, got ndarray"),
    "dtype": (
        (x.double(),),
        {},
        r"`args\[0\]` must be float32 of shape .*float64 of .*\nConvert it: .to\(torch.float32",
    ),
    "dims": (
        (x[0],),
        {},
        r"`args\[0\]` must be float32 of shape \(N, 3, 12, 12\) on the CPU.*\nFor another shape",
    ),
    "size": (
        (x[:, :, :, 1:],),
        {},
        r"of shape \(N, 3, 12, 12\) .* got .*\(2, 3, 12, 11\)\nFor another shape, deploy",
    ),
    "empty": ((x[:0],), {}, r"`args\[0\]` must hold at least one example, got shape \(0, 3, 12, 12\)"),
    "device": ((x.to("meta"),), {}, r"got .* on meta\nA deployed network runs on the CPU: move it there"),
    "sparse": ((x.to_sparse(),), {}, r"must be float32 of shape"),
}


@pytest.mark.parametrize("case", CALLS)
def test_bad_calls_have_their_answer(case: str) -> None:
    args, kwargs, pattern = CALLS[case]
    deployed = usual()
    with pytest.raises(RegrowValueError, match=re.compile(pattern, re.DOTALL)):
        deployed(*args, **kwargs)


def test_batches_of_several_inputs_must_agree() -> None:
    model = pruned_by_half(Several()).eval()
    given = {"first": torch.rand(3, 6), "second": torch.rand(3, 4), "scale": torch.rand(3, 4)}
    deployed = regrow.deploy(model, given)
    with pytest.raises(
        RegrowValueError, match="`first`, `second`, `scale` must have equally many examples, got 3, 1, 3"
    ):
        deployed(**{**given, "second": torch.rand(1, 4)})


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
