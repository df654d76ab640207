"""`regrow doctor` on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import torch
from tiny import ENVIRONMENT, cli

from regrow.app.cli import doctor
from regrow.measure.machine import busiest
from regrow.ops import native


def test_what_the_machine_has(capsys):
    ended = cli(capsys, "doctor")
    assert ended.code == 0
    names = [line.split(" ")[0] for line in ended.out.splitlines()]
    wanted = {"kernels", "dtypes", "threads", "versions", "processor", "caches", "memory", "load", "data"}
    assert wanted <= set(names)
    assert f"torch {torch.__version__}" in ended.out
    assert "float32 right" in ended.out


def test_as_json_with_the_instruction_set_forced():
    environment = {**ENVIRONMENT, "REGROW_ISA": "baseline"}
    command = [sys.executable, "-m", "regrow", "doctor", "--json"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(ended.stdout)
    assert found["kernels"] == ("baseline" if native.available() else None)
    assert found["forced_isa"] == "baseline"
    assert {c["dtype"]: c["right"] for c in found["checks"]} == dict.fromkeys(found["dtypes"], True)
    assert found["load"]["cores"] >= 1
    assert found["optional"]["rich"] is not None


def test_a_wrong_number_is_an_error(capsys, monkeypatch):
    monkeypatch.setitem(doctor.TOLERANCE, torch.float32, 0.0)  # no kernel is that exact
    ended = cli(capsys, "doctor")
    assert ended.code == 1
    assert "float32 WRONG (error " in ended.out


def test_who_is_busy():
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        time.sleep(0.2)
        found = {process.pid: process for process in busiest(1.0, count=100)}
        other.kill()
    assert found[other.pid].name.startswith("python")
    assert 0.05 <= found[other.pid].cores <= 1.1
