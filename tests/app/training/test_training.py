import json
import random
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch
from run_folders import OWN, assert_same_run, records, signalled
from tiny import ENVIRONMENT, cli, write_recipe

from regrow.ops import native
from regrow.ops.building import NoKernels


@pytest.fixture
def recipe(tmp_path):
    return write_recipe(tmp_path)


@pytest.mark.parametrize(
    "keys",
    [
        [],
        ["sparsify.storage=compressed"],
        ["model=own_parts:network", "optimizer={name: AdamW, lr: 1e-3}"],
        ["model=own_parts:network", "precision=bfloat16", "sparsify.rescale=true"],
    ],
    ids=["masked", "compressed", "batch norm, dropout, AdamW", "bfloat16"],
)
def test_interrupted_and_resumed_bit_for_bit(recipe, tmp_path, monkeypatch, capsys, keys):
    keys = ["--import", OWN, "method.name=signalled", *keys]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert cli(capsys, "train", recipe, f"out={whole}", *keys).code == 0
    signalled(monkeypatch, tmp_path, 25, "SIGINT")
    stopped = cli(capsys, "train", recipe, f"out={broken}", *keys)
    assert stopped.code == 130
    assert "stopped at step 26 of 60; its checkpoint is written" in stopped.err
    assert f"regrow train --resume {broken}" in stopped.err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert cli(capsys, "train", "--resume", broken).code == 0
    assert_same_run(whole, broken)


def test_killed_three_times_and_resumed_bit_for_bit(recipe, tmp_path, monkeypatch, capsys):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    keys = ["--import", OWN, "method.name=signalled", "steps=3000", "log_every=10"]
    assert cli(capsys, "train", recipe, f"out={whole}", *keys).code == 0
    regrow = [sys.executable, "-m", "regrow", "train"]
    once = {"SIGNAL_AT": "125", "SIGNAL": "SIGKILL", "SIGNALLED": str(tmp_path / "happened")}
    inside = [*regrow, str(recipe), f"out={broken}", *map(str, keys)]
    first = subprocess.run(inside, env={**ENVIRONMENT, **once}, capture_output=True, text=True, check=False)
    assert first.returncode == -signal.SIGKILL, first.stderr
    instants = [random.SystemRandom().uniform(0, 0.7) for _ in range(2)]
    for instant in instants:
        before = (broken / "metrics.jsonl").stat().st_mtime_ns
        process = subprocess.Popen(
            [*regrow, "--resume", str(broken)],
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while (broken / "metrics.jsonl").stat().st_mtime_ns == before and process.poll() is None:
            time.sleep(0.005)  # until it trains
        time.sleep(instant)
        process.kill()
        assert process.wait() == -signal.SIGKILL, f"finished before {instant} s"
    assert not (broken / "summary.json").exists()
    assert cli(capsys, "train", "--resume", broken).code == 0
    assert_same_run(whole, broken)


def test_killed_before_the_first_checkpoint(recipe, tmp_path, monkeypatch, capsys):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert cli(capsys, "train", recipe, f"out={whole}").code == 0
    broken.mkdir()
    (broken / "config.yaml").write_bytes((whole / "config.yaml").read_bytes())
    (broken / "metrics.jsonl").write_text('{"kind": "train", "step": 7, "lo')  # cut in the middle of a record
    assert cli(capsys, "train", "--resume", broken).code == 0
    assert_same_run(whole, broken)


def test_full_disk_while_a_checkpoint_is_written(recipe, tmp_path, monkeypatch, capsys):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    keys = ["--import", OWN, "method.name=signalled"]
    assert cli(capsys, "train", recipe, f"out={whole}", *keys).code == 0
    signalled(monkeypatch, tmp_path, 25, "SIGINT")
    assert cli(capsys, "train", recipe, f"out={broken}", *keys).code == 130
    before = (broken / "checkpoint.pt").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))  # the system refuses longer files
    try:
        full = cli(capsys, "train", "--resume", broken)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert full.code == 2
    assert (
        f"error: cannot write {broken}/checkpoint.pt: File too large\nThe last checkpoint is whole."
        in full.err
    )
    assert (
        f"Free some space or make the folder writable, then continue with `regrow train --resume {broken}`"
        in full.err
    )
    assert (broken / "checkpoint.pt").read_bytes() == before
    assert not list(broken.glob("*.part"))
    assert not list(broken.glob(".*.part"))
    assert cli(capsys, "train", "--resume", broken).code == 0
    assert_same_run(whole, broken)


