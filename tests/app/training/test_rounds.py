"""A ticket loop of whole runs: what each begins with, what it costs, and the way back after a kill."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from run_folders import OWN, assert_same_run, records, signalled
from safetensors.torch import load_file
from tiny import ENVIRONMENT, cli, write_recipe

import regrow
from regrow.app.recipes import as_yaml, load, read
from regrow.app.training import Interrupted, RunFolder, build
from regrow.app.training import train as train_in
from regrow.sparsity.distributions import connections

# these runs are a few steps long, shorter than the intervals of their recipes
pytestmark = pytest.mark.filterwarnings("ignore:.*leaves no update within")
STATIC = ["method=static", "sparsify={sparsity: 0.75, distribution: global}"]


def lottery(*options: str) -> list[str]:
    return [*STATIC, f"tickets={{{', '.join(['name: lottery', *options])}}}"]


@pytest.fixture
def recipe(tmp_path):
    return write_recipe(tmp_path)


def train(recipe: Path, out: Path, *keys: str | Path) -> None:
    """What ``regrow train`` does, without pictures."""
    files = [str(word) for word in keys if word == OWN]
    changes = [str(word) for word in keys if word != OWN]
    setup = build(load(str(recipe), changes, files))
    with RunFolder.create(as_yaml(setup.recipe), str(out), "", {}) as folder:
        train_in(setup, folder, lambda status, tested=False: None)


def resume(out: Path) -> None:
    """What ``regrow train --resume`` does, without pictures."""
    with RunFolder.open(out) as folder:
        setup = build(read(out / "config.yaml"), folder.load_checkpoint())
        train_in(setup, folder, lambda status, tested=False: None)


def summary_of(run: Path) -> dict:
    summary = json.loads((run / "summary.json").read_text())
    return {key: value for key, value in summary.items() if key not in ("seconds", "peak_memory_megabytes")}


def network(recipe: Path, file: Path) -> torch.nn.Module:
    """The recipe's network with what is in `file`."""
    model = build(load(str(recipe), ["method=dense"])).model
    if "layers.0.weight" in (tensors := load_file(file)):
        model.load_state_dict(tensors)
        return model
    return regrow.load(file, into=model)


def assert_same_loop(whole: Path, broken: Path) -> None:
    members = sorted(path.name for path in (whole / "members").iterdir())
    assert members == sorted(path.name for path in (broken / "members").iterdir())
    for name in members:
        assert_same_run(whole / "members" / name, broken / "members" / name)
        one, other = (run / "members" / name / "start.safetensors" for run in (whole, broken))
        assert one.is_file() == other.is_file()
        assert not one.is_file() or one.read_bytes() == other.read_bytes()
    assert records(whole, "metrics.jsonl") == records(broken, "metrics.jsonl")
    assert summary_of(whole) == summary_of(broken)


def test_each_ticket_is_the_best_of_the_run_before_with_the_initial_weights(recipe, tmp_path, capsys):
    run = tmp_path / "run"
    ended = cli(capsys, "train", recipe, f"out={run}", *lottery("tickets: 2"), "steps=20")
    assert ended.code == 0, ended.err
    assert "tickets lottery: a dense run and then 2 runs of 20 steps" in ended.out
    assert "of the last of 2 tickets, each pruned out of the network before" in ended.out
    assert "step 60/60" in ended.out
    members = [run / "members" / str(index) for index in range(3)]
    initial = build(load(str(recipe), ["method=dense"])).model.state_dict()
    for index, sparsity in ((1, 0.5), (2, 0.75)):
        trained = network(recipe, members[index - 1] / "model.safetensors")
        begun = network(recipe, members[index] / "start.safetensors")
        kept = regrow.tickets.pruned(trained, sparsity)
        assert sum(map(len, kept.values())) == connections((64 * 32 + 32 * 16 + 16 * 4,), sparsity)
        masks = regrow.masks(begun)
        for name, positions in kept.items():
            assert masks[name].view(-1).nonzero().view(-1).tolist() == positions.tolist()
        for name, value in regrow.dense_state_dict(begun).items():
            assert torch.equal(value, initial[name] * masks[name] if name in masks else initial[name])
    parts, whole = [summary_of(member) for member in members], summary_of(run)
    assert (whole["steps"], whole["networks"], len(whole["tickets"]["each"])) == (60, 1, 2)
    assert whole["accuracy"] == parts[2]["accuracy"] == whole["tickets"]["each"][1]["accuracy"]
    dense = parts[0]["flops"]["dense"]
    assert parts[0]["flops"]["training"] == pytest.approx(3 * dense)
    assert whole["flops"]["training"] == pytest.approx(sum(part["flops"]["training"] for part in parts) / 3)
    assert whole["flops"]["test"] == parts[2]["flops"]["test"] < dense
    assert load_file(run / "model.safetensors").keys() == load_file(members[2] / "model.safetensors").keys()
    assert {path.name for path in run.glob("*.png")} >= {"tickets.png", "overlap.png"}


