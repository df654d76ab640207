"""Copies of models, and models that are loaded."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from runs import plain, storages
from torch import nn
from torch.optim import SGD
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import regrow
from regrow.errors import RegrowRuntimeError
from regrow.testing import Case, Run, batch, network
from regrow.weights import sparse_weights

# --- copies


@storages
def test_a_deep_copy_trains_by_itself(storage: str) -> None:
    run = plain(Case(regrow.RigL, storage), 10)
    copied = copy.deepcopy(run.model)
    optimizer = SGD(copied.parameters(), lr=0.1, momentum=0.9)
    masks = regrow.masks(copied)
    for step in range(10):
        optimizer.zero_grad()
        x, y = batch(step, torch.float64)
        nn.functional.cross_entropy(copied(x), y).backward()
        optimizer.step()
    for weight in sparse_weights(copied):
        assert torch.equal(weight.mask(), masks[weight.name])
        assert not weight.to_dense()[~masks[weight.name]].any()


@storages
def test_a_method_is_not_copied(storage: str) -> None:
    run = plain(Case(regrow.RigL, storage), 10)
    holder = nn.Module()
    holder.model, holder.method = run.model, run.method  # type: ignore[assignment]
    assert copy.deepcopy(holder).method is run.method
    with pytest.warns(
        UserWarning, match=r"copied with its optimizer(?s:.*)Attach a method to it: regrow.RigL"
    ):
        model, optimizer, method = copy.deepcopy((run.model, run.optimizer, run.method))
    assert method is run.method
    with pytest.raises(
        RegrowRuntimeError, match=r"RigL cannot be pickled(?s:.*)it goes on at the optimizer's step"
    ):
        pickle.dumps(run.method)
    again = regrow.RigL(model, optimizer, total_steps=run.method.total_steps)
    assert again.step == run.method.step > 0


@storages
def test_load_state_dict_with_assign(storage: str) -> None:
    trained = plain(Case(regrow.RigL, storage), 20)
    run = Run(Case(regrow.RigL, storage))
    run.model.load_state_dict(copy.deepcopy(trained.model.state_dict()), assign=True)
    assert run.topology() == trained.topology()
    run.backward(0)
    for weight in run.weights:
        assert weight.parameter.grad is not None
        assert torch.equal(weight.restrict(weight.parameter.grad), weight.parameter.grad)
    with pytest.raises(
        regrow.RegrowError, match="is another parameter now than the one that `optimizer` holds"
    ):
        run.optimizer.step()


@storages
def test_a_model_can_be_pickled(storage: str) -> None:
    run = plain(Case(regrow.RigL, storage), 20)
    file = io.BytesIO()
    torch.save(run.model, file)
    file.seek(0)
    model = torch.load(file, weights_only=False)
    x = batch(0, torch.float64)[0]
    assert torch.equal(model(x), run.model(x))
    optimizer = SGD(model.parameters(), lr=0.1)
    regrow.RigL(model, optimizer, total_steps=10, update_every=2)
    model(x).sum().backward()
    optimizer.step()
    assert [w.nnz for w in sparse_weights(model)] == [w.nnz for w in run.weights]


@storages
@pytest.mark.parametrize("ema", [True, False])
def test_an_averaged_model_that_follows(storage: str, ema: bool) -> None:
    run = Run(Case(regrow.RigL, storage))
    assert run.method is not None
    averaged = AveragedModel(run.model, multi_avg_fn=get_ema_multi_avg_fn(0.9) if ema else None)
    run.method.follow(averaged)
    reference = [weight.to_dense() for weight in run.weights]
    for count in run.train(0, 40):
        averaged.update_parameters(run.model)
        for i, weight in enumerate(run.weights):
            now = weight.to_dense()
            mean = (
                reference[i] * 0.9 + now * 0.1 if ema else reference[i] + (now - reference[i]) / (count + 1)
            )
            reference[i] = torch.where(weight.mask(), now if count == 0 else mean, 0.0)
        averaged(batch(0, torch.float64)[0])
    for weight, expected in zip(sparse_weights(averaged), reference, strict=True):
        torch.testing.assert_close(weight.to_dense(), expected)


@storages
def test_an_averaged_model_follows_without_being_asked(storage: str) -> None:
    run = Run(Case(regrow.RigL, storage))
    averaged = AveragedModel(run.model)
    for _ in run.train(0, 20):
        averaged.update_parameters(run.model)
        averaged(batch(0, torch.float64)[0])
    assert [weight.fingerprint() for weight in sparse_weights(averaged)] == run.topology()
    assert not any(weight.to_dense()[~weight.mask()].any() for weight in sparse_weights(averaged))


def test_a_copy_of_another_topology_cannot_follow() -> None:
    run = Run(Case(regrow.SET))
    other = regrow.densify(network("masked"))
    regrow.sparsify(other, 0.7, seed=1)
    assert run.method is not None
    with pytest.raises(regrow.RegrowError, match="`copy` must have the topology of the model"):
        run.method.follow(other)
