"""Weights that other code writes after `sparsify`."""

from __future__ import annotations

import copy
import gc
from pathlib import Path

import pytest
import torch
from runs import storages
from torch import Tensor, nn
from torch.optim import SGD

import regrow
from regrow.weights import sparse_weights

CUT = "was written to where it has no connection"


def network(storage: str) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 4))
    return regrow.sparsify(model, 0.8, storage=storage)  # type: ignore[return-value]


def merge_lora(layer: nn.Linear) -> None:
    with torch.no_grad():
        layer.weight += 0.1 * torch.randn(48, 2) @ torch.randn(2, 32)


def new_data(layer: nn.Linear) -> None:
    layer.weight.data = torch.randn(48, 32)


def copied(layer: nn.Linear) -> None:
    with torch.no_grad():
        layer.weight.copy_(nn.Linear(32, 48).weight)


def initialised(layer: nn.Linear) -> None:
    nn.init.kaiming_normal_(layer.weight)


@pytest.mark.parametrize("driven", [True, False])
@pytest.mark.parametrize("write", [merge_lora, new_data, copied, nn.Linear.reset_parameters, initialised])
def test_masked_weights_are_cut_and_it_is_said_once(write: object, driven: bool, tmp_path: Path) -> None:
    model = network("masked")
    mask = regrow.masks(model)["0.weight"]
    optimizer = SGD(model.parameters(), lr=0.1)
    if driven:
        regrow.RigL(model, optimizer, total_steps=100, update_every=50)
    for time in range(2):
        x = torch.randn(6, 32)
        write(model[0])  # type: ignore[operator]
        if time == 0:
            with pytest.warns(UserWarning, match=CUT) as caught:
                y = model(x)
            assert [w.filename for w in caught] == [__file__]
        else:
            y = model(x)
        assert torch.equal(model[0].weight != 0, mask)
        regrow.save(model, tmp_path / "model.safetensors")
        plain = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 4))
        read = regrow.load(tmp_path / "model.safetensors", plain)
        torch.testing.assert_close(read(x), y)


@pytest.mark.parametrize(
    "look", [regrow.summary, regrow.masks, regrow.densify, regrow.compress, nn.Module.state_dict]
)
def test_whoever_looks_at_a_model_sees_what_is_cut(look: object) -> None:
    model = network("masked")
    mask = model[0].weight_mask.clone()
    merge_lora(model[0])
    with pytest.warns(UserWarning, match=CUT):
        look(model)  # type: ignore[operator]
    assert torch.equal(torch.as_tensor(model[0].weight != 0), mask)


@storages
def test_layers_that_are_reset_between_folds_start_anew_with_their_connections(storage: str) -> None:
    model = network(storage)
    masks = regrow.masks(model)
    weights = []
    for fold in range(3):
        for layer in model:
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
        x = torch.randn(6, 32)
        if storage == "masked" and fold == 0:
            with pytest.warns(UserWarning, match=CUT):
                model(x)
        model(x).sum().backward()
        optimizer = SGD(model.parameters(), lr=0.1)
        optimizer.step()
        weights.append([weight.to_dense() for weight in sparse_weights(model)])
        assert all(torch.equal(weight.mask(), masks[weight.name]) for weight in sparse_weights(model))
        assert all(torch.equal(w != 0, masks[n]) for w, n in zip(weights[-1], masks, strict=True))
    assert not torch.equal(weights[0][0], weights[1][0])


@pytest.mark.parametrize(
    "initialise",
    [
        nn.init.kaiming_uniform_,
        nn.init.kaiming_normal_,
        nn.init.xavier_uniform_,
        lambda w: nn.init.normal_(w, 0, 1.0),
    ],
)
def test_initialisers_of_compressed_values_whose_fans_are_wrong_are_told(initialise: object) -> None:
    torch.manual_seed(0)
    model = regrow.sparsify(nn.Sequential(nn.Linear(256, 512)), 0.5, storage="compressed")
    for parameter in model.parameters():
        if parameter.dim() > 1:
            initialise(parameter)  # type: ignore[operator]
    with pytest.warns(
        UserWarning, match=r"the values of `0.weight` were written as a whole \(torch.nn.init\?\)"
    ):
        model(torch.randn(2, 256))
    model(torch.randn(2, 256))


def test_initialisers_that_mean_the_same_for_values_are_not() -> None:
    model = regrow.sparsify(nn.Sequential(nn.Linear(256, 512)), 0.5, storage="compressed")
    nn.init.trunc_normal_(model[0].weight_values, std=0.04)
    model(torch.randn(2, 256))
    model[0].reset_parameters()
    model(torch.randn(2, 256))


class Rebuilt(nn.Module):
    """As the layers of quantisation-aware training are made: a module of its own around the old one's parameters."""

    def __init__(self, old: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = old.weight, old.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * 1.0, self.bias)


@pytest.mark.parametrize("copies", [True, False])
def test_a_mask_holds_where_its_layer_was_rebuilt(copies: bool) -> None:
    model = network("masked")
    if copies:
        model = copy.deepcopy(model)
    mask = regrow.masks(model)["0.weight"]
    model[0] = Rebuilt(model[0])  # type: ignore[arg-type]
    gc.collect()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    with pytest.warns(UserWarning, match="is trained outside of the layer that sparsify saw"):
        model(torch.randn(8, 32)).square().mean().backward()
    optimizer.step()
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(8, 32)).square().mean().backward()
        optimizer.step()
    assert torch.equal(model[0].weight != 0, mask)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Please use quant_min and quant_max")
def test_quantisation_aware_training_keeps_masks() -> None:
    from torch.ao.quantization import get_default_qat_qconfig, prepare_qat

    model = network("masked")
    mask = regrow.masks(model)["0.weight"]
    model.qconfig = get_default_qat_qconfig("fbgemm")  # type: ignore[assignment]
    prepare_qat(model.train(), inplace=True)
    gc.collect()
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match="is trained outside of the layer that sparsify saw"):
        model(torch.randn(8, 32)).square().mean().backward()
    optimizer.step()
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 32)).square().mean().backward()
        optimizer.step()
    assert torch.equal(model[0].weight != 0, mask)