def test_a_ticket_is_rewound_to_a_step(recipe, tmp_path):
    run = tmp_path / "run"
    train(recipe, run, *lottery("tickets: 1", "rewind: 8"), "steps=20", "log_every=4")
    members = [run / "members" / str(index) for index in range(3)]
    assert [summary_of(member)["steps"] for member in members] == [8, 12, 12]
    then = network(recipe, members[0] / "model.safetensors").state_dict()
    begun = network(recipe, members[2] / "start.safetensors")
    masks = regrow.masks(begun)
    for name, value in regrow.dense_state_dict(begun).items():
        assert torch.equal(value, then[name] * masks[name] if name in masks else then[name])
    plain = tmp_path / "plain"
    train(recipe, plain, "method=dense", "steps=20", "log_every=4")
    whole = {
        record["step"]: record for record in records(plain, "metrics.jsonl") if record["kind"] == "train"
    }
    for member in members:  # each has the learning rates of the steps that it trains
        for record in records(member, "metrics.jsonl"):
            if record["kind"] == "train":
                assert record["rate"] == whole[record["step"]]["rate"]
    first = [record["loss"] for record in records(members[0], "metrics.jsonl") if record["kind"] == "train"]
    assert first == [whole[4]["loss"], whole[8]["loss"]]


@pytest.mark.parametrize("rewind", ["rate", "new"])
def test_a_ticket_begins_with_trained_or_new_weights(recipe, tmp_path, rewind):
    run = tmp_path / "run"
    train(recipe, run, *lottery(f"rewind: {rewind}"), "steps=10")
    begun = network(recipe, run / "members/1/start.safetensors")
    masks = regrow.masks(begun)
    trained = network(recipe, run / "members/0/model.safetensors").state_dict()
    initial = build(load(str(recipe), ["method=dense"])).model.state_dict()
    value, mask = regrow.dense_state_dict(begun)["layers.0.weight"], masks["layers.0.weight"]
    assert torch.equal(value, trained["layers.0.weight"] * mask) == (rewind == "rate")
    assert not torch.equal(value, initial["layers.0.weight"] * mask)


@pytest.mark.parametrize("score", ["normalised", "gradient", "snip", "grasp", "synflow"])
def test_every_score_of_a_recipe(recipe, tmp_path, score):
    run = tmp_path / "run"
    train(recipe, run, *lottery(f"score: {score}"), "steps=4")
    assert summary_of(run)["connections"] == connections((64 * 32 + 32 * 16 + 16 * 4,), 0.75)


def test_the_dense_run_ends_when_its_mask_has_settled(recipe, tmp_path):
    keys = [*lottery("early: 0.5", "masks: 2", "find_lr: 0.01"), "checkpoint_every=5"]
    run = tmp_path / "run"
    train(recipe, run, *keys)
    assert summary_of(run / "members/0")["steps"] == 20  # two masks, one after each epoch of ten steps
    assert summary_of(run)["steps"] == 80
    found = [r for r in records(run / "members/0", "metrics.jsonl") if r["kind"] == "mask"]
    assert [record["step"] for record in found] == [10, 20]
    assert [len(record["distances"]) for record in found] == [0, 1]
    rates = [
        max(r["rate"] for r in records(run / "members" / str(i), "metrics.jsonl") if r["kind"] == "train")
        for i in range(2)
    ]
    assert rates[0] <= 0.01 < rates[1]


