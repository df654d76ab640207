"""Methods that prune while they train: where they start, and that they end at the recipe's sparsity."""

import json

import pytest
from tiny import cli, write_recipe

import regrow
from regrow.app.recipes import load
from regrow.app.training import build

ERK = "sparsify={sparsity: 0.8, distribution: erk}"
NAMED = "sparsify={distribution: {layers.0: 0.9, layers.2: 0.3}}"


@pytest.mark.parametrize(
    ("keys", "start"),
    [
        (["method=granet", ERK], 0.5),
        (["method=granet", ERK, "initial_sparsity=0.2"], 0.2),
        (["method=granet", ERK, "initial_sparsity=0"], 0.0),
        (["method=pruning", ERK], 0.0),
        (["method=pruning", ERK, "initial_sparsity=0.5"], 0.5),
        (["method=mest-soft", ERK], 0.75),
        (["method=top-kast", ERK], 0.8),  # its forward set, which is chosen as it is attached
    ],
)
def test_from_the_initial_to_the_recipe_s_sparsity(tmp_path, capsys, keys, start):
    recipe, run = write_recipe(tmp_path), tmp_path / "run"
    keys = [*keys, "method.update_every=5"]
    before = regrow.summary(build(load(str(recipe), keys)).model)
    assert before.sparsity == pytest.approx(start, abs=2e-3)
    fixed = regrow.summary(build(load(str(recipe), [ERK, "method=static"])).model)
    assert [row.name for row in before.rows if row.storage != "dense"] == [
        row.name for row in fixed.rows if row.storage != "dense"
    ]
    assert cli(capsys, "train", recipe, f"out={run}", *keys).code == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["connections"] == fixed.connections


def test_layers_that_are_named_start_no_sparser_than_they_end(tmp_path):
    model = build(load(str(write_recipe(tmp_path)), ["method=granet", "method.update_every=5", NAMED])).model
    density = {name: float(mask.float().mean()) for name, mask in regrow.masks(model).items()}
    assert density == {
        "layers.0.weight": pytest.approx(0.5),
        "layers.2.weight": pytest.approx(0.7, abs=2e-3),
    }


def test_a_start_above_the_end(tmp_path, capsys):
    keys = ["method=granet", "method.update_every=5", ERK, "initial_sparsity=0.9"]
    ended = cli(capsys, "train", write_recipe(tmp_path), f"out={tmp_path / 'run'}", *keys)
    assert ended.code == 2
    assert (
        "`initial_sparsity` 0.9 of granet is above `sparsify.sparsity` 0.8, where it is to end" in ended.err
    )


def test_granet_s_tickets_have_the_final_sparsity(tmp_path, capsys):
    recipe, run = write_recipe(tmp_path), tmp_path / "run"
    keys = ["method=granet", "method.update_every=5", "tickets={name: sup, share: 0.5, cycle_steps: 10}"]
    assert cli(capsys, "train", recipe, f"out={run}", *keys).code == 0
    fixed = regrow.summary(build(load(str(recipe), ["method=static"])).model)
    summary = json.loads((run / "summary.json").read_text())
    each = summary["tickets"]["each"]
    assert [one["connections"] for one in each] == 4 * [fixed.connections]
    assert summary["connections"] == fixed.connections
    assert summary["flops"]["most"] > summary["flops"]["least"]


def test_sparse_layers_do_the_relu_behind_them(tmp_path, capsys):
    recipe, run = write_recipe(tmp_path), tmp_path / "run"
    keys = ["sparsify.storage=compressed"]
    layers = build(load(str(recipe), keys)).model.layers
    assert [layers[i].activation for i in (0, 2)] == ["relu", "relu"]
    assert cli(capsys, "train", recipe, f"out={run}", *keys).code == 0
    assert json.loads((run / "summary.json").read_text())["time_is"] == "real sparsity"


@pytest.mark.parametrize("method", ["snip", "grasp", "synflow"])
def test_a_topology_of_the_first_batch_has_the_connections_of_a_random_one(tmp_path, method):
    recipe = str(write_recipe(tmp_path))
    scored = build(load(recipe, [ERK, f"method={method}"])).model
    fixed = build(load(recipe, [ERK, "method=static"])).model
    assert regrow.summary(scored).connections == regrow.summary(fixed).connections
    assert regrow.masks(scored).keys() == regrow.masks(fixed).keys()
