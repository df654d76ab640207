"""Runs whose optimizer averages the weights: what is tested and kept is the average, and resuming is exact."""

import json

import pytest
import torch
from run_folders import OWN, assert_same_run, records, signalled
from tiny import cli, write_recipe

import regrow
from regrow.app.recipes import find, load
from regrow.app.training.build import build
from regrow.app.training.evaluation import evaluate
from regrow.app.training.folder import RunFolder
from regrow.errors import RegrowValueError

# with such targets the loss of what is tested does not only fall
KEYS = [
    "optimizer={name: SNTASGD, lr: 1.0, nonmono: 1}",
    "schedule=constant",
    "validation=0.3",
    "label_smoothing=0.5",
    "evaluate_every=2",
    "method={name: set, update_every: 7}",
]


@pytest.fixture
def recipe(tmp_path):
    return write_recipe(tmp_path)


def evaluations(run):
    return [record for record in records(run, "metrics.jsonl") if record["kind"] == "test"]


@pytest.mark.parametrize("storage", ["masked", "compressed"])
def test_interrupted_and_resumed_bit_for_bit(recipe, tmp_path, monkeypatch, capsys, storage):
    keys = ["--import", OWN, *KEYS, "method.name=signalled", f"sparsify.storage={storage}", "keep=best"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert cli(capsys, "train", recipe, f"out={whole}", *keys).code == 0
    signalled(monkeypatch, tmp_path, 42, "SIGINT")
    assert cli(capsys, "train", recipe, f"out={broken}", *keys).code == 130
    averages = [record["averaged"] for record in evaluations(broken)]
    assert averages[0] is False
    assert averages[-1] is True, "it averages before it is interrupted"
    assert cli(capsys, "train", "--resume", broken).code == 0
    assert_same_run(whole, broken)


@pytest.mark.parametrize("keep", ["last", "best"])
@pytest.mark.parametrize("name", ["SNTASGD", "NTASGD"])
def test_the_result_is_the_average(recipe, tmp_path, capsys, name, keep):
    out = tmp_path / "run"
    ended = cli(capsys, "train", recipe, f"out={out}", *KEYS, f"optimizer.name={name}", f"keep={keep}")
    assert ended.code == 0, ended.err
    found = evaluations(out)
    losses = [record["loss"] for record in found]
    # the trigger by hand: above the least of all but the last one before
    began = next(i for i in range(2, len(losses)) if losses[i] > min(losses[: i - 1]))
    assert [record["averaged"] for record in found] == [i > began for i in range(len(losses))]
    summary = json.loads((out / "summary.json").read_text())
    wanted = max(record["accuracy"] for record in found) if keep == "best" else found[-1]["accuracy"]
    assert summary["accuracy"] == pytest.approx(wanted, abs=1e-6)

    checkpoint = torch.load(out / "checkpoint.pt", weights_only=True)
    setup = build(load(out / "config.yaml", []), checkpoint)
    data = list(setup.batches.test())
    trained = evaluate(setup.batches.task, setup.model, data, "float32")
    with setup.optimizer.averaged():
        averaged = evaluate(setup.batches.task, setup.model, data, "float32")
    assert averaged != trained
    assert averaged["nll"] == pytest.approx(losses[-1], abs=1e-6)
    if keep == "last":
        kept = RunFolder(out).load_model("model.safetensors", setup.model)
        assert evaluate(setup.batches.task, kept, data, "float32") == pytest.approx(averaged, abs=1e-6)


def test_the_test_set_does_not_begin_it(recipe):
    for name in ("SNTASGD", "NTASGD"):
        optimizer = f"optimizer={{name: {name}, lr: 1}}"
        with pytest.raises(
            RegrowValueError, match=f"`validation` is missing: optimizer {name} averages from"
        ):
            load(recipe, [optimizer])
        made = load(recipe, [optimizer, "validation=0.2"])
        assert find("optimizer", made.optimizer) is getattr(regrow, name)
    with pytest.raises(RegrowValueError, match="`optimizer.lr` is missing: optimizer SNTASGD needs it"):
        load(recipe, ["optimizer={name: SNTASGD}", "validation=0.2"])
