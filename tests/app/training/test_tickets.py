"""Runs that make several tickets: when, how good, what is written, and the way back after a kill."""

import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from run_folders import OWN, assert_same_run, records, signalled
from safetensors.torch import load_file
from tiny import ENVIRONMENT, cli, idx_bytes, images, write_folder, write_recipe
from torch import nn

import regrow
from regrow.app.recipes import load
from regrow.app.training import build
from regrow.app.training.evaluation import evaluate
from regrow.app.training.keep import Best

# these runs are a few steps long, shorter than the intervals of their recipes
pytestmark = pytest.mark.filterwarnings("ignore:.*leaves no update within")

SUP = "tickets={name: sup, share: 0.5, cycle_steps: 10}"
EDST = ["tickets={name: edst, start: 0.5}", "validation=0.1", "method.stop_fraction=1", "evaluate_every=4"]
NORMS = ["--import", OWN, "model=own_parts:network"]


@pytest.fixture
def recipe(tmp_path):
    return write_recipe(tmp_path)


def train(capsys, *arguments):
    ended = cli(capsys, "train", *arguments)
    assert ended.code == 0, ended.err
    return ended


def of_kind(run: Path, kind: str) -> list[dict]:
    return [record for record in records(run, "metrics.jsonl") if record["kind"] == kind]


def summary_of(run: Path) -> dict:
    summary = json.loads((run / "summary.json").read_text())
    return {key: value for key, value in summary.items() if key not in ("seconds", "peak_memory_megabytes")}


def assert_same_tickets(one: Path, other: Path) -> None:
    names = sorted(path.name for path in (one / "tickets").iterdir())
    assert names == sorted(path.name for path in (other / "tickets").iterdir())
    for name in names:
        assert same_file(one / "tickets" / name, other / "tickets" / name)


def same_file(one: Path, other: Path) -> bool:
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_the_cycles_of_sup_tickets(recipe, tmp_path, capsys):
    run = tmp_path / "run"
    ended = train(capsys, recipe, f"out={run}", SUP, "log_every=1")
    assert "tickets sup: 3 windows of 10 steps after the first 30 of 60" in ended.out
    rates = [record["rate"] for record in of_kind(run, "train")]
    # the schedule ends where the cycles begin, and these go from 0.001 to 0.005 and back
    assert rates[:30] == pytest.approx([0.05 * (1 + math.cos(math.pi * t / 30)) / 2 for t in range(30)])
    assert rates[30:40] == pytest.approx([0.001 + 0.0008 * i for i in (0, 1, 2, 3, 4, 5, 4, 3, 2, 1)])
    assert rates[40:] == pytest.approx(2 * rates[30:40])
    # RigL's own updates end at 0.75 x 30, then half of the connections go at the start of each cycle
    updates = {record["step"]: record["fraction"] for record in of_kind(run, "update")}
    assert list(updates) == [5, 10, 15, 20, 30, 40, 50]
    assert [updates[step] for step in (30, 40, 50)] == [0.5, 0.5, 0.5]
    made = of_kind(run, "ticket")
    assert [(one["index"], one["step"], one["taken"]) for one in made] == [
        (i, s, s) for i, s in enumerate((30, 40, 50, 60))
    ]
    assert [len(one["overlap"]) for one in made] == [0, 1, 2, 3]
    tests = {record["step"]: record["accuracy"] for record in of_kind(run, "test")}
    assert all(one["accuracy"] == tests[one["step"]] for one in made)
    asked = made[0]["connections"]
    assert all(one["connections"] == one["together"]["connections"] == asked for one in made)


def test_what_a_sup_run_leaves(recipe, tmp_path, capsys):
    run = tmp_path / "run"
    ended = train(capsys, recipe, f"out={run}", SUP, *NORMS)
    summary = summary_of(run)
    tickets = summary["tickets"]
    assert (summary["steps"], summary["networks"], len(tickets["each"])) == (60, 1, 4)
    assert (tickets["kind"], tickets["start"], tickets["windows"], tickets["length"]) == ("sup", 30, 3, 10)
    for key in ("accuracy", "nll", "ece"):
        assert tickets["mean"][key] == pytest.approx(sum(one[key] for one in tickets["each"]) / 4)
    assert len(tickets["overlap"]) == 4
    assert tickets["disagreement"] >= 0
    assert tickets["kl"] > 0
    # ticket 0 keeps its statistics, each of the three superpositions took one pass of 10 batches
    assert tickets["norm_passes"] == 3
    flops, updates = summary["flops"], len(of_kind(run, "update"))
    sparse, extra = flops["least"], updates * (flops["dense"] - flops["least"]) / 60
    assert flops["training"] == pytest.approx(3 * sparse + extra + 3 * 10 / 60 * flops["test"])
    assert flops["test"] != sparse  # one threshold for all layers: they have other densities
    # the model that was written is the superposed one: on the test set it is as good as the summary says
    setup = build(load(str(run / "config.yaml")))
    assert not same_file(run / "model.safetensors", run / "tickets/3.safetensors")
    model, batches = regrow.load(run / "model.safetensors", setup.model), setup.batches
    found = evaluate(batches.task, model, batches.test(), "float32")
    assert found == {key: pytest.approx(summary[key]) for key in found}
    assert summary["connections"] <= regrow.summary(setup.model).connections
    for text in ("of 4 tickets, superposed", "3 extra passes over the training set for batch norms"):
        assert text in ended.out


