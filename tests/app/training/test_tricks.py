"""Tricks in a recipe: they go on bit for bit, leave nothing, cost what they cost, and refuse what does not fit."""

import json
import subprocess
import sys

import pytest
import torch
from run_folders import OWN, assert_same_run, signalled
from safetensors.torch import load_file
from tiny import ENVIRONMENT, cli, write_recipe

from regrow.app.recipes import load, shipped
from regrow.app.training import build
from regrow.errors import RegrowError
from regrow.tricks import GradInit, has_ghosts, over_all

ALL = (
    "tricks=[label-smoothing, {name: gradinit, iterations: 6}, ghost-skips, "
    "{name: ghost-activations, activation: mish, stop_fraction: 0.6}]"
)
NETWORK = ["--import", OWN, "method.name=signalled", "model=own_parts:network"]


@pytest.fixture
def recipe(tmp_path):
    return write_recipe(tmp_path)


# skips end after 30 steps, activations after 36
@pytest.mark.parametrize(("stop", "storage"), [(20, "masked"), (35, "compressed"), (45, "compressed")])
def test_a_run_goes_on_bit_for_bit(recipe, tmp_path, monkeypatch, capsys, stop, storage):
    keys = [*NETWORK, ALL, f"sparsify.storage={storage}", "method.stop_fraction=1"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert cli(capsys, "train", recipe, f"out={whole}", *keys).code == 0
    signalled(monkeypatch, tmp_path, stop, "SIGINT")
    assert cli(capsys, "train", recipe, f"out={broken}", *keys).code == 130
    assert cli(capsys, "train", "--resume", broken).code == 0
    assert_same_run(whole, broken)
    plain = tmp_path / "plain"
    assert cli(capsys, "train", recipe, f"out={plain}", *keys[:-1], "tricks=[]").code == 0
    one, other = (load_file(run / "model.safetensors") for run in (whole, plain))
    assert {n: t.shape for n, t in one.items()} == {n: t.shape for n, t in other.items()}
    summaries = [json.loads((run / "summary.json").read_text()) for run in (whole, broken, plain)]
    assert len({json.dumps(s["flops"]["training"]) for s in summaries[:2]}) == 1
    assert summaries[0]["flops"]["test"] == summaries[2]["flops"]["test"]
    assert summaries[0]["flops"]["training"] > summaries[2]["flops"]["training"]


def test_killed_among_ghosts(recipe, tmp_path, capsys):
    keys = [*map(str, NETWORK), ALL]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert cli(capsys, "train", recipe, f"out={whole}", *keys).code == 0
    once = {"SIGNAL_AT": "25", "SIGNAL": "SIGKILL", "SIGNALLED": str(tmp_path / "happened")}
    command = [sys.executable, "-m", "regrow", "train", str(recipe), f"out={broken}", *keys]
    killed = subprocess.run(command, env={**ENVIRONMENT, **once}, capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr
    assert cli(capsys, "train", "--resume", broken).code == 0
    assert_same_run(whole, broken)


def test_what_they_cost(recipe, tmp_path, capsys):
    """A skip over conv [6, 1, 3, 3] on 6 x 6 pixels is in for 30 of 60 steps; 6 iterations of 9 or 12 passes."""
    found = {}
    for name, key in (
        ("plain", "tricks=[]"),
        ("skips", "tricks=[ghost-skips]"),
        ("before", "tricks=[{name: gradinit, iterations: 6, gamma: 1e9}]"),
        ("after", "tricks=[{name: gradinit, iterations: 6, gamma: 1e-9, when: after}]"),
        ("free", "tricks=[label-smoothing, ghost-activations]"),
    ):
        keys = ["method=static", "model=own_parts:network", key, f"out={tmp_path / name}"]
        assert cli(capsys, "train", recipe, "--import", OWN, *keys).code == 0
        found[name] = json.loads((tmp_path / name / "summary.json").read_text())["flops"]
    plain = found["plain"]
    extra = {name: flops["training"] - plain["training"] for name, flops in found.items()}
    skip = 2 * 6 * 36 + 6 * 36  # the products, sums and biases of 6 outputs of one input each
    assert extra["skips"] == pytest.approx(3 * skip * 30 / 60)
    assert extra["before"] == pytest.approx(6 * 12 * plain["dense"] / 60)
    assert extra["after"] == pytest.approx(6 * 9 * plain["test"] / 60)
    assert extra["free"] == 0


def test_smoothing_is_that_of_the_code(recipe):
    setup = build(load(str(recipe), ["tricks=[{name: label-smoothing, stop_fraction: 0.5}]"]))
    inputs, targets = setup.batches.train(0)
    task = setup.tricks.objective(setup.objective, 0)
    expected = torch.nn.functional.cross_entropy(
        setup.model(inputs), targets, label_smoothing=over_all(0.1, 4)
    )
    assert torch.equal(task.step(setup.model, inputs, targets), expected)
    assert setup.tricks.objective(setup.objective, 30) is setup.objective


def test_gradinit_before_the_masks_and_after(recipe):
    keys = ["method=static", "sparsify.storage=masked"]
    plain = build(load(str(recipe), keys))
    before = build(load(str(recipe), [*keys, "tricks=[{name: gradinit, iterations: 5}]"]))
    after = build(load(str(recipe), [*keys, "tricks=[{name: gradinit, iterations: 5, when: after}]"]))
    batches = [plain.batches.train(step) for step in range(10)]
    plain.method.detach()
    GradInit(iterations=5)(plain.model, plain.batches.task.loss, batches)
    for (name, value), other, third in zip(
        plain.model.named_parameters(), after.model.parameters(), before.model.parameters(), strict=True
    ):
        assert torch.equal(value, other), name
        assert torch.equal(value != 0, third != 0), name
    assert before.tricks.seconds > 0
    assert not all(
        torch.equal(p, q) for p, q in zip(after.model.parameters(), before.model.parameters(), strict=True)
    )


def test_the_best_has_no_ghosts(recipe, tmp_path, capsys):
    run = tmp_path / "run"
    keys = [*NETWORK, "tricks=[ghost-skips]", "validation=0.2", "keep=best", "evaluate_every=10"]
    assert cli(capsys, "train", recipe, f"out={run}", *keys).code == 0
    assert not any("ghost" in name for name in load_file(run / "model.safetensors"))


def test_a_dense_network_has_them_too(recipe, tmp_path, capsys):
    keys = ["--import", OWN, "model=own_parts:network", "method=dense", "steps=12", ALL]
    assert cli(capsys, "train", recipe, f"out={tmp_path / 'run'}", *keys).code == 0


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (["tricks=ghost-skips"], r"`tricks`: input should be a valid list"),
        (
            ["tricks=[ghost-skip]"],
            r"`tricks` must be one of label-smoothing, .*, did you mean `ghost-skips`\?",
        ),
        (["tricks=[own:trick]"], r"`tricks` must be one of label-smoothing, .*, got 'own:trick'"),
        (["tricks=[gradinit, gradinit]"], r"`tricks` has gradinit twice"),
        (
            ["tricks=[{name: gradinit, iteration: 5}]"],
            r"`tricks.gradinit.iteration` is not .* trick gradinit, did you mean `tricks.gradinit.iterations`\?",
        ),
        (["tricks=[label-smoothing]", "label_smoothing=0.1"], r"both smooth the targets"),
        (["tricks=[ghost-skips]", "compile=true"], r"`compile` keeps what it has seen of the network"),
        (["tricks=[gradinit]", "never_dense=true"], r"`never_dense` is true, but the trick gradinit"),
        (
            ["tricks=[{name: label-smoothing, smoothing: 0.9}]"],
            r"`smoothing` must be at most 0.75 for 4 classes",
        ),
        (["tricks=[{name: gradinit, lr: -1}]"], r"`lr` must be a number above 0, got -1"),
        (["tricks=[{name: ghost-skips, exclude: conv1}]"], r"must be a list, got 'conv1'"),
        (["tricks=[{name: ghost-activations, exclude: [x]}]"], r"`exclude` 'x' matches no module"),
        (["tricks=[ghost-skips]"], r"has no convolution that a ghost skip can be put over"),
        (
            [
                "tricks=[{name: ghost-activations, stop_fraction: 0.9}]",
                "tickets={name: sup, cycle_steps: 5, share: 0.5}",
            ],
            r"ghost activations end at step 54, and the tickets begin at",
        ),
    ],
)
def test_what_does_not_fit(recipe, keys, text):
    with pytest.raises(RegrowError, match=text):
        build(load(str(recipe), keys))


def test_the_recipe_of_the_study():
    recipe = load("fashion-tost")
    assert "fashion-tost" in shipped()
    assert [part.name for part in recipe.tricks] == [
        "label-smoothing", "gradinit", "ghost-skips", "ghost-activations",
    ]  # fmt: skip
    assert recipe.tricks[1].options["iterations"] == 180
    assert not has_ghosts(torch.nn.Linear(1, 1))
