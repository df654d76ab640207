"""`regrow bench --what inference`: engines in processes of their own, on networks of a thousandth of a second."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import cli
from torch import nn

import regrow
from regrow import RegrowError
from regrow.app.bench.inference import installed, not_installed
from regrow.app.bench.inference.engines import ENGINES, LIMITS, REFERENCE, Engine, difference, engine
from regrow.app.bench.inference.handed import hand_over, reference
from regrow.app.bench.inference.networks import STANDARD, Network
from regrow.app.bench.inference.process import Process
from regrow.app.bench.inference.rows import Inference, Latency, LeftOut, Setting, best_dense
from regrow.app.bench.plan import plan
from regrow.measure.timing import Load

QUIET = Load(0.5, 2, 0.01)
SMALL = Network("small", "wrn", (3, 16, 16), {"depth": 10, "widen": 1})
TORCH = ENGINES[:2]
INSTALLED = [each for each in ENGINES if each.version is not None]


@pytest.fixture
def handed(tmp_path: Path) -> Callable[..., Path]:
    def hand(*engines: Engine, network: Network = SMALL) -> Path:
        assert hand_over(network, 0.9, (1, 3), engines, tmp_path) == {}
        return tmp_path

    return hand


@pytest.mark.parametrize("one", INSTALLED, ids=lambda one: one.name.replace(" ", "-"))
def test_each_engine_gives_the_outputs_of_torch(one: Engine, handed: Callable[..., Path]) -> None:
    folder = handed(one)
    process = Process(one, folder, 1)
    try:
        for batch in (1, 3):
            found = process.load(batch)
            assert found <= LIMITS[one.precision]
            assert (found > 0) or one is REFERENCE
            times = process.turn(0.01)
            assert 0 < min(times) < 1
        assert process.peak > 1e5  # what the weights take
        assert process.seconds > 0
    finally:
        process.close()


def test_the_same_weights_for_all_and_norms_that_have_seen_data() -> None:
    model = SMALL.sparse(0.9)
    assert not model.training
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.running_mean.abs().max() > 1e-3 and norm.momentum == 0.1 for norm in norms)
    assert all(int(norm.num_batches_tracked) == 2 for norm in norms)
    again = SMALL.sparse(0.9)
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    )
    sparse = regrow.summary(model)
    assert sparse.sparsity == pytest.approx(0.9, abs=0.01)


def test_a_wrong_engine_is_found_and_compared_with_none(handed: Callable[..., Path], tmp_path: Path) -> None:
    folder = handed(*TORCH)
    weights = torch.load(folder / "weights.pt")
    torch.save(
        {name: value + 0.01 if value.dtype.is_floating_point else value for name, value in weights.items()},
        folder / "weights.pt",
    )
    process = Process(REFERENCE, folder, 1)
    try:
        found = process.load(1)
    finally:
        process.close()
    assert found > LIMITS["float32"]
    row = inference("torch eager", 0.001, difference=found)
    assert not row.is_right
    assert row.faster is None
    assert row.cells()["difference"].endswith(" WRONG")
    assert row.cells()["faster"] == "-"


def inference(name: str, p50: float, difference: float = 0.0, rival: float | None = 0.004) -> Inference:
    setting = Setting("net, uniform", 0.9, 4, 1, QUIET)
    one = engine(name)
    return Inference(
        setting, name, "1.0", one.precision, Latency(p50, 2 * p50, 9), 2_000_000, 3_000_000, difference, rival
    )


def test_the_rival_is_the_best_right_dense_engine_of_the_class() -> None:
    rows = [
        inference("torch eager", 0.006),
        inference("torch channels last", 0.001, difference=0.01),
        inference("openvino float32", 0.004),
        inference("openvino int8", 0.002, difference=0.2),
        inference("regrow float32", 0.0005),
        inference("regrow int8", 0.0001),
    ]
    assert best_dense(rows, "float32") == best_dense(rows, "bfloat16") == 0.004
    assert best_dense(rows, "int8") == 0.002
    assert best_dense(rows[4:], "int8") is None
    row = replace(rows[4], rival=0.004)
    assert row.faster == 8
    assert row.cells() == {
        "": "regrow float32 (1.0)",
        "p50 ms": "0.500",
        "p99 ms": "1.00",
        "faster": "8.00x",
        "img/s": "8,000",
        "file MB": "2.00",
        "peak MB": "3",
        "difference": "0",
    }
    assert row.title == "inference of net, uniform, 90% zeros, batch 4, 1 thread, others 1%"
    found = row.to_dict()
    assert (found["network"], found["latency"]["p99"], found["images_per_second"]) == (
        "net, uniform",
        0.001,
        8000,
    )
    assert json.dumps(found)


def test_percentiles() -> None:
    assert Latency.of([3.0]) == Latency(3.0, 3.0, 1)
    assert Latency.of([float(n) for n in range(200, 0, -1)]) == Latency(100.0, 198.0, 200)
    assert Latency.of([1.0, 9.0, 2.0]) == Latency(2.0, 9.0, 3)


def test_the_difference_is_a_share_of_the_largest_output() -> None:
    reference = np.array([[1.0, -4.0]])
    assert difference(np.array([[1.5, -4.0]]), reference) == 0.125
    assert difference(np.array([[np.nan, -4.0]]), reference) == float("inf")
    assert difference(np.zeros((2, 2)), reference) == float("inf")
    assert difference(np.array([[0.0]]), np.array([[0.0]])) == 0


USERS = """from torch import nn