def test_each_edst_ticket_is_the_best_of_its_window_and_the_test_set_chooses_nothing(
    recipe, tmp_path, capsys
):
    run, other = tmp_path / "run", tmp_path / "other"
    keys = [*EDST, "optimizer.lr=0.3", "schedule=constant"]
    train(capsys, recipe, f"out={run}", *keys)
    summary = summary_of(run)
    tests = of_kind(run, "test")
    assert {record["on"] for record in tests} == {"validation"}
    made = of_kind(run, "ticket")
    for index, one in enumerate(made):
        inside = [r for r in tests if 30 + 10 * index < r["step"] <= 40 + 10 * index]
        best = max(inside, key=lambda record: record["accuracy"])
        assert (one["taken"], one["accuracy"]) == (best["step"], best["accuracy"])
        assert one["step"] == 40 + 10 * index
    # updates go on, and the topology is torn up between two tickets, not before the first
    fractions = {record["step"]: record["fraction"] for record in of_kind(run, "update")}
    assert [step for step, fraction in fractions.items() if fraction == 0.8] == [40, 50]
    rates = [r["rate"] for r in of_kind(run, "train") if r["step"] > 30]
    assert rates == 3 * (5 * [0.01] + 5 * [0.001])
    assert (summary["tested_on"], summary["tested"], summary["networks"]) == ("test", 60, 3)
    assert not (run / "model.safetensors").exists()
    # the ensemble by hand: the mean of the probabilities
    setup = build(load(str(run / "config.yaml")))
    ((inputs, targets),) = setup.batches.test(setup.batches.final)
    found = []
    for index in range(3):
        setup = build(load(str(run / "config.yaml")))
        model = regrow.load(run / f"tickets/{index}.safetensors", setup.model).eval()
        found.append(model(inputs).softmax(-1).detach())
    mean = torch.stack(found).mean(0)
    assert summary["accuracy"] == float((mean.argmax(1) == targets).float().mean())
    assert summary["nll"] == pytest.approx(float(-mean[torch.arange(60), targets].log().mean()), rel=1e-4)
    assert summary["flops"]["test"] == pytest.approx(3 * summary["flops"]["least"])
    assert summary["connections"] == sum(one["connections"] for one in summary["tickets"]["each"])
    # another test set changes what is reported, and no ticket
    pixels, labels = images(60, 77)
    folder = write_folder(tmp_path / "images")
    (folder / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(pixels))
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(3 - labels))
    train(capsys, recipe, f"out={other}", *keys)
    assert_same_tickets(run, other)
    assert summary_of(other)["nll"] != summary["nll"]


def test_members_of_a_dst_ensemble_are_ordinary_runs(recipe, tmp_path, capsys):
    run, alone = tmp_path / "run", tmp_path / "alone"
    ended = train(capsys, recipe, f"out={run}", "tickets={name: dst, tickets: 2}", "seed=1")
    assert "tickets dst: 2 runs of 60 steps" in ended.out
    assert "step 120/120" in ended.out
    train(capsys, recipe, f"out={alone}", "seed=3")
    assert_same_run(run / "members" / "1", alone)
    assert summary_of(run / "members" / "1") == summary_of(alone)
    summary, members = summary_of(run), [summary_of(run / "members" / str(i)) for i in range(2)]
    assert [member["seed"] for member in members] == [2, 3]
    assert (summary["steps"], summary["networks"], summary["seed"]) == (120, 2, 1)
    assert summary["connections"] == sum(member["connections"] for member in members)
    for key in ("training", "dense"):
        assert summary["flops"][key] == pytest.approx(sum(m["flops"][key] for m in members) / 2)
    assert summary["flops"]["test"] == sum(member["flops"]["test"] for member in members)
    assert [one["accuracy"] for one in summary["tickets"]["each"]] == [m["accuracy"] for m in members]
    assert [path.name for path in sorted((run / "members" / "0").glob("*.png"))] == [
        "curves.png",
        "first-layer.png",
    ]


