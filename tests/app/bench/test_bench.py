"""`regrow bench` on layers of a thousandth of a second."""

from __future__ import annotations

import json

import pytest
import torch
import torch._inductor.config
from tiny import cli
from torch import nn

from regrow import RegrowError
from regrow.app.bench import scale
from regrow.app.bench.bound import bound, layer_shares
from regrow.app.bench.command import bench, fits
from regrow.app.bench.dense import dense_ways
from regrow.app.bench.linear import Linear
from regrow.app.bench.networks import step
from regrow.app.bench.peak import run
from regrow.app.bench.plan import FULL, Plan, plan
from regrow.app.bench.rows import Case, Comparison, Settings
from regrow.measure.timing import Load, Timing

TINY = ["--linear", "96x64", "--batch", "4", "--sparsity", "0.9", "--seconds", "0.01", "--threads", "1"]
SETTINGS = Settings(seconds=0.01, compiled=False)


def test_layers_updates_and_memory_as_one_document(tmp_path, capsys):
    saved = tmp_path / "bench.json"
    what = ["--what", "layers,updates,memory", "--no-compile", "--out", saved]
    ended = cli(capsys, "bench", *TINY, *what, "--json")
    assert ended.code == 0
    found = json.loads(ended.out)
    assert json.loads(saved.read_text()) == found
    kinds = [row["kind"] for row in found["rows"]]
    assert kinds == ["comparison", "comparison", "update", "memory"]
    first = found["rows"][0]
    assert (first["subject"], first["batch"], first["sparsity"], first["what"]) == (
        *("linear 96x64", 4, 0.9),
        "forward",
    )
    assert first["flops"] == [2 * 96 * 64 * 4, 2 * 615 * 4]
    assert found["rows"][1]["flops"] == [3 * flops for flops in first["flops"]]
    ratio = first["dense"]["eager"]["median"] / first["sparse"]["median"]
    assert first["faster"] == pytest.approx(ratio)
    assert first["utilisation"] == pytest.approx(ratio * 615 / (96 * 64))
    assert all(0 <= row["load"]["others"] <= 1 for row in found["rows"] if "load" in row)
    memory = found["rows"][-1]
    assert (memory["run"]["connections"], memory["tenth"]["connections"]) == (615, 61)
    assert memory["run"]["steps"] > 0
    assert found["machine"]["threads"] == 1
    assert found["machine"]["command"].startswith("regrow bench --linear 96x64")
    assert "[1/3] linear 96x64, batch 4" in ended.err


def test_tables(capsys):
    ended = cli(capsys, "bench", *TINY, "--sparsity", "0.5", "--no-compile", "--dtype", "bfloat16")
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert lines[0].strip() == "sparse against dense"
    assert all(
        head in lines[1] for head in ("batch", "sparsity", "faster", "GFLOP/s", "utilisation", "others")
    )
    assert [line.split()[:4] for line in lines[2:6:2]] == [
        ["linear", "96x64", "4", "50%"],
        ["linear", "96x64", "4", "90%"],
    ]
    assert "bfloat16" in ended.err


def test_a_network_of_the_users_own(tmp_path, capsys):
    (tmp_path / "measured_network.py").write_text(
        "from torch import nn\n"
        "def network():\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 300), nn.ReLU(),\n"
        "                         nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 5))\n"
    )
    options = ["--import", tmp_path / "measured_network.py", "--model", "measured_network:network"]
    rest = ["--sparsity", "0.95", "--seconds", "0.05", "--no-compile", "--json"]
    ended = cli(capsys, "bench", *options, "--input", "16,1,8,8", *rest)
    assert ended.code == 0
    uniform, erk = json.loads(ended.out)["rows"]
    assert [row["subject"].rpartition(", ")[2] for row in (uniform, erk)] == ["uniform", "erk"]
    for row in (uniform, erk):
        assert (row["what"], row["batch"]) == ("step", 16)
        assert 0.04 < row["flops"][1] / row["flops"][0] < 0.12
        assert 1 < row["bound"] < 1e6
    ended = cli(capsys, "bench", *options, "--input", "16,3,8,8", *rest)
    assert ended.code == 2
    assert "does not take an input of sizes 16,3,8,8: RuntimeError" in ended.err
    assert "with the batch first" in ended.err


