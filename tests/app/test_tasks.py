"""The seam of tasks: regression by a user's own data set and task, where low is good."""

import json
import math
from pathlib import Path

import pytest
import torch
from run_folders import OWN, assert_same_run, records, signalled
from tiny import ENVIRONMENT, cli, write_recipe

from regrow.app.compare.table import Row, differences, reached
from regrow.app.recipes import load
from regrow.app.tasks import CLASSIFICATION, Measures, Metric, Task, measures_of, task_of
from regrow.app.tasks.measures import RESERVED
from regrow.app.training import build
from regrow.app.training.evaluation import evaluate
from regrow.app.training.keep import Best
from regrow.errors import RegrowValueError

TASK = '''
"""A user's own regression: the product of two numbers."""

from types import SimpleNamespace

import torch

from regrow.app.tasks import Measures, Metric, Task


class Regression(Task):
    measures = Measures(
        "regression", (Metric("mse", is_loss=True), Metric("mae", meaning="mean absolute error")), "mean squared error"
    )

    def loss(self, outputs, targets):
        if outputs.shape != targets.shape:  # and not in silence, with one broadcast to the other
            raise ValueError(f"one number an example is needed, got {list(outputs.shape)}")
        return (outputs - targets).square().mean()

    def evaluate(self, batches):
        errors = torch.cat([outputs - targets for outputs, targets in batches])
        return {"mse": float(errors.square().mean()), "mae": float(errors.abs().mean())}


def products(count: int = 200) -> SimpleNamespace:
    inputs = torch.randn(count, 2, generator=torch.Generator().manual_seed(0))
    targets = inputs.prod(1, keepdim=True)
    return SimpleNamespace(
        train_inputs=inputs,
        train_targets=targets,
        test_inputs=inputs[:60],
        test_targets=targets[:60],
        task=Regression(),
    )


def network(outputs: int = 1) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(2, 24), torch.nn.Tanh(), torch.nn.Linear(24, outputs))
'''
RECIPE = """
model: own_task:network
data: own_task:products
sparsify: {sparsity: 0.5}
method: {name: rigl, update_every: 5}
optimizer: {name: SGD, lr: 0.1, momentum: 0.9}
batch_size: 20
steps: 60
log_every: 7
checkpoint_every: 10
evaluate_every: 3
device: cpu
threads: 1
imports: [own_task.py]
"""
KEEP = ["keep=best", "validation=0.2", "schedule={name: step, milestones: [30], factor: 3}"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")
    (folder / "own_task.py").write_text(TASK)
    (folder / "own.yaml").write_text(RECIPE)
    return folder / "own.yaml"


def log_of_tests(run):
    return [record for record in records(run, "metrics.jsonl") if record["kind"] == "test"]


@pytest.mark.filterwarnings("ignore:.*leaves no update within")
def test_a_regression_trains_resumes_and_keeps_its_lowest(recipe, tmp_path, monkeypatch, capsys):
    keys = ["--import", OWN, "method.name=signalled", *KEEP]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    ended = cli(capsys, "train", recipe, f"out={whole}", *keys)
    assert ended.code == 0, ended.err
    summary = json.loads((whole / "summary.json").read_text())
    tested = log_of_tests(whole)
    assert tested[0].keys() == {"kind", "step", "on", "loss", "mae"}
    assert (
        summary["mse"]
        == summary["test_loss"]
        == min(record["loss"] for record in tested)
        < tested[-1]["loss"]
    )
    assert not {"accuracy", "nll", "ece"} & summary.keys()
    assert measures_of(summary).best == Metric("mse", is_loss=True)
    first = (whole / "summary.txt").read_text().splitlines()[0]
    assert first.startswith(f"mse          {summary['mse']:.4g} of 40 validation examples, mae ")
    assert f"mse {tested[-1]['loss']:.4g}" in ended.out
    assert (whole / "curves.png").stat().st_size > 5000
    assert "no picture of the curves" not in ended.out
    signalled(monkeypatch, tmp_path, 35, "SIGINT")
    assert cli(capsys, "train", recipe, f"out={broken}", *keys).code == 130
    ended = cli(capsys, "train", "--resume", broken)
    assert ended.code == 0, ended.err
    assert_same_run(whole, broken)
    assert json.loads((broken / "summary.json").read_text())["mse"] == summary["mse"]


def test_a_comparison_of_regressions(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
    out = tmp_path / "runs"
    arguments = [
        "--methods",
        "dense,rigl",
        "--seeds",
        "1",
        "--out",
        out,
        "evaluate_every=20",
        "rigl.optimizer.lr=1e-4",
    ]
    ended = cli(capsys, "compare", recipe, *arguments, "--json")
    assert ended.code == 0, ended.err
    result = json.loads(ended.out)
    rows = {row["method"]: row for row in result["rows"]}
    for name, row in rows.items():
        summary = json.loads((out / f"{name}-seed0/summary.json").read_text())
        assert (row["mean"], row["values"], row["mae"]) == (summary["mse"], [summary["mse"]], summary["mae"])
    assert rows["dense"]["mean"] < rows["rigl"]["mean"]
    texts = {path.rpartition(".")[2]: path for path in result["files"] if "runs.json" not in path}
    markdown = Path(texts["md"]).read_text()
    (dense,) = [line for line in markdown.splitlines() if line.startswith("| dense")]
    assert f"**{rows['dense']['mean']:.4g}**" in dense  # the lowest is the best
    assert markdown.count("**") == 2
    head = next(line for line in ended.err.splitlines() if line.startswith("method"))
    assert head.split()[:5] == ["method", "n", "mse", "deviation", "mae"]
    for word in ("accuracy", "nll", "points below dense"):
        assert word not in ended.err
    assert "mae: mean absolute error; of what is tested, means." in ended.err
    assert any(path.endswith("-flops.png") for path in result["files"])


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (["model.outputs=3"], r"outputs [2, 3] of `model` own_task:network and targets [2, 1] of `data`"),
        (["label_smoothing=0.1"], "`label_smoothing` is 0.1, but task regression has no classes"),
        (["tickets={name: dst, tickets: 2}"], "task regression has no `ensemble`, so that several networks"),
    ],
)
def test_what_does_not_fit_the_task_is_refused(recipe, tmp_path, capsys, keys, text):
    ended = cli(capsys, "train", recipe, f"out={tmp_path / 'run'}", *keys)
    assert ended.code == 2
    assert text in ended.err
    assert not (tmp_path / "run").exists()