def test_a_dense_ensemble(recipe, tmp_path, capsys):
    run = tmp_path / "run"
    train(capsys, recipe, f"out={run}", "tickets={name: dst, tickets: 2}", "method=dense", "steps=20")
    summary = summary_of(run)
    assert summary["tickets"]["overlap"] is None
    assert summary["flops"]["test"] == 2 * summary["flops"]["dense"]


@pytest.mark.filterwarnings("ignore:the dense gradient at step .* is zero")
def test_the_best_checkpoint_is_kept_where_the_recipe_says_so(recipe, tmp_path, monkeypatch, capsys):
    keys = ["keep=best", "validation=0.1", "evaluate_every=3", "optimizer.lr=1.5", "schedule=constant"]
    keys = [*keys, "--import", OWN, "method.name=signalled"]
    whole, broken, last = tmp_path / "whole", tmp_path / "broken", tmp_path / "last"
    train(capsys, recipe, f"out={whole}", *keys)
    train(capsys, recipe, f"out={last}", *keys, "keep=last")
    tests = [record["accuracy"] for record in of_kind(whole, "test")]
    assert summary_of(whole)["accuracy"] == max(tests) > summary_of(last)["accuracy"] == tests[-1]
    signalled(monkeypatch, tmp_path, 30, "SIGINT")
    assert cli(capsys, "train", recipe, f"out={broken}", *keys).code == 130
    train(capsys, "--resume", broken)
    assert_same_run(whole, broken)
    assert summary_of(whole) == summary_of(broken)


def test_the_best_checkpoint_is_one_of_the_sparsest(recipe):
    """Pruning is often at its best before it has come down to the sparsity that is asked for."""
    model, pruned = (
        regrow.sparsify(nn.Linear(8, 8), sparsity=sparsity, storage="masked") for sparsity in (0, 0.5)
    )
    setup = build(load(str(recipe)))
    best = Best(setup.recipe, setup.batches, model, None)
    kept = []
    for step, accuracy in enumerate((0.8, 0.9, 0.5, 0.7, 0.6)):
        if step == 2:
            model.load_state_dict(pruned.state_dict())
        best.tested(step, {"accuracy": accuracy, "nll": 0.0, "ece": 0.0})
        network = best.finish(None).network  # it writes nothing
        kept.append((regrow.summary(network).sparsity, best.best[0]))
    assert kept == [(0, 0.8), (0, 0.9), (0.5, 0.5), (0.5, 0.7), (0.5, 0.7)]


@pytest.mark.parametrize(
    "keys",
    [
        [SUP, "tickets.evolve=0.2"],
        [SUP, "tickets.evolve=0.2", "tickets.rule=once", "tickets.divide=holders", *NORMS],
        [SUP, "tickets.evolve=0.2", "sparsify.storage=compressed"],
        EDST,
    ],
    ids=["sup", "sup, once, by holders, batch norm and dropout", "sup, compressed", "edst"],
)
def test_interrupted_in_a_window_and_resumed_bit_for_bit(recipe, tmp_path, monkeypatch, capsys, keys):
    keys = ["--import", OWN, "method.name=signalled", *keys]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(capsys, recipe, f"out={whole}", *keys)
    signalled(monkeypatch, tmp_path, 45, "SIGINT")  # in the middle of the second window
    stopped = cli(capsys, "train", recipe, f"out={broken}", *keys)
    assert stopped.code == 130
    assert "stopped at step 46 of 60" in stopped.err
    train(capsys, "--resume", broken)
    if (whole / "model.safetensors").exists():
        assert_same_run(whole, broken)
    assert records(whole, "metrics.jsonl") == records(broken, "metrics.jsonl")
    assert_same_tickets(whole, broken)
    assert summary_of(whole) == summary_of(broken)