def test_a_convolution_against_both_layouts_of_the_dense_one(capsys):
    options = ["--conv", "20x16x6,8x16x7x1x2", "--batch", "3", "--sparsity", "0.75", "--seconds", "0.01"]
    ended = cli(capsys, "bench", *options, "--no-compile", "--json")
    assert ended.code == 0
    rows = json.loads(ended.out)["rows"]
    assert [row["subject"] for row in rows[::2]] == [
        "conv 3x3 20x16 at 6x6",
        "conv 1x1 8x16 at 7x7, stride 2",
    ]
    assert rows[0]["flops"] == [2 * 20 * 16 * 9 * 3 * 36, 2 * 20 * 16 * 9 / 4 * 3 * 36]
    assert rows[2]["flops"] == [2 * 8 * 16 * 3 * 16, 2 * 8 * 16 / 4 * 3 * 16]
    assert all(list(row["dense"]) == ["eager", "channels last"] for row in rows)
    assert rows[1]["flops"] == [3 * flops for flops in rows[0]["flops"]]


def test_compiled_is_a_way_of_its_own_and_may_fail(capsys):
    def make(module, form):
        return step(module, torch.ones(2, 3))

    assert list(dense_ways(make, nn.Linear(3, 3), SETTINGS)) == ["eager"]
    assert list(dense_ways(make, nn.Linear(3, 3), Settings())) == ["eager", "compiled"]
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}):
        assert list(dense_ways(make, nn.Sequential(nn.Linear(3, 7), nn.GELU()), Settings())) == ["eager"]
    assert "torch.compile is left out: " in capsys.readouterr().err


def test_the_bound_of_a_step():
    model = nn.Sequential(nn.Linear(200, 2000), nn.ReLU(), nn.Linear(2000, 200), nn.Linear(200, 2000))
    x = torch.randn(64, 200)
    shares = layer_shares(model, lambda: model(x), step(model, x), {"0", "2", "3", "gone"}, 0.02)
    assert set(shares) == {"0", "2", "3"}
    assert 0 < shares["0"] < shares["2"] * 3  # the first has no gradient of its input to compute
    assert 0.3 < sum(shares.values()) < 3
    assert bound({"a": 0.5, "b": 0.5}, {"a": 0.5}) == 1 / 0.75
    assert bound({"a": 0.8, "b": 0.8}, {"a": 0.5, "b": 0.0}) == 2.5  # never less than the layers themselves


def test_scale_in_processes_of_their_own():
    rows = [row for size in (20_000, 100_000) for row in scale.measure(size, 4, None, SETTINGS)]
    assert [(row.subject, row.run.connections) for row in rows] == [
        ("linear 200x200", 20_000),
        ("linear 1000x1000", 100_000),
    ]
    (found,) = fits(rows)
    assert found.sizes == (20_000, 100_000)
    assert rows[1].peak > rows[0].peak > 0


def test_what_does_not_fit_is_said():
    with pytest.raises(RegrowError, match=r"is left out: it needs some [\d.]+ GB, and [\d.]+ GB are free"):
        scale.measure(2 * 10**9, 4096, None, SETTINGS)
    with pytest.raises(RegrowError, match=r"linear 10x10 with 101 connections did not end: .*`count`"):
        run(Linear(10, 10), 101, 4, SETTINGS)


def test_what_is_done_stays_after_ctrl_c(tmp_path, capsys):
    row = Comparison(
        "done", 1, 0.5, "step", None, {"eager": Timing(2, 2, 2, 1)}, Timing(1, 1, 1, 1), Load(0, 1, 0)
    )

    def interrupt():
        raise KeyboardInterrupt

    cases = (Case("first", lambda: [row]), Case("second", interrupt), Case("third", lambda: [row]))
    saved = tmp_path / "bench.json"
    assert bench(Plan(SETTINGS, cases), ["bench"], out=saved) == 130
    assert "2.00x" in capsys.readouterr().out
    found = json.loads(saved.read_text())
    assert found["interrupted"]
    assert [kept["subject"] for kept in found["rows"]] == ["done"]


