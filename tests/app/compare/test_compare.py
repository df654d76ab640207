"""Comparisons that really train: processes of a few seconds each."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from tiny import ENVIRONMENT, cli, write_recipe

from regrow.app.compare import plan
from regrow.app.compare.progress import shower

OWN = Path(__file__).parent / "own_network.py"

OWN_RECIPE = """
model: {name: own_network:network}
data: {name: own_network:quadrants}
sparsify: {sparsity: 0.7}
method: {name: rigl, update_every: 4}
optimizer: {name: SGD, lr: 0.2, momentum: 0.9}
batch_size: 20
steps: 40
evaluate_every: 20
threads: 1
"""


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A comparison of a user's own network, data and method, by import path: (folder, JSON document, what it said)."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_network.py").write_text(OWN.read_text())
    (folder / "own.yaml").write_text(OWN_RECIPE)
    return folder, *compare(folder)


COMMAND = [
    "compare",
    "own.yaml",
    "--methods",
    "dense,own_network:Largest",
    "--seeds",
    "1",
    "--out",
    "runs",
]


def compare(folder, *further):
    command = [sys.executable, "-m", "regrow", *COMMAND, "--multiplier", "1,2", "--json", *further]
    ended = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout), ended.stderr


def test_one_line_a_run_and_a_table(compared):
    folder, result, said = compared
    note, *lines = said.splitlines()
    assert note == "note: own.yaml runs code: model own_network:network, data own_network:quadrants"
    assert lines[0] == "4 runs in runs/; finished ones are not repeated"
    assert [line.split("]")[0] for line in lines[1:5]] == [f"[{i}/4" for i in range(1, 5)]
    assert "\x1b" not in said
    assert [(row["method"], row["multiplier"]) for row in result["rows"]] == [
        (method, m) for method in ("dense", "own_network:Largest") for m in (1, 2)
    ]
    for row in result["rows"]:
        summary = json.loads(
            (
                folder
                / f"runs/{row['method'].replace(':', '-')}{'-2x' * (row['multiplier'] == 2)}-seed0/summary.json"
            ).read_text()
        )
        assert row["accuracies"] == [100 * summary["accuracy"]]
        assert (row["n"], row["deviation"], row["seconds"]) == (1, None, summary["seconds"])
        assert row["memory"] > 50
        assert row["needs_dense"] == (row["method"] == "dense")
    assert result["failures"] == []
    heads = [line for line in lines if line.startswith("method")]
    for word in (
        "length",
        "n",
        "accuracy %",
        "deviation",
        "connections",
        "training FLOPs",
        "test FLOPs",
        "peak MB",
    ):
        assert word in heads[0]
    assert "* time of masks over dense weights: no faster than dense training" in said


def test_flops_are_those_of_the_runs(compared):
    folder, result, _ = compared
    rows = {(row["method"], row["multiplier"]): row for row in result["rows"]}
    assert rows["dense", 1]["training"] == 1
    assert rows["dense", 2]["training"] == 2
    assert rows["dense", 1]["test"] == 1
    sparse = rows["own_network:Largest", 1]
    summary = json.loads((folder / "runs/own_network-Largest-seed0/summary.json").read_text())
    assert sparse["connections"] == summary["connections"] == pytest.approx(0.3 * 144, abs=2)
    assert rows["dense", 1]["connections"] == 144
    # updates at 4, 8, ..., 28 of 40 steps: one costs a dense gradient of the weights, f_D, instead of f_S
    assert sparse["training"] == pytest.approx(
        (3 * 40 * sparse["test"] + 7 * (1 - sparse["test"])) / (3 * 40)
    )
    longer = rows["own_network:Largest", 2]  # at 4, ..., 56 of 80
    assert longer["training"] == pytest.approx(
        (3 * 80 * sparse["test"] + 14 * (1 - sparse["test"])) / (3 * 40)
    )


def test_files(compared):
    folder, result, said = compared
    stem = "own-dense+own_network_Largest-1seed-1x+2x"
    endings = ["txt", "csv", "md", "tex", "runs.json"]
    plots = [f"{stem}-{plot}.{ending}" for plot in ("flops", "time", "length") for ending in ("png", "pdf")]
    assert result["files"] == [f"runs/{name}" for name in [*(f"{stem}.{e}" for e in endings), *plots]]
    texts = {ending: (folder / "runs" / f"{stem}.{ending}").read_text() for ending in endings}
    assert texts["txt"] in said
    rows = list(csv.DictReader(texts["csv"].splitlines()))
    assert [row["method"] for row in rows] == [row["method"] for row in result["rows"]]
    assert [float(row["mean"]) for row in rows] == [row["mean"] for row in result["rows"]]
    assert [float(row["training"]) for row in rows] == [row["training"] for row in result["rows"]]
    assert texts["md"].splitlines()[1] == "| " + " | ".join(["---"] * 13) + " |"
    assert texts["md"].count("**") == 4  # the best of each length
    assert r"own\_network:Largest & 1x & 1 & " in texts["tex"]
    assert texts["tex"].count(r"\\") == 5
    assert len(json.loads(texts["runs.json"])) == 4
    for plot in plots:
        content = (folder / "runs" / plot).read_bytes()
        assert content[:4] == (b"\x89PNG" if plot.endswith("png") else b"%PDF")


def test_again_repeats_nothing_and_grows(compared):
    folder, result, _ = compared
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("summary.json")}
    again, said = compare(folder, "dense.threads=1")
    assert said.count("was finished before") == 4
    assert again["rows"] == result["rows"]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("summary.json")} == written


def test_on_a_terminal_each_run_has_a_bar(compared, monkeypatch):
    folder, *_ = compared
    monkeypatch.chdir(folder)
    grid = plan("own.yaml", ["dense"], multipliers=[1, 2], folder=Path("runs"))
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with shower(console, grid.runs) as show:
        show.running(grid.runs)
        assert [task.description for task in show.bars.tasks] == ["dense seed 0", "dense 2x seed 0"]
        assert [task.percentage for task in show.bars.tasks] == [100, 100]
        show.running(grid.runs[1:])
        show.ended(grid.runs[0], "3 s")
        assert [task.description for task in show.bars.tasks] == ["dense 2x seed 0"]
    assert "[1/2] dense seed 0: " in console.file.getvalue()


def test_a_run_that_diverges_does_not_stop_the_others(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
    recipe = write_recipe(tmp_path)
    arguments = [
        "--methods",
        "static",
        "--seeds",
        "1",
        "optimizer.lr=0.05,1e30",
        "steps=10",
        "--out",
        tmp_path / "r",
    ]
    ended = cli(capsys, "compare", recipe, *arguments)
    assert ended.code == 1
    assert "static optimizer.lr=1e30 seed 0: failed: the loss is nan at step" in ended.out
    assert "failed: static optimizer.lr=1e30 seed 0: the loss is nan at step" in ended.out
    assert f"All it printed is in {tmp_path / 'r'}" in ended.out
    rows = [
        line for line in ended.out.splitlines() if line.startswith("static ") and line.rstrip().endswith("no")
    ]
    assert [row.split()[1] for row in rows] == ["0.05"]


def test_no_run_came_to_its_end(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
    arguments = ["--methods", "static", "--seeds", "1", "data.folder=/nowhere", "--out", tmp_path / "r"]
    ended = cli(capsys, "compare", write_recipe(tmp_path), *arguments)
    assert ended.code == 2
    assert ended.err.startswith("error: no run came to its end; the first, static seed 0, said:\n")
    assert "/nowhere" in ended.err


def test_stopped_and_continued(tmp_path):
    recipe = write_recipe(tmp_path)
    command = [sys.executable, "-m", "regrow", "compare", str(recipe), "--methods", "set", "--seeds", "1"]
    command += [
        "--out",
        str(tmp_path / "runs"),
        "steps=2000",
        "evaluate_every=2000",
        "checkpoint_every=100",
        "--import",
        str(OWN),
    ]
    process = subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    run = tmp_path / "runs" / "set-seed0"
    deadline = time.monotonic() + 60
    while not (run / "checkpoint.pt").is_file():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped; the same command continues where it was" in said
    assert not (run / "summary.json").exists()
    assert "its checkpoint is written" in (tmp_path / "runs" / "set-seed0.log").read_text()
    ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    steps = [
        json.loads(line)["step"]
        for line in (run / "metrics.jsonl").read_text().splitlines()
        if '"train"' in line
    ]
    assert steps == sorted(set(steps))
    assert json.loads((run / "summary.json").read_text())["steps"] == 2000


def test_tickets_in_the_table(tmp_path, capsys, monkeypatch):
    """Superposed, an ensemble of one run and one of two: what they came to and what a test of each costs."""
    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
    recipe, out = write_recipe(tmp_path), tmp_path / "runs"
    keys = [
        "validation=0.1",
        "test_on=test",
        "tickets.tickets=2",
        "tickets.share=0.5",
        "tickets.cycle_steps=10",
    ]
    arguments = ["--methods", "rigl,sup-rigl,edst,dst", "--seeds", "1", "--out", out, "--json", *keys]
    ended = cli(capsys, "compare", recipe, *arguments)
    assert ended.code == 0, ended.err
    rows = {row["method"]: row for row in json.loads(ended.out)["rows"]}
    summaries = {name: json.loads((out / f"{name}-seed0/summary.json").read_text()) for name in rows}
    assert {one["tested_on"] for one in summaries.values()} == {"test"}
    for name, row in rows.items():
        assert (row["nll"], row["ece"]) == (summaries[name]["nll"], summaries[name]["ece"])
    assert [rows[name]["networks"] for name in rows] == [1, 1, 2, 2]
    assert [rows[name]["length"] for name in rows] == [1, 1, 1, 2]
    for name in ("edst", "dst"):
        assert rows[name]["connections"] == 2 * rows["rigl"]["connections"]
        assert rows[name]["test"] == pytest.approx(2 * rows["rigl"]["test"])
    assert rows["sup-rigl"]["connections"] == rows["rigl"]["connections"]
    assert rows["dst"]["training"] == pytest.approx(2 * rows["rigl"]["training"])
    head = next(line for line in ended.err.splitlines() if line.startswith("method"))
    assert all(word in head for word in ("nll", "ece", "networks"))
    assert "networks: how many a test runs, an ensemble's members" in ended.err