def test_full_disk_from_the_beginning(recipe, tmp_path, capsys):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        full = cli(capsys, "train", recipe, f"out={tmp_path / 'run'}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert full.code == 2
    assert "cannot write" in full.err
    assert "then start again" in full.err


def test_loss_that_is_not_finite(recipe, tmp_path, capsys):
    run = tmp_path / "run"
    grows = "schedule={name: step, milestones: [15], factor: 1e30}"
    ended = cli(capsys, "train", recipe, f"out={run}", "method.stop_fraction=0", grows)
    assert ended.code == 2
    assert "error: the loss is nan at step 1" in ended.err or "error: the loss is inf at step 1" in ended.err
    assert f"the training has diverged; the checkpoint before it is whole, in {run}" in ended.err
    assert (
        "Train again with a lower `optimizer.lr` (now 0.05) or a longer `schedule.warmup_steps`." in ended.err
    )
    assert torch.load(run / "checkpoint.pt")["status"]["step"] == 10
    assert all(record["loss"] < 10 for record in records(run, "metrics.jsonl") if record["kind"] == "train")


def test_weights_that_are_not_finite_are_never_kept(recipe, tmp_path, capsys):
    grows = [
        "schedule={name: step, milestones: [19], factor: 3e47}",
        "optimizer.lr=1e-9",
        "model=own_parts:steep",
    ]
    keys = ["--import", OWN, "method.stop_fraction=0", *grows]
    ended = cli(capsys, "train", recipe, f"out={tmp_path / 'run'}", *keys)
    assert ended.code == 2
    assert "holds values that are not finite after step 20: the training has diverged" in ended.err
    assert torch.load(tmp_path / "run" / "checkpoint.pt")["status"]["step"] == 10


def test_what_a_run_leaves(recipe, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    ended = cli(capsys, "train", recipe, f"out={run}", "seed=5")
    assert (ended.code, ended.err) == (0, "")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["accuracy"] > 0.6  # 0.25 is chance
    assert summary["time_is"] == "masks"
    # 2,560 weights less floor(0.8 * 2,560), spread by ERK
    assert abs(summary["connections"] - 526) <= 2
    text = (run / "summary.txt").read_text()
    assert "of masks over dense weights: no faster than dense training, whatever the sparsity" in text
    environment = json.loads((run / "environment.json").read_text())
    assert environment["command"] == f"regrow train {recipe} out={run} seed=5"
    kinds = {
        kind: [r["step"] for r in records(run, "metrics.jsonl") if r["kind"] == kind]
        for kind in ("train", "test")
    }
    assert kinds == {"train": [*range(7, 60, 7), 60], "test": [20, 40, 60]}
    updates = [r for r in records(run, "metrics.jsonl") if r["kind"] == "update"]
    assert [r["step"] for r in updates] == list(range(5, 45, 5))
    assert summary["moved"] == sum(r["grown"] for r in updates) > 0
    maps = records(run, "maps.jsonl")
    assert [r["step"] for r in maps] == [0, *range(5, 45, 5)]
    assert len({sum(r["counts"]) for r in maps}) == 1
    # what is printed before step 1, and how it ends
    assert (
        ended.out.index("hidden: [32, 16]")
        < ended.out.index("layers.0.weight")
        < ended.out.index("step 20/60")
    )
    assert str(run / "first-layer.gif") in ended.out


def test_dense_and_compressed_say_what_their_time_is(recipe, tmp_path, capsys):
    for key, kind in (("method=dense", "dense"), ("sparsify.storage=compressed", "real sparsity")):
        run = tmp_path / kind
        assert cli(capsys, "train", recipe, f"out={run}", key).code == 0
        summary = json.loads((run / "summary.json").read_text())
        assert summary["time_is"] == kind
        assert (summary["sparsity"] == 0) == (kind == "dense")
        assert (run / "model.safetensors").is_file()


def test_without_kernels_the_time_is_said_to_be_the_references(recipe, tmp_path, monkeypatch, capsys):
    why = NoKernels("there is no C++ compiler", "Install one.")
    monkeypatch.setattr(native, "_provided", lambda: why)
    assert cli(capsys, "train", recipe, f"out={tmp_path / 'run'}", "sparsify.storage=compressed").code == 0
    text = (tmp_path / "run" / "summary.txt").read_text()
    assert "the reference runs, several times slower than the kernels: there is no C++ compiler\n" in text
    assert "             Install one.\n" in text


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (["batch_size=500"], r"`batch_size` must be at most the 200 training examples, got 500"),
        (["device=cuda:99"], r"`device` 'cuda:99' is not here"),
        (["model.inputs=65"], r"`model` mlp does not take examples of shape [1, 8, 8] from `data` idx"),
        (
            ["model.classes=3"],
            r"`model` mlp must return logits [N, 4] for the 4 classes of `data` idx, got [2, 3]",
        ),
        (["sparsify={}"], r"`sparsify` is missing: method rigl needs a sparse model"),
        (["sparsify.sparsity=1"], r"`sparsity` must be in [0, 1), got 1"),
        (["sparsify.sparsity=-0.1"], r"`sparsity` must be in [0, 1), got -0.1"),
        (["optimizer.lr=-1"], r"`optimizer` SGD with {'lr': -1, 'momentum': 0.9}: Invalid learning rate: -1"),
        (["method.drop_fraction=2"], r"`drop_fraction`"),
        (["optimizer=Muon"], r"Muon"),
        (["data.folder=/nowhere"], r"`data.folder` is not a folder: /nowhere"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(recipe, tmp_path, capsys, keys, text):
    ended = cli(capsys, "train", recipe, f"out={tmp_path / 'run'}", *keys)
    assert ended.code == 2
    assert text in ended.err
    assert "Traceback" not in ended.err
    assert not (tmp_path / "run").exists()


def test_a_user_s_own_network_data_and_method(recipe, tmp_path, capsys):
    own = [
        "model={name: mlp, inputs: 2, hidden: [16], classes: 4}",
        "data={name: 'own_parts:points', count: 100}",
        "method=signalled",
    ]
    ended = cli(capsys, "train", recipe, f"out={tmp_path / 'run'}", "--import", OWN, *own, "steps=200")
    assert ended.code == 0, ended.err
    assert "no map of the input pixels" in ended.out
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["accuracy"] > 0.8


def test_compiled(recipe, tmp_path, capsys):
    ended = cli(capsys, "train", recipe, f"out={tmp_path / 'run'}", "compile=true", "steps=12")
    assert ended.code == 0, ended.err