def test_interrupted_in_the_middle_of_a_loop_and_resumed_bit_for_bit(recipe, tmp_path, monkeypatch):
    keys = [*lottery("tickets: 2", "rewind: 12"), OWN, "method={name: signalled, update_every: 5}"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(recipe, whole, *keys, "steps=40")
    signalled(monkeypatch, tmp_path, 15, "SIGINT")
    with pytest.raises(
        Interrupted, match=f"stopped at step .*\\nContinue with `regrow train --resume {broken}`"
    ):
        train(recipe, broken, *keys, "steps=40")
    resume(broken)
    assert_same_loop(whole, broken)


def test_killed_in_the_middle_of_a_ticket_and_moved_elsewhere(recipe, tmp_path):
    keys = [OWN, *lottery("tickets: 2"), "method={name: signalled, update_every: 5}", "steps=30"]
    whole, broken, moved = tmp_path / "whole", tmp_path / "broken", tmp_path / "moved"
    train(recipe, whole, *keys)
    command = [
        sys.executable,
        "-m",
        "regrow",
        "train",
        str(recipe),
        f"out={broken}",
        "--import",
        *map(str, keys),
    ]
    once = {"SIGNAL_AT": "15", "SIGNAL": "SIGKILL", "SIGNALLED": str(tmp_path / "happened")}
    killed = subprocess.run(command, env={**ENVIRONMENT, **once}, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (broken / "members/2").exists()
    broken.rename(moved)
    resume(moved)
    assert_same_loop(whole, moved)


def test_a_run_begins_with_the_network_of_another_at_a_step(recipe, tmp_path):
    dense, sparse, tuned = tmp_path / "dense", tmp_path / "sparse", tmp_path / "tuned"
    train(recipe, dense, "method=dense", "steps=10")
    start = f"start={dense / 'model.safetensors'}"
    keys = [start, "method=static", "sparsify={sparsity: 0.75, init: magnitude}", "steps=20"]
    train(recipe, sparse, *keys, "first_step=15")
    assert summary_of(sparse)["steps"] == 5
    trained = network(recipe, dense / "model.safetensors")
    expected = regrow.masks(regrow.sparsify(trained, 0.75, init="magnitude"))
    found = regrow.masks(network(recipe, sparse / "model.safetensors"))
    assert all(torch.equal(mask, expected[name]) for name, mask in found.items())
    train(recipe, tuned, f"start={sparse / 'model.safetensors'}", "method=static", "steps=4")
    again = regrow.masks(network(recipe, tuned / "model.safetensors"))
    assert all(torch.equal(mask, expected[name]) for name, mask in again.items())


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (lottery("rewind: 60"), "`tickets.rewind` is step 60, and the run ends after 60"),
        (lottery("rewind: begin"), "`tickets.rewind` must be one of start, rate, new, a step, got 'begin'"),
        (
            lottery("score: weight"),
            "`tickets.score` must be one of magnitude, normalised, gradient, grasp, snip",
        ),
        ([*lottery(), "method=snip"], "`tickets` lottery are pruned out of a dense network, and method snip"),
        (
            [*lottery(), "method=granet"],
            "`tickets` lottery are pruned out of a dense network, and method granet",
        ),
        ([*lottery(), "method=dense"], "`tickets` lottery needs a sparse network, and method dense has none"),
        (
            [*lottery(), "sparsify={distribution: {layers.0: 0.5}}"],
            "`sparsify.distribution` gives each layer its own sparsity, which says nothing of the rounds",
        ),
        (["last_step=5", "first_step=5"], "`last_step` must be above `first_step`, got 5 and 5"),
        (["last_step=61"], "`last_step` must be at most 60 in a run of 60 steps, got 61"),
        (["first_step=60"], "`first_step` must be at most 59 in a run of 60 steps, got 60"),
        (["never_dense=true", "start=nowhere.safetensors"], "`never_dense` makes a new network from its"),
        (["start=nowhere.safetensors"], "nowhere.safetensors: no such file\nGive a run's model.safetensors"),
        (
            ["early={sparsty: 0.5}"],
            "`early.sparsty` is not an option of early, did you mean `early.sparsity`",
        ),
        (["early={distance: 0.1}"], "`early.sparsity` is missing"),
        ([*lottery(), "early={sparsity: 0.5}"], "`early` ends a run at its last weights, and is not for"),
        ([*lottery(), "first_step=5"], "`start`, `first_step` and `last_step` are not for `tickets`"),
    ],
)
def test_what_a_recipe_cannot_ask_for(recipe, tmp_path, capsys, keys, text):
    run = tmp_path / "run"
    ended = cli(capsys, "train", recipe, f"out={run}", *keys)
    assert ended.code == 2
    assert text in ended.err
    assert not run.exists()


def test_a_sparse_start_is_not_for_methods_that_begin_with_another(recipe, tmp_path, capsys):
    run = tmp_path / "run"
    train(recipe, run, "method=static", "steps=2")
    keys = [f"start={run / 'model.safetensors'}", "method=pruning", "method.update_every=5"]
    ended = cli(capsys, "train", recipe, f"out={tmp_path / 'other'}", *keys)
    assert (ended.code, "is a sparse network, and method pruning begins with another" in ended.err) == (
        2,
        True,
    )
