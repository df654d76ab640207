"""One process in a run folder, and how it is made to stop: real processes, killed for real."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from run_folders import OWN, assert_same_run, signalled
from tiny import ENVIRONMENT, cli, write_recipe

import regrow
from regrow.app.training import stop_signals
from regrow.app.training.lock import Lock

REGROW = [sys.executable, "-m", "regrow"]
LONG = ["steps=100000", "evaluate_every=100000", "checkpoint_every=100", "log_every=50"]
LIMIT = 60  # seconds


@pytest.fixture
def recipe(tmp_path):
    return write_recipe(tmp_path)


def begin(*arguments: object, env: dict[str, str] = ENVIRONMENT) -> subprocess.Popen:
    command = [*REGROW, *map(str, arguments)]
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def until(holds, what: str) -> None:
    deadline = time.monotonic() + LIMIT
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_a_second_process_is_refused_and_the_first_goes_on(recipe, tmp_path, capsys):
    run = tmp_path / "run"
    process = begin("train", recipe, f"out={run}", *LONG)
    until((run / "checkpoint.pt").is_file, "trains")
    refused = cli(capsys, "train", "--resume", run)
    assert refused.code == 2
    assert f"error: {run} is in use by process {process.pid} on " in refused.err
    assert f"train {recipe} out={run}" in refused.err
    assert "Wait until that has ended or stop it, then try again; or train in another folder." in refused.err
    process.send_signal(signal.SIGHUP)
    _, said = process.communicate(timeout=LIMIT)
    assert process.returncode == 130
    assert "its checkpoint is written" in said
    assert not (run / "lock").exists()
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def test_the_lock_goes_with_a_killed_process_and_so_does_what_it_left(recipe, tmp_path, capsys):
    run, whole = tmp_path / "run", tmp_path / "whole"
    keys = ["--import", OWN, "method.name=signalled"]
    killed = {**ENVIRONMENT, "SIGNAL_AT": "25", "SIGNAL": "SIGKILL", "SIGNALLED": str(tmp_path / "happened")}
    process = begin("train", recipe, f"out={run}", *keys, env=killed)
    process.communicate(timeout=LIMIT)
    assert process.returncode == -signal.SIGKILL
    assert json.loads((run / "lock").read_text())["pid"] == process.pid
    (run / "tickets").mkdir()
    left = [
        run / f".checkpoint.pt.{process.pid}.part",
        run / "tickets" / f".0.safetensors.{os.getpid()}.part",
    ]
    kept = run / ".mine.part"
    for file in (*left, kept):
        file.touch()
    assert cli(capsys, "train", "--resume", run).code == 0
    assert [file.exists() for file in (*left, kept, run / "lock")] == [False, False, True, False]
    assert cli(capsys, "train", recipe, f"out={whole}", *keys).code == 0
    assert_same_run(whole, run)


FORK = """
import os, sys, time
from pathlib import Path
from regrow.app.training.lock import Lock
lock = Lock(Path(sys.argv[1]))
if os.fork() == 0:
    print("forked", flush=True)
    time.sleep(60)