def test_the_best_is_the_lowest_and_never_nan(recipe):
    setup = build(load(str(recipe)))
    best = Best(setup.recipe, setup.batches, setup.model, None)
    kept = []
    for value in (math.nan, 3.0, 4.0, math.nan, 2.0):
        best.tested(1, {"mse": value, "mae": 0.0})
        kept.append(best.best[0])
    assert kept[1:] == [3.0, 3.0, 3.0, 2.0]


def test_a_task_that_measures_something_else_is_refused(recipe):
    setup = build(load(str(recipe)))

    class Other(Task):
        measures = Measures("other", (Metric("mse"),), "loss")

        def evaluate(self, batches):
            next(iter(batches))  # the rest is not asked for
            return {"rmse": 1.0}

    setup.model.train()
    with pytest.raises(RegrowValueError, match="`evaluate` of task other must return mse, got rmse"):
        evaluate(Other(), setup.model, setup.batches.test(), "float32")
    assert setup.model.training
    assert not torch.is_inference_mode_enabled()


def row(method, values, metric, curve=()):
    from regrow.app.compare import Cell

    return Row(
        Cell(method, 1.0, ()), values, 1, 1.0, 1.0, 1.0, 1.0, "masks", 1.0, False, curve=curve, metric=metric
    )


def test_differences_and_near_dense_of_other_metrics():
    error = Metric("error", form=".2%")
    rows = [row("dense", (5.0, 6.0), error, ((1.0, 9.0), (2.0, 6.0))), row("rigl", (6.0, 8.0), error)]
    assert [str(one) for one in reached(rows)] == [
        "dense to 6.00% (0.5 points above dense): 2.0 s of training"
    ]
    mse = Metric("mse")
    rows = [row("dense", (0.5, 0.5), mse), row("rigl", (0.25, 0.25), mse)]
    assert reached(rows) == []
    assert [str(one) for one in differences(rows)] == ["rigl against dense: -0.25, no deviation"]


def test_metrics_have_names_of_their_own(tmp_path, capsys):
    assert Measures.from_dict(json.loads(json.dumps(CLASSIFICATION.to_dict()))) == CLASSIFICATION
    for name in ("seconds", "loss", "a b"):
        with pytest.raises(RegrowValueError, match="`name` of a metric must be letters and digits"):
            Metric(name)
    with pytest.raises(RegrowValueError, match="`metrics` must be at least one, of different names"):
        Measures("task", (Metric("a"), Metric("a")), "loss")
    with pytest.raises(RegrowValueError, match=r"`data.task` must be a regrow.app.tasks.Task"):
        task_of(type("Data", (), {"task": "regression"}))
    run = tmp_path / "run"
    keys = ["tickets={name: sup, share: 0.5, cycle_steps: 10}", "method.update_every=2"]
    assert cli(capsys, "train", write_recipe(tmp_path), f"out={run}", *keys).code == 0
    measured = {metric.name for metric in (*CLASSIFICATION.metrics, *CLASSIFICATION.differences)}
    status = torch.load(run / "checkpoint.pt")["status"]
    summary = json.loads((run / "summary.json").read_text())
    found = [summary, *records(run, "metrics.jsonl"), status, summary["tickets"]["each"][0]]
    known = {key for one in found for key in one} - measured
    # of updates, of which there are no tests
    assert known - {"fraction", "grown", "layers"} <= RESERVED
