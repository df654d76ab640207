"""Training against an attack: a user's own task attacks the network in each step and in each test (FGSM)."""

import json

import pytest
import torch
from run_folders import records
from tiny import cli

from regrow.app.recipes import load
from regrow.app.tasks import Classification, Task
from regrow.app.training import build
from regrow.app.training.evaluation import evaluate
from regrow.errors import RegrowValueError

TASK = '''
"""A user's own adversarial training."""

from types import SimpleNamespace

import torch

from regrow.app.tasks import Classification, Measures, Metric


class Robust(Classification):
    measures = Measures(
        "robust classification",
        (Metric("robust", True, ".2%", meaning="accuracy under attack"), Metric("clean", True, ".2%")),
        "cross entropy under attack",
    )

    def __init__(self, classes, epsilon):
        super().__init__(classes)
        self.epsilon = epsilon

    def attacked(self, model, inputs, targets):
        inputs = inputs.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(self.loss(model(inputs), targets), inputs)
        return (inputs + self.epsilon * gradient.sign()).detach()

    def step(self, model, inputs, targets):
        return self.loss(model(self.attacked(model, inputs, targets)), targets)

    def measure(self, model, batches):
        count = robust = clean = 0
        for inputs, targets in batches:
            count += len(targets)
            robust += int((model(self.attacked(model, inputs, targets)).argmax(1) == targets).sum())
            clean += int((model(inputs).argmax(1) == targets).sum())
        return {"robust": robust / count, "clean": clean / count}


def points(epsilon: float = 0.4, attacked: bool = True) -> SimpleNamespace:
    """One input decides and is small; the sixteen others agree with it a little, in sum more, and can be attacked."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(2, (400,), generator=generator)
    sign = (2 * targets - 1)[:, None]
    weak = 0.3 * sign + 0.5 * torch.randn(400, 16, generator=generator)
    inputs = torch.cat([sign.float(), weak], 1)
    data = SimpleNamespace(
        train_inputs=inputs[:300],
        train_targets=targets[:300],
        test_inputs=inputs[300:],
        test_targets=targets[300:],
        classes=2,
    )
    if attacked:
        data.task = Robust(2, epsilon)
    return data


def network() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(17, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
'''
RECIPE = """
model: adversarial:network
data: adversarial:points
sparsify: {sparsity: 0.5}
method: {name: rigl, update_every: 5}
optimizer: {name: SGD, lr: 0.1, momentum: 0.9}
batch_size: 50
steps: 60
log_every: 20
evaluate_every: 20
device: cpu
threads: 1
imports: [adversarial.py]
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adversarial")
    (folder / "adversarial.py").write_text(TASK)
    (folder / "robust.yaml").write_text(RECIPE)
    return folder / "robust.yaml"


def trained(recipe, run, capsys, *keys):
    ended = cli(capsys, "train", recipe, f"out={run}", *keys)
    assert ended.code == 0, ended.err
    return ended


@pytest.mark.parametrize("storage", ["masked", "compressed"])
def test_a_network_trains_against_an_attack(recipe, tmp_path, capsys, storage):
    keys = [f"sparsify.storage={storage}"]
    ended = trained(recipe, tmp_path / "robust", capsys, *keys)
    summary = json.loads((tmp_path / "robust/summary.json").read_text())
    assert summary["robust"] > 0.9
    assert f"robust {summary['robust']:.2%}" in ended.out
    tested = [one for one in records(tmp_path / "robust", "metrics.jsonl") if one["kind"] == "test"]
    assert [one["step"] for one in tested] == [20, 40, 60]
    assert (tested[-1]["robust"], tested[-1]["clean"]) == (summary["robust"], summary["clean"])
    # a network that was trained without, under the same attack
    trained(recipe, tmp_path / "plain", capsys, *keys, "data.attacked=false")
    setup = build(load(str(recipe), [*keys, "data.epsilon=0.4"]))
    state = torch.load(tmp_path / "plain/checkpoint.pt")["model"]
    setup.model.load_state_dict(state)
    setup.model.train()
    found = evaluate(setup.batches.task, setup.model, setup.batches.test(), "float32")
    assert setup.model.training
    assert all(parameter.grad is None for parameter in setup.model.parameters())
    assert found["robust"] < summary["robust"] - 0.05
    assert found["robust"] < found["clean"]


@pytest.mark.parametrize("storage", ["masked", "compressed"])
@pytest.mark.parametrize("smoothing", [[], ["label_smoothing=0.1"]])
def test_an_attack_that_changes_nothing_leaves_the_run_as_it_was(
    recipe, tmp_path, capsys, storage, smoothing
):
    keys = [f"sparsify.storage={storage}", *smoothing]
    trained(recipe, tmp_path / "none", capsys, *keys, "data.attacked=false")
    trained(recipe, tmp_path / "zero", capsys, *keys, "data.epsilon=0")
    none, zero = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("none", "zero"))
    assert none == zero


def test_label_smoothing_is_of_the_training_loss_alone(recipe):
    setup = build(load(str(recipe), ["label_smoothing=0.1"]))
    task, objective = setup.batches.task, setup.objective
    assert (task.smoothing, objective.smoothing) == (0.0, 0.1)
    assert type(objective) is type(task)
    inputs, targets = setup.batches.train(0)
    attack = {one: one.attacked(setup.model, inputs, targets) for one in (task, objective)}
    expected = torch.nn.functional.cross_entropy(setup.model(attack[objective]), targets, label_smoothing=0.1)
    assert torch.equal(objective.step(setup.model, inputs, targets), expected)


def test_a_measure_of_something_else_is_refused(recipe):
    setup = build(load(str(recipe)))

    class Other(Classification):
        def measure(self, model, batches):
            return {"accuracy": 1.0}

    with pytest.raises(
        RegrowValueError, match="`measure` of task classification must return accuracy, nll, ece"
    ):
        evaluate(Other(2), setup.model, setup.batches.test(), "float32")


def test_the_defaults_are_loss_and_evaluate(recipe):
    setup = build(load(str(recipe), ["data.attacked=false"]))
    inputs, targets = setup.batches.train(0)
    task = setup.batches.task
    assert setup.objective is task
    assert torch.equal(task.step(setup.model, inputs, targets), task.loss(setup.model(inputs), targets))

    class Modes(Task):
        measures = task.measures

        def evaluate(self, batches):
            for outputs, _ in batches:
                assert outputs.is_inference()
            return dict.fromkeys(("accuracy", "nll", "ece"), 0.0)

    evaluate(Modes(), setup.model, setup.batches.test(), "float32")
    assert not torch.is_inference_mode_enabled()