os.kill(os.getpid(), 9)
"""


def test_a_fork_does_not_keep_the_lock(tmp_path):
    command = [sys.executable, "-c", FORK, str(tmp_path)]
    process = subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout.readline() == "forked\n"
        process.wait(LIMIT)
        Lock(tmp_path).release()  # the child of the one that is dead still lives
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()


def test_a_lock_is_taken_once_and_again_after_it_is_given_back(tmp_path):
    first = Lock(tmp_path)
    with pytest.raises(regrow.RegrowError, match=rf"in use by process {os.getpid()} on .* since .*: "):
        Lock(tmp_path)
    first.release()
    first.release()
    Lock(tmp_path).release()
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def refuses(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuses)  # no such file system is at hand
    with pytest.warns(UserWarning, match=r"without locks \(No locks available\): see to it that no second"):
        Lock(tmp_path).release()


@pytest.mark.parametrize(
    ("twice", "said"),
    [
        ("SIGTERM", "stopped at step 26 of 60; its checkpoint is written\nContinue with"),
        ("SIGINT", "stopped at once, at step 25 of 60; kept is the checkpoint of step 20\nContinue with"),
    ],
)
def test_asked_twice(recipe, tmp_path, monkeypatch, capfd, twice, said):
    """SIGTERM twice is SIGTERM; the second Ctrl-C, in the middle of an update here, ends the step at once."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    keys = ["--import", OWN, "method.name=signalled"]
    assert cli(capfd, "train", recipe, f"out={whole}", *keys).code == 0
    signalled(monkeypatch, tmp_path, 25, twice)
    monkeypatch.setenv("SIGNALS", "2")
    stopped = cli(capfd, "train", recipe, f"out={broken}", *keys)
    assert stopped.code == 130
    assert f"{said} `regrow train --resume {broken}`" in stopped.err
    notice = "stopping after this step, with a checkpoint; Ctrl-C again stops at once, without"
    assert (notice in stopped.err) == (twice == "SIGINT")
    assert cli(capfd, "train", "--resume", broken).code == 0
    assert_same_run(whole, broken)


def test_stopped_at_once_before_the_first_checkpoint(recipe, tmp_path, monkeypatch, capfd):
    signalled(monkeypatch, tmp_path, 5, "SIGINT")
    monkeypatch.setenv("SIGNALS", "2")
    run = tmp_path / "run"
    stopped = cli(capfd, "train", recipe, f"out={run}", "--import", OWN, "method.name=signalled")
    assert "stopped at once, at step 5 of 60; no checkpoint was written yet\nBegin again with" in stopped.err
    assert cli(capfd, "train", "--resume", run).code == 0


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals("") as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.is_set()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_is_closed(recipe, tmp_path):
    """The bar has nowhere to go from then on, and SIGHUP comes: the checkpoint is written all the same."""
    run, (ours, theirs) = tmp_path / "run", os.openpty()
    process = subprocess.Popen(
        [*REGROW, "train", str(recipe), f"out={run}", *LONG],
        env={**ENVIRONMENT, "TERM": "xterm"},
        preexec_fn=lambda: os.login_tty(theirs),
        close_fds=False,
    )
    os.close(theirs)
    seen = b""
    while not (run / "checkpoint.pt").is_file():
        seen += os.read(ours, 100_000)
    os.close(ours)
    assert b"run folder: " in seen
    assert process.wait(LIMIT) == 130
    assert torch.load(run / "checkpoint.pt")["status"]["step"] % 100  # not a regular one
    assert not (run / "lock").exists()


@pytest.mark.parametrize("name", ["SIGKILL", "SIGHUP"])
def test_the_runs_of_a_comparison_end_with_it(recipe, tmp_path, name):
    out = tmp_path / "runs"
    process = begin("compare", recipe, "--methods", "set", "--seeds", "1", "--out", out, *LONG)
    run = out / "set-seed0"
    until((run / "checkpoint.pt").is_file, "trains")
    holder = json.loads((run / "lock").read_text())["pid"]
    process.send_signal(getattr(signal, name))
    process.communicate(timeout=LIMIT)
    until(lambda: not (run / "lock").exists(), "the run has ended")
    until(lambda: not Path(f"/proc/{holder}").exists(), "the process has ended")
    assert "its checkpoint is written" in (out / "set-seed0.log").read_text()


def test_torchrun_is_refused(recipe, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "regrow"]
    command = [sys.executable, *launcher, "train", str(recipe), f"out={tmp_path / 'run'}"]
    ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=180, check=False)
    assert ended.returncode != 0
    assert "error: `regrow train` trains in one process, and torchrun or another launcher has" in ended.stderr
    assert "has started 2 of it\nStart it without the launcher." in ended.stderr
    assert not (tmp_path / "run").exists()