def test_killed_after_a_ticket_that_no_checkpoint_holds(recipe, tmp_path, capsys):
    keys = ["--import", OWN, "method.name=signalled", SUP, "tickets.evolve=0.2", "checkpoint_every=25"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(capsys, recipe, f"out={whole}", *keys)
    command = [sys.executable, "-m", "regrow", "train", str(recipe), f"out={broken}", *map(str, keys)]
    once = {"SIGNAL_AT": "45", "SIGNAL": "SIGKILL", "SIGNALLED": str(tmp_path / "happened")}
    killed = subprocess.run(command, env={**ENVIRONMENT, **once}, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (broken / "tickets/1.safetensors").is_file()
    assert torch.load(broken / "checkpoint.pt")["status"]["step"] == 25
    train(capsys, "--resume", broken)
    assert_same_run(whole, broken)
    assert_same_tickets(whole, broken)
    assert summary_of(whole) == summary_of(broken)


def test_an_ensemble_of_runs_is_resumed_and_repeats_no_member(recipe, tmp_path, monkeypatch, capsys):
    keys = ["--import", OWN, "method.name=signalled", "tickets={name: dst, tickets: 2}", "validation=0.1"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(capsys, recipe, f"out={whole}", *keys)
    signalled(monkeypatch, tmp_path, 25, "SIGINT")
    stopped = cli(capsys, "train", recipe, f"out={broken}", *keys)
    assert stopped.code == 130
    assert f"Continue with `regrow train --resume {broken}`" in stopped.err
    train(capsys, "--resume", broken)
    for index in range(2):
        assert_same_run(whole / "members" / str(index), broken / "members" / str(index))
    assert_same_tickets(whole, broken)
    assert summary_of(whole) == summary_of(broken)
    assert {summary_of(broken / "members" / str(i))["tested_on"] for i in range(2)} == {"test"}
    (broken / "summary.json").unlink()
    before = (broken / "members/0/summary.json").stat().st_mtime_ns
    train(capsys, "--resume", broken)
    assert (broken / "members/0/summary.json").stat().st_mtime_ns == before
    assert_same_tickets(whole, broken)
    assert summary_of(whole) == summary_of(broken)


def test_milestones_move_to_the_shortened_budget(recipe):
    stairs = "schedule={name: step, milestones: [30, 45]}"
    alone, tickets = (build(load(str(recipe), [stairs, *keys])).rate for keys in ([], [SUP]))
    assert [alone(t) for t in (29, 30, 44, 45)] == pytest.approx([1, 0.1, 0.1, 0.01])
    assert [tickets(t) for t in (14, 15, 21, 22)] == pytest.approx([1, 0.1, 0.1, 0.01])


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (
            [SUP, "tickets.cycle_steps=31"],
            "a cycle of 31 steps is longer than `tickets.share` 0.5 of the run, 30 of 60 steps",
        ),
        ([SUP, "tickets.share=1"], "`tickets.share` 1 leaves no training before the cycles"),
        ([SUP, "tickets.share=1.5"], "`tickets.share` must be in [0, 1], got 1.5"),
        ([SUP, "tickets.cycle_steps=0"], "`tickets.cycle_steps` must be a whole number of at least 1, got 0"),
        ([SUP, "tickets.lr=0.1"], "`tickets.lr` must be a list, got 0.1"),
        ([SUP, "tickets.explore=2"], "`explore` must be in [0, 1], got 2"),
        ([SUP, "tickets.average=mode"], "`average` must be one of mean, exponential, got 'mode'"),
        ([SUP, "tickets.density=0.5"], "`density` must be in (0, "),
        ([SUP, "method=static"], "`tickets.explore` needs a method that drops and grows, such as rigl"),
        ([SUP, "method=dense"], "`tickets` sup needs a sparse network, and method dense has none"),
        (["tickets=edst"], "`validation` is missing: tickets edst are the best checkpoints"),
        ([*EDST, "tickets.tickets=0"], "`tickets.tickets` must be a whole number of at least 1, got 0"),
        ([*EDST, "tickets.tickets=50"], "50 windows of 0 steps and the exploration before them do not fit"),
        ([*EDST, "tickets.ticket_steps=20"], "3 windows of 20 steps and the exploration before them"),
        (
            ["tickets={name: dst, tickets: 1}"],
            "`tickets.tickets` must be a whole number of at least 2, got 1",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(recipe, tmp_path, capsys, keys, text):
    ended = cli(capsys, "train", recipe, f"out={tmp_path / 'run'}", *keys)
    assert ended.code == 2
    assert text in ended.err
    assert "Traceback" not in ended.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["sup", "edst", "dst"])
def test_fashion_tickets_from_end_to_end(tmp_path, capsys, kind):
    folder = write_folder(tmp_path / "images", train=300, test=40, size=28)
    keys = [f"data.folder={folder}", "data.limit=200", "steps=18", "batch_size=30", "threads=1"]
    keys += ["evaluate_every=3", "method.update_every=2", "schedule.warmup_steps=2"]
    own = {
        "sup": ["tickets.cycle_steps=2"],
        "edst": ["tickets={name: edst}"],
        "dst": ["tickets={name: dst, tickets: 2}"],
    }
    run = tmp_path / kind
    ended = train(capsys, "fashion-tickets", f"out={run}", *keys, *own[kind], "--json")
    result = json.loads(ended.out)
    assert result["tickets"]["kind"] == kind
    assert result["tested_on"] == "test"
    names = {Path(picture).name for picture in result["pictures"]}
    assert {"tickets.png", "tickets.pdf", "overlap.png", "overlap.pdf"} <= names
    made = len(result["tickets"]["each"])
    assert sorted(path.name for path in (run / "tickets").iterdir()) == [
        f"{i}.safetensors" for i in range(made)
    ]
