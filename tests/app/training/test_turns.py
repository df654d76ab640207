"""Penalty phases, and a core in turn with its network, as runs: killed, resumed, and what they cost."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from run_folders import OWN, assert_same_run
from tiny import ENVIRONMENT, cli, write_recipe

IMPORTS = ["--import", OWN, "--import", Path(OWN).parent / "own_turns.py"]
RST = ["method={name: killed-rst, update_every: 20, cycles: 2, penalty_every: 1, victims: magnitude}"]
CORE = ["method={name: killed-core, moments: apart}", "model=own_parts:network"]


@pytest.mark.parametrize("keys", [RST, [*CORE, "optimizer={name: AdamW, lr: 1e-3}"]], ids=["rst", "core"])
def test_killed_in_the_middle_and_resumed_bit_for_bit(tmp_path, capsys, keys):
    recipe, whole, broken = write_recipe(tmp_path), tmp_path / "whole", tmp_path / "broken"
    keys = [*IMPORTS, *keys, "checkpoint_every=11"]
    assert cli(capsys, "train", recipe, f"out={whole}", *keys).code == 0
    command = [sys.executable, "-m", "regrow", "train", str(recipe), f"out={broken}", *map(str, keys)]
    once = {"SIGNAL_AT": "36", "SIGNALLED": str(tmp_path / "happened")}
    killed = subprocess.run(command, env={**ENVIRONMENT, **once}, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert cli(capsys, "train", "--resume", broken).code == 0
    assert_same_run(whole, broken)


def test_rst_is_dense_until_it_extrudes(tmp_path, capsys):
    run = tmp_path / "run"
    keys = [
        "method={name: rst, update_every: 20}",
        "schedule={name: step, milestones: [0, 20], factor: [0.1, 1]}",
    ]
    assert cli(capsys, "train", write_recipe(tmp_path), f"out={run}", *keys).code == 0
    flops = json.loads((run / "summary.json").read_text())["flops"]
    assert flops["most"] == flops["dense"]
    assert flops["training"] == pytest.approx(flops["dense"] + 2 * flops["test"])
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (update,) = [record for record in records if record["kind"] == "update"]
    assert update["step"] == 19
    assert 0 < update["layers"]["layers.0.weight"]["residue"] < 1


@pytest.mark.parametrize("split", ["true", "false"])
def test_a_core_costs_half_a_network_and_half_its_own(tmp_path, capsys, split):
    run = tmp_path / "run"
    keys = ["method=partially-masked", f"method.split={split}"]
    assert cli(capsys, "train", write_recipe(tmp_path), f"out={run}", *keys).code == 0
    flops = json.loads((run / "summary.json").read_text())["flops"]
    assert flops["most"] == flops["dense"]
    assert flops["test"] == flops["least" if split == "true" else "most"]
    assert flops["training"] == pytest.approx(1.5 * (flops["dense"] + flops["least"]))


def test_a_core_of_low_rank_beside_its_network(tmp_path, capsys):
    alone, inside = tmp_path / "alone", tmp_path / "inside"
    recipe, low = write_recipe(tmp_path), ["model.rank=4", "sparsify.sparsity=0.0"]
    assert cli(capsys, "train", recipe, f"out={alone}", *low, "method=dense", "model.rest=false").code == 0
    assert cli(capsys, "train", recipe, f"out={inside}", *low, "method=partially-masked").code == 0
    one, other = (json.loads((run / "summary.json").read_text())["flops"] for run in (alone, inside))
    assert one["connections"] == other["connections"] == 4 * (64 + 32) + 4 * (32 + 16) + 16 * 4
