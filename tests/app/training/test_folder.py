"""Run folders: where they may begin, what their logs must hold, and disks that refuse."""

import json
import os
import resource
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from run_folders import OWN, assert_same_run, signalled
from tiny import ENVIRONMENT, cli, write_recipe
from torch import nn

import regrow
from regrow.app.training import RunFolder


@pytest.fixture
def recipe(tmp_path):
    return write_recipe(tmp_path)


@contextmanager
def no_file_longer_than(size: int):
    """What the system refuses is what a full or read-only disk refuses."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def flip(content: bytes) -> bytes:
    """Another digit in a number, so that each line is still a record."""
    at = content.index(b'"loss": ') + len(b'"loss": 0.')
    return content[:at] + (b"1" if content[at : at + 1] != b"1" else b"2") + content[at + 1 :]


DAMAGES = {
    "gone": (lambda content: None, "cannot be read: No such file or directory"),
    "cut": (lambda content: content[:-30], "bytes, and had "),
    "a line less": (lambda content: content.partition(b"\n")[2], "bytes, and had "),
    "another number": (flip, "is not what it was at the last checkpoint: it was changed or damaged"),
    "a line twice": (lambda c: c.splitlines(True)[0] + c, "is not what it was at the last checkpoint"),
    "nothing legible": (lambda content: b"\xff" * len(content), "is not what it was at the last checkpoint"),
}


def test_a_log_that_is_not_the_checkpoints_is_refused_before_training(recipe, tmp_path, monkeypatch, capsys):
    run, whole = tmp_path / "run", tmp_path / "whole"
    keys = ["--import", OWN, "method.name=signalled"]
    signalled(monkeypatch, tmp_path, 25, "SIGINT")
    assert cli(capsys, "train", recipe, f"out={run}", *keys).code == 130
    assert cli(capsys, "train", recipe, f"out={whole}", *keys).code == 0
    log, before = run / "metrics.jsonl", (run / "metrics.jsonl").read_bytes()
    for damage, said in DAMAGES.values():
        content = damage(before)
        if content is None:
            log.unlink()
        else:
            log.write_bytes(content)
        others = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p != log}
        ended = cli(capsys, "train", "--resume", run)
        assert ended.code == 2
        assert f"error: {log} " in ended.err
        assert said in ended.err
        assert f"train from the beginning after `rm {run / 'checkpoint.pt'}`" in ended.err
        assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p != log} == others
        assert (log.read_bytes() if log.exists() else None) == content
    log.write_bytes(
        before + b'{"kind": "train", "step": 27, "lo'
    )  # written after the checkpoint, by a killed one
    assert cli(capsys, "train", "--resume", run).code == 0
    assert_same_run(whole, run)


def test_the_remedy_trains_from_the_beginning(recipe, tmp_path, monkeypatch, capsys):
    run, whole = tmp_path / "run", tmp_path / "whole"
    keys = ["--import", OWN, "method.name=signalled"]
    signalled(monkeypatch, tmp_path, 25, "SIGINT")
    assert cli(capsys, "train", recipe, f"out={run}", *keys).code == 130
    (run / "maps.jsonl").unlink()
    assert cli(capsys, "train", "--resume", run).code == 2
    (run / "checkpoint.pt").unlink()
    assert cli(capsys, "train", "--resume", run).code == 0
    assert cli(capsys, "train", recipe, f"out={whole}", *keys).code == 0
    assert_same_run(whole, run)


def test_a_checkpoint_that_knows_only_the_lengths_of_its_logs_is_read(recipe, tmp_path, monkeypatch, capsys):
    run, whole = tmp_path / "run", tmp_path / "whole"
    keys = ["--import", OWN, "method.name=signalled"]
    signalled(monkeypatch, tmp_path, 25, "SIGINT")
    assert cli(capsys, "train", recipe, f"out={run}", *keys).code == 130
    state = torch.load(run / "checkpoint.pt")
    state["logs"] = {name: size for name, (size, _) in state["logs"].items()}
    torch.save(state, run / "checkpoint.pt")
    signalled(monkeypatch, tmp_path / "run", 35, "SIGINT")  # and a checkpoint that it writes knows them whole
    assert cli(capsys, "train", "--resume", run).code == 130
    assert cli(capsys, "train", "--resume", run).code == 0
    assert cli(capsys, "train", recipe, f"out={whole}", *keys).code == 0
    assert_same_run(whole, run)


def test_out_that_cannot_be_is_refused_before_anything_is_done(recipe, tmp_path, capsys):
    file, dangling, used = tmp_path / "file", tmp_path / "dangling", tmp_path / "used"
    file.write_text("mine")
    dangling.symlink_to(tmp_path / "nowhere")
    used.mkdir()
    (used / "metrics.jsonl").touch()
    for out, said in (
        (file, f"`out` {file} must be a folder, and {file} is none\nName another folder."),
        (file / "inner", f"`out` {file / 'inner'} must be a folder, and {file} is none"),
        (dangling, f"`out` {dangling} must be a folder, and {dangling} is none"),
        (used, f"`out` {used} holds metrics.jsonl of another run\nName another folder, or delete that one."),
    ):
        before = sorted(tmp_path.rglob("*"))
        # the data, which would be read next, is not there
        ended = cli(capsys, "train", recipe, f"out={out}", "data.folder=/nowhere")
        assert ended.code == 2
        assert said in ended.err
        assert sorted(tmp_path.rglob("*")) == before
    assert file.read_text() == "mine"
    ended = cli(capsys, "compare", recipe, "--out", file)
    assert f"error: `--out` {file} must be a folder, and {file} is none\nName another folder." in ended.err


def test_the_environment_is_written_before_the_recipe(tmp_path):
    """So that whatever holds a run says where it came from."""
    out = str(tmp_path / "run")
    with no_file_longer_than(1000), pytest.raises(regrow.RegrowError, match=r"config.yaml: File too large"):
        RunFolder.create("x" * 2000, out, "", {"command": "regrow train"})
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["environment.json"]
    with RunFolder.create("x", out, "", {"command": "regrow train"}) as folder:
        assert folder.read("environment.json") == {"command": "regrow train"}


def test_a_picture_that_cannot_be_written(recipe, tmp_path, monkeypatch, capsys):
    """The run is finished: a note, exit code 0, and `compare` counts it."""
    run = tmp_path / "runs" / "rigl-seed0"
    (run / "curves.png").mkdir(parents=True)
    ended = cli(capsys, "train", recipe, f"out={run}", "seed=0")
    assert ended.code == 0
    assert "no picture of the curves: Is a directory" in ended.out
    assert "first-layer.gif" in ended.out
    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
    also = tmp_path / "runs" / "static-seed0"
    (also / "curves.png").mkdir(parents=True)
    arguments = ["--methods", "static", "--seeds", "1", "--out", tmp_path / "runs", "--json"]
    compared = cli(capsys, "compare", recipe, *arguments)
    assert compared.code == 0
    assert [row["n"] for row in json.loads(compared.out)["rows"]] == [1]
    assert "no picture of the curves" in (tmp_path / "runs" / "static-seed0.log").read_text()


def test_pictures_that_a_killed_process_has_left_half_drawn(recipe, tmp_path, capsys):
    run = tmp_path / "run"
    assert cli(capsys, "train", recipe, f"out={run}").code == 0
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    half = run / f".curves.png.{gone.stdout.strip()}.part"
    half.write_bytes(b"half")
    assert cli(capsys, "train", "--resume", run).code == 0
    assert not half.exists()


def test_a_finished_run_on_a_disk_that_refuses(recipe, tmp_path, capsys):
    run = tmp_path / "run"
    assert cli(capsys, "train", recipe, f"out={run}").code == 0
    before = {path: path.read_bytes() for path in run.iterdir()}
    with no_file_longer_than(0):
        again = cli(capsys, "train", "--resume", run, "--json")
    assert again.code == 0
    assert json.loads(again.out)["pictures"] == []
    for what in ("curves", "maps"):
        assert f"no picture of the {what}: File too large" in again.err
    assert {path: path.read_bytes() for path in run.iterdir()} == before
    (run / "metrics.jsonl").write_text("{")
    damaged = cli(capsys, "train", "--resume", run)
    assert damaged.code == 0
    assert "no picture of the curves: Expecting property name" in damaged.out
    with pytest.raises(
        regrow.RegrowError, match=r"metrics.jsonl: it is damaged\nCopy the whole run folder again"
    ):
        RunFolder.open(run).records("metrics.jsonl")


def test_what_cannot_be_removed_does_not_hide_why_it_was_not_written(tmp_path):
    file = tmp_path / "file"
    file.touch()
    model = regrow.sparsify(nn.Linear(8, 8), sparsity=0.5)
    with pytest.raises(regrow.RegrowError, match=r"model.safetensors` could not be written: .*Not a dir"):
        regrow.save(model, file / "model.safetensors")
    assert os.listdir(tmp_path) == ["file"]
    folder = RunFolder(tmp_path)
    with pytest.raises(ZeroDivisionError), folder:
        folder.append("metrics.jsonl", {})
        os.close(folder._logs["metrics.jsonl"].fileno())  # so that closing the log fails
        raise ZeroDivisionError
