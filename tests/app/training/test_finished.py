"""Finished runs read back, and what the examples make of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import ENVIRONMENT, cli, write_recipe

import regrow
from regrow.app.cli.main import main
from regrow.app.training.finished import Finished
from regrow.data import prepared
from regrow.tickets import accuracy, probabilities

EXAMPLES = Path(__file__).parents[3] / "examples" / "studies"
KINDS = {
    "plain": [],
    "dense": ["method=dense"],
    "whole": ["method=static", "sparsify.sparsity=0"],
    "sup": ["tickets={name: sup, share: 0.5, cycle_steps: 10}"],
    "edst": ["tickets={name: edst, start: 0.5, tickets: 2}", "validation=0.1", "evaluate_every=5"],
    "dst": ["tickets={name: dst, tickets: 2}"],
    "lottery": ["tickets={name: lottery, tickets: 1}", "method=static", "steps=20"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run of each kind, by name."""
    root = tmp_path_factory.mktemp("finished")
    recipe, made = write_recipe(root), {}
    for kind, keys in KINDS.items():
        made[kind] = root / kind
        with pytest.raises(SystemExit) as ended:
            main(["train", str(recipe), f"out={made[kind]}", *keys])
        assert not ended.value.code
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_that_was_tested(runs, kind):
    run = Finished(runs[kind])
    before = torch.get_rng_state()
    network = run.network()
    assert torch.equal(torch.get_rng_state(), before)
    inputs, targets = prepared(run.data, run.data.test_inputs), run.data.test_targets
    predicted, _ = probabilities(network, [(inputs, targets)])
    assert accuracy(predicted, targets) == pytest.approx(run.summary["accuracy"])
    made = {"plain": 0, "dense": 0, "whole": 0, "sup": 4, "edst": 2, "dst": 2, "lottery": 1}[kind]
    assert len(run.tickets()) == made
    assert isinstance(network, regrow.Ensemble) == (kind in ("edst", "dst"))


def test_runs_that_cannot_be_read_back(runs, tmp_path, capsys):
    with pytest.raises(regrow.RegrowError, match="holds no run"):
        Finished(tmp_path)
    (tmp_path / "config.yaml").write_text((runs["plain"] / "config.yaml").read_text())
    with pytest.raises(regrow.RegrowError, match="is not finished"):
        Finished(tmp_path)
    small = tmp_path / "small"
    assert cli(capsys, "train", write_recipe(tmp_path / "of"), f"out={small}", "method=small-dense").code == 0
    with pytest.raises(regrow.RegrowError, match="small-dense"):
        Finished(small)


def example(name: str, *arguments: object) -> str:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    return subprocess.run(
        command, check=True, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    ).stdout


def test_basins(runs, tmp_path):
    said = example("basins.py", runs["sup"], runs["edst"], "--points", 3, "--out", tmp_path)
    assert said.count("within run A") == 3
    assert said.count("between runs") == 1
    found = json.loads((tmp_path / "basins.json").read_text())
    assert [row[place] for place, row in enumerate(found["overlap"])] == pytest.approx([1.0] * 6)
    assert all((tmp_path / f"basins.{ending}").stat().st_size for ending in ("png", "pdf"))


def test_robustness(runs, tmp_path):
    said = example(
        "robustness.py", f"one={runs['plain']}", f"two={runs['dst']}", "--examples", 20, "--out", tmp_path
    )
    found = json.loads((tmp_path / "robustness.json").read_text())
    assert found.keys() == {"one", "two"}
    assert [len(found["one"][severity]) for severity in "012345"] == [1, 14, 14, 14, 14, 14]
    assert "frost" in said
    assert all((tmp_path / f"robustness.{ending}").stat().st_size for ending in ("png", "pdf"))
