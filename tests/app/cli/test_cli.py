import json
import subprocess
import sys

import pytest
import yaml
from tiny import ENVIRONMENT, cli, write_recipe

from regrow.app.recipes import shipped
from regrow.methods.registry import records


def test_methods(capsys):
    ended = cli(capsys, "methods")
    assert (ended.code, ended.err) == (0, "")
    for name in ("rigl", "set", "static"):
        assert name in ended.out
    listed = json.loads(cli(capsys, "methods", "--json").out)
    assert [record["name"] for record in listed] == list(records())
    assert listed[0].keys() >= {"name", "paper", "line", "drop", "grow", "redistribute", "needs"}


def test_recipes(capsys):
    assert "fashion-mlp-99.5" in cli(capsys, "recipes").out
    listed = json.loads(cli(capsys, "recipes", "--json").out)
    assert [record["name"] for record in listed] == list(shipped())
    assert all(record["line"] for record in listed)


def test_train_as_one_json_document(tmp_path, capsys):
    run = tmp_path / "run"
    ended = cli(capsys, "train", write_recipe(tmp_path), f"out={run}", "--json")
    assert ended.code == 0
    result = json.loads(ended.out)
    assert result == {
        "run": str(run),
        **json.loads((run / "summary.json").read_text()),
        "pictures": [str(run / name) for name in ("curves.png", "first-layer.png", "first-layer.gif")],
    }
    assert "layers.0.weight" in ended.err  # what is for people is still there to see


def test_run_folder_is_named_after_recipe_and_method(tmp_path, capsys, monkeypatch):
    recipe = write_recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # twice within a second
        assert cli(capsys, "train", recipe, "method=static", "steps=3").code == 0
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert len(names) == 2
    assert all(name.startswith("tiny-static-") for name in names)
    config = yaml.safe_load((tmp_path / "runs" / names[0] / "config.yaml").read_text())
    assert (config["method"], config["steps"], config["threads"]) == ({"name": "static", "seed": 0}, 3, 1)


def test_resume_of_a_finished_run_draws_what_is_missing(tmp_path, capsys):
    run = tmp_path / "run"
    assert cli(capsys, "train", write_recipe(tmp_path), f"out={run}").code == 0
    (run / "first-layer.gif").unlink()
    weights = (run / "model.safetensors").read_bytes()
    ended = cli(capsys, "train", "--resume", run)
    assert ended.code == 0
    assert f"was finished before: {run}" in ended.out
    assert (run / "first-layer.gif").is_file()
    assert (run / "model.safetensors").read_bytes() == weights


def test_a_folder_holds_one_run(tmp_path, capsys):
    run, recipe = tmp_path / "run", write_recipe(tmp_path)
    assert cli(capsys, "train", recipe, f"out={run}", "steps=3", "method.stop_fraction=0").code == 0
    ended = cli(capsys, "train", recipe, f"out={run}")
    assert ended.code == 2
    assert f"`out` {run} holds a run already\nContinue it with `regrow train --resume {run}`" in ended.err


def test_out_is_refused_before_the_data_are_read(tmp_path, capsys):
    recipe = write_recipe(tmp_path)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "config.yaml").write_text("")
    away = f"data.folder={tmp_path / 'away'}"
    ended = cli(capsys, "train", recipe, away, f"out={taken}")
    assert (ended.code, ended.err.splitlines()[0]) == (2, f"error: `out` {taken} holds a run already")
    ended = cli(capsys, "train", recipe, away, f"out={recipe}")
    assert (
        ended.err == f"error: `out` {recipe} must be a folder, and {recipe} is none\nName another folder.\n"
    )


NETWORK = """
from torch import nn

def net(width=16, classes=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, classes))
"""


def test_a_network_of_the_users_own(tmp_path, capsys, monkeypatch):
    (tmp_path / "network_here.py").write_text(NETWORK)
    recipe = write_recipe(tmp_path)
    by_layer = "sparsify={distribution: {layers.0: 0.9}, exclude: null}"
    monkeypatch.chdir(tmp_path)
    own = ["train", recipe, "model=network_here:net", "steps=7", "method=network_here:topology"]
    (tmp_path / "network_here.py").write_text(NETWORK + "\nfrom regrow import Static as topology\n")
    ended = cli(capsys, *own, by_layer)
    assert ended.code == 2
    assert ended.err == (
        "error: `distribution` matches nothing: 'layers.0'\nLayers: 1, 3\n"
        "The recipe names layers that `model` network_here:net has not. Say `sparsify.sparsity=0.9` for all layers "
        'together, or `"sparsify.distribution={1: 0.9, 3: 0.9}"`.\n'
    )
    assert not (tmp_path / "runs").exists()
    for words in ("sparsify.sparsity=0.9", "sparsify.distribution={1: 0.9, 3: 0.9}"):  # they do as they stand
        assert cli(capsys, *own, by_layer, words).code == 0
    names = [path.name for path in (tmp_path / "runs").iterdir()]
    assert all(
        name.startswith("tiny-network_here-topology-") for name in names
    )  # no colon, which Windows refuses
    ended = cli(capsys, *own, "sparsify={sparsity: 0.9, exclude: [layers.4]}")
    assert "that `model` network_here:net has not. Say `sparsify.exclude=null`." in ended.err


@pytest.mark.parametrize("options", [[], ["width=32"]])
def test_flops_of_a_network_whose_width_counts_channels(tmp_path, capsys, monkeypatch, options):
    (tmp_path / "network_of_channels.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    ended = cli(capsys, "flops", "network_of_channels:net", *options, "--input", "64")
    assert ended.code == 0
    assert "small-dense has no figure: no argument `width` of this network, a factor" in ended.out


def test_a_warning_is_text(tmp_path):
    command = [sys.executable, "-m", "regrow", "train", str(write_recipe(tmp_path)), "steps=3"]
    ended = subprocess.run(command, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ended.stderr.startswith("warning: RigL: update_every=5 leaves no update within total_steps=3")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["train"],
            "give a recipe or `--resume RUN`\nShipped are: awd-lstm-wikitext2, char-gru, fashion-big-sparse",
        ),
        (["train", "fashion-mpl"], "there is no recipe 'fashion-mpl', did you mean `fashion-mlp`?"),
        (["train", "--resume", "/nowhere"], "/nowhere holds no run: it has no config.yaml"),
        (
            ["train", "fashion-mlp", "--resume", "/nowhere"],
            "continues with the recipe of that run, got 'fashion-mlp'",
        ),
        (["train", "fashion-mlp", "--import", "nothing.py"], "nothing.py: no such file"),
        (["train", "fashion-mlp", "methd=set"], "`methd` is not a key of a recipe, did you mean `method`?"),
    ],
)
def test_errors_are_text(capsys, arguments, text):
    ended = cli(capsys, *arguments)
    assert ended.code == 2
    assert ended.err.startswith("error: ")
    assert text in ended.err
    assert "Traceback" not in ended.err
    assert ended.out == ""


def test_as_a_module_without_a_terminal(tmp_path):
    command = [
        sys.executable,
        "-m",
        "regrow",
        "train",
        str(write_recipe(tmp_path)),
        f"out={tmp_path / 'run'}",
    ]
    ended = subprocess.run(command, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ended.stderr == ""
    lines = [line for line in ended.stdout.splitlines() if line.startswith("step ")]
    assert [line.split(" ")[1] for line in lines] == ["20/60", "40/60", "60/60"]
    assert all(word in lines[-1] for word in ("loss 0.", "accuracy", "sparsity 80.0%", "moved", "left 0 s"))
    assert "\x1b" not in ended.stdout