def network():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 64), nn.ReLU(),
                         nn.Linear(64, 5))

class Asks(nn.Linear):
    def forward(self, x):
        return super().forward(x) if x.sum() > -1e9 else x

def asks():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), Asks(64, 64), nn.ReLU(), nn.Linear(64, 5))
"""
SHORT = ["--sparsity", "0.9", "--seconds", "0.02", "--threads", "1", "--no-compile"]


def test_a_network_of_the_users_own_on_all_engines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "served_network.py").write_text(USERS)
    options = ["--import", tmp_path / "served_network.py", "--model", "served_network:network"]
    ended = cli(capsys, "bench", "--what", "inference", *options, "--input", "2,1,8,8", *SHORT, "--json")
    assert ended.code == 0
    rows = {row["engine"]: row for row in json.loads(ended.out)["rows"] if row["kind"] == "inference"}
    assert list(rows) == [one.name for one in INSTALLED if one.name != "torch compiled"]
    for name, row in rows.items():
        assert (row["network"], row["batch"], row["threads"]) == ("served_network:network, uniform", 2, 1)
        assert row["version"] == engine(name).version
        assert row["right"]
        assert row["images_per_second"] == pytest.approx(2 / row["latency"]["p50"])
        assert row["latency"]["runs"] >= 3
    best = min(
        rows[one.name]["latency"]["p50"]
        for one in INSTALLED
        if one.name in rows and one.is_dense and one.precision == "float32"
    )
    assert {rows[name]["rival"] for name in ("torch eager", "regrow float32", "regrow bfloat16")} == {best}
    assert rows["regrow float32"]["faster"] == pytest.approx(best / rows["regrow float32"]["latency"]["p50"])
    ended = cli(capsys, "bench", "--what", "inference", *options, "--input", "2,3,8,8", *SHORT)
    assert ended.code == 2
    assert "does not take an input of sizes 2,3,8,8: RuntimeError" in ended.err


def test_what_cannot_be_exported_is_left_out_and_the_rest_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "asking_network.py").write_text(USERS)
    options = [
        "--import",
        tmp_path / "asking_network.py",
        "--model",
        "asking_network:asks",
        "--input",
        "1,1,8,8",
    ]
    ended = cli(capsys, "bench", "--what", "inference", *options, *SHORT, "--batch", "3")
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert lines[0].startswith(
        "inference of asking_network:asks, uniform, 90% zeros, batch 3, 1 thread, others "
    )
    assert lines[2].startswith(f"torch eager ({torch.__version__})")
    left = ended.out.partition("\nleft out\n")[2]
    for name in ("onnxruntime float32", "onnxruntime int8"):
        assert (
            f"{name}, asking_network:asks, uniform: RegrowRuntimeError: `model` cannot be exported: " in left
        )
    assert "faster: than the best dense engine of the same class" in ended.out
    assert "utilisation" not in ended.out


def test_engines_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = replace(engine("openvino int8"), package="no-such-engine")
    monkeypatch.setattr("regrow.app.bench.inference.turns.ENGINES", (REFERENCE, absent))
    assert installed(True) == (REFERENCE,)
    assert not_installed() == [LeftOut("all", "openvino int8", "no-such-engine is not installed")]
    (first, *_) = plan(what="inference", quick=True).cases
    assert first.measure() == not_installed()


def test_the_standard_set() -> None:
    names = [case.name for case in plan(what="inference").cases if "not installed" not in case.name]
    networks = [
        "resnet50",
        "wrn-22-2",
        "mobilenet-v1",
        "mlp 784-4096-4096-10",
        "linear 4096x4096",
        "vit-tiny",
    ]
    hows = ["erk" if name == "mobilenet-v1" else "uniform" for name in networks]
    assert names == [
        f"inference of {name}, {how}, {share} zeros"
        for name, how in zip(networks, hows, strict=True)
        for share in ("80%", "90%", "95%")
    ]
    assert not any("inference" in case.name for case in plan(quick=True).cases)
    assert [
        case.name for case in plan(what="inference", quick=True, sparsity=["0.5"], distribution=["er"]).cases
    ][-2:] == [f"inference of {name}, er, 50% zeros" for name in ("wrn-22-2", "mlp 784-4096-4096-10")]


@pytest.mark.parametrize("network", STANDARD, ids=lambda network: network.name.split()[0])
def test_where_the_zeros_of_the_standard_networks_are(network: Network) -> None:
    model = network.sparse(0.9)
    sparse = regrow.masks(model)
    depthwise = {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.groups > 1}
    assert not depthwise & {name.rpartition(".")[0] for name in sparse}
    assert 1 - sum(int(m.sum()) for m in sparse.values()) / sum(
        m.numel() for m in sparse.values()
    ) == pytest.approx(0.9, abs=1e-3)
    with torch.no_grad():
        output = model(network.example(model, 2))
    assert 1e-3 < output.std() < 1e3


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--dtype", "bfloat16"], "`--dtype` has no part in what is measured: inference"),
        (["--storage", "masked"], "`--storage` has no part in what is measured: inference"),
        (["--linear", "8x8"], "`--linear` has no part in what is measured: inference"),
        (["--model", "tiny:cli"], "`--model` and `--input` belong together"),
        (["--model", "os:getpid", "--input", "1,3"], "no torch module"),
    ],
)
def test_bad_input(capsys: pytest.CaptureFixture[str], options: list[str], text: str) -> None:
    ended = cli(capsys, "bench", "--what", "inference", *options)
    assert ended.code == 2
    assert text in ended.err


def test_a_process_that_fails_or_ends_says_why(handed: Callable[..., Path]) -> None:
    folder = handed(REFERENCE)
    process = Process(REFERENCE, folder, 1)
    try:
        (folder / "weights.pt").write_bytes(b"nothing")
        with pytest.raises(RegrowError, match="UnpicklingError"):
            process.load(1)
        os.kill(process._child.pid, 9)
        with pytest.raises(RegrowError, match="its process ended with code -9"):
            process.load(1)
    finally:
        process.close()
    (folder / reference(1)).unlink()
    process = Process(replace(REFERENCE, name="nothing of that name"), folder, 1)
    try:
        with pytest.raises(RegrowError, match="its process ended with code 1: StopIteration"):
            process.load(1)
    finally:
        process.close()