def test_the_standard_set_is_the_whole_one():
    names = [case.name for case in plan().cases]
    layers = [
        f"linear {size}, batch {batch}"
        for size in ("1024x1024", "4096x1024", "4096x4096")
        for batch in (1, 8, 32, 128, 512)
    ]
    steps = ["training steps of mlp 784-1024-1024-10", "training steps of mlp 784-4096-4096-10"]
    updates = [f"updates of linear {size}, batch 128" for size in ("1024x1024", "4096x4096")]
    convolutions = [
        *("conv 3x3 32x32 at 32x32, batch 128", "conv 3x3 64x64 at 16x16, batch 128"),
        *("conv 3x3 128x128 at 8x8, batch 128", "conv 3x3 64x64 at 56x56, batch 32"),
        *("conv 3x3 128x128 at 28x28, batch 64", "conv 3x3 256x256 at 14x14, batch 64"),
        *("conv 1x1 64x256 at 56x56, batch 32", "conv 1x1 256x1024 at 14x14, batch 128"),
    ]
    zoo = ("wrn-22-2", "vgg16", "resnet50")
    steps += [f"training steps of {name}, {how}" for name in zoo for how in ("uniform", "erk")]
    memory = "memory of linear 16384x16384, batch 128"
    assert names == [*layers, *convolutions, *steps, *updates, memory]
    assert FULL.sparsities == (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
    assert "300,000,000 connections" in [case.name for case in plan(what="scale").cases]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--linear", "12"], "`--linear` must be OUTPUTSxINPUTS such as 768x3072"),
        (["--linear", "12x0"], "got '12x0'"),
        (["--conv", "64x64"], "`--conv` must be OUTPUTSxINPUTSxSIDE"),
        (["--storage", "mask"], "`--storage` must be one of auto, masked, compressed, got 'mask'"),
        (["--distribution", "ERK"], "`--distribution` must be one of uniform, er, erk, got 'ERK'"),
        (["--linear", "8x8", "--distribution", "erk"], "`--distribution` has no part in what is measured"),
        (["--sparsity", "1.5"], "`--sparsity` must be in [0, 1), got 1.5"),
        (["--sparsity", "high"], "`--sparsity` must be numbers in [0, 1)"),
        (["--batch", "0"], "`--batch` must be whole numbers above 0"),
        (["--dtype", "float23"], "got 'float23', did you mean `float32`?"),
        (["--what", "layer"], "got 'layer', did you mean `layers`?"),
        (["--threads", "0"], "`--threads` must be a whole number of at least 1"),
        (["--seconds", "0"], "`--seconds` must be above 0"),
        (["--model", "tiny:cli"], "`--model` and `--input` belong together"),
        (["--model", "nowhere.at_all:net", "--input", "1,3"], "there is no module `nowhere`"),
        (["--model", "tiny:nothing", "--input", "1,3"], "module `tiny` has no `nothing`"),
        (["--model", "tiny:write_folder", "--input", "1,3"], "must build a network without arguments"),
        (["--model", "os:getpid", "--input", "1,3"], "no torch module"),
        (["--model", "os:getpid", "--input", "1,x"], "`--input` must be whole numbers"),
        (
            ["--model", "os:getpid", "--input", "1,3", "--batch", "4"],
            "its batch is the first size of --input",
        ),
        (["--linear", "8x8", "--out", "/nowhere/at/all.json"], "there is no folder /nowhere/at"),
    ],
)
def test_bad_input_is_named_before_any_work(capsys, options, text):
    ended = cli(capsys, "bench", *options)
    assert ended.code == 2
    assert ended.err.startswith("error: ")
    assert text in ended.err
    assert ended.out == ""
