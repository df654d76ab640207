"""What a run has cost, measured from its own records (rigl-family 10.2)."""

import json

import pytest
from tiny import cli, write_recipe

STEPS = 60
UPDATES = 8  # at 5, 10, ..., 40 of 60 steps: before 0.75 x 60


@pytest.fixture
def summary(tmp_path, capsys):
    recipe = write_recipe(tmp_path)

    def train(method, *keys):
        run = tmp_path / method
        assert cli(capsys, "train", recipe, f"method={method}", f"out={run}", *keys).code == 0
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        text = (run / "summary.txt").read_text()
        return (
            json.loads((run / "summary.json").read_text()),
            [r for r in records if r["kind"] == "update"],
            text,
        )

    return train


@pytest.mark.parametrize("method", ["static", "set", "rigl"])
def test_flops_a_step_are_constant_update_steps_aside(summary, method):
    keys = [] if method == "static" else ["method.update_every=5"]
    result, updates, text = summary(method, *keys)
    flops = result["flops"]
    assert len(updates) == (0 if method == "static" else UPDATES)
    assert all(moved["dropped"] == moved["grown"] for u in updates for moved in u["layers"].values())
    assert flops["least"] == flops["most"] == flops["test"]
    dense, sparse = flops["dense"], flops["test"]
    extra = UPDATES * (dense - sparse) if method == "rigl" else 0
    assert flops["training"] == pytest.approx(3 * sparse + extra / STEPS)
    assert f"{flops['training'] / (3 * dense):.4g}x for training, measured over the run" in text


def test_snfs_needs_a_dense_gradient_at_each_step(summary):
    result, _, _ = summary("snfs", "method.update_every=5", "method.redistribution=false")
    flops = result["flops"]
    assert flops["training"] == pytest.approx(2 * flops["test"] + flops["dense"])


@pytest.mark.parametrize("ratio", [2.5, 1000])
def test_what_is_trained_beside_the_network_is_paid_for(summary, ratio):
    """At most all positions of a layer are trained."""
    result, updates, _ = summary("top-kast", "method.update_every=5", f"method.backward_ratio={ratio}")
    flops = result["flops"]
    assert flops["least"] == flops["most"] == flops["test"]
    assert all(moved["dropped"] == moved["grown"] for u in updates for moved in u["layers"].values())
    trained = flops["training"] - 2 * flops["test"]
    if ratio == 1000:
        assert trained == pytest.approx(flops["dense"])
    else:
        assert flops["test"] < trained < 2.5 * flops["test"]


def test_pruning_costs_what_its_density_was_over_time(summary):
    result, updates, _ = summary("pruning", "method.update_every=5")
    flops = result["flops"]
    assert flops["most"] == flops["dense"]
    assert flops["least"] == flops["test"] < flops["dense"]
    shapes = {"layers.0.weight": 64 * 32, "layers.2.weight": 32 * 16, "layers.4.weight": 16 * 4}
    connections, total, since = dict(shapes), 0, 0
    for update in updates:
        total += (update["step"] + 1 - since) * sum(connections.values())
        since = update["step"] + 1
        for name, moved in update["layers"].items():
            connections[name] -= moved["dropped"]
    total += (STEPS - since) * sum(connections.values())
    assert sum(connections.values()) == flops["connections"]
    # 2 a connection; biases and activations are the same throughout
    per_step = 2 * total / STEPS
    rest = flops["dense"] - 2 * sum(shapes.values())
    assert flops["training"] == pytest.approx(3 * (per_step + rest), rel=1e-6)


def test_dense_and_what_is_recorded_beside(summary):
    result, _, text = summary("dense")
    flops = result["flops"]
    assert flops["training"] == 3 * flops["dense"] == 3 * flops["test"]
    assert flops["connections"] == 64 * 32 + 32 * 16 + 16 * 4
    assert result["peak_memory_megabytes"] > 50
    assert result["steps_per_epoch"] == 10
    assert "MB at the most, measured, of the whole process" in text
