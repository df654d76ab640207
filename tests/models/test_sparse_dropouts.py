"""`WeightDropLSTM` in compressed storage."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import regrow
from regrow.models.dropouts import WeightDropLSTM
from regrow.models.sparse_dropouts import SparseWeightDropLSTM
from regrow.weights import stamp

X = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def network() -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(WeightDropLSTM(6, 8, 0.5)).double()
    return regrow.sparsify(model, 0.5, "uniform", include=["0"], storage="compressed")


def test_it_drops_values_and_no_connections() -> None:
    layer = network()[0]
    assert isinstance(layer, SparseWeightDropLSTM)
    masks = regrow.masks(nn.Sequential(layer))
    torch.manual_seed(1)
    found = layer(X)[0]
    torch.manual_seed(1)
    values = layer.weight_hh_l0_values
    dropped = torch.cat([F.dropout(values, 0.5)[: -stamp.SIZE], values[-stamp.SIZE :]])
    expected = torch.func.functional_call(layer.eval(), {"weight_hh_l0_values": dropped}, (X,))[0]
    torch.testing.assert_close(found, expected)
    gradient, theirs = (
        torch.autograd.grad(each.square().sum(), layer.weight_hh_l0_values)[0] for each in (found, expected)
    )
    torch.testing.assert_close(gradient, theirs)
    assert (gradient == 0).sum() > 32
    assert all(torch.equal(mask, masks[name]) for name, mask in regrow.masks(nn.Sequential(layer)).items())


def test_there_and_back() -> None:
    model = network().eval()
    expected = model(*[X])[0]
    dense = regrow.densify(copy.deepcopy(model))
    assert type(dense[0]) is WeightDropLSTM  # type: ignore[index]
    assert dense[0].weight_drop == 0.5  # type: ignore[index]
    torch.testing.assert_close(dense(X)[0], expected)
    assert "weight_drop=0.5" in repr(model)


def test_the_network_that_has_it_trains() -> None:
    model: Any = regrow.models.awd_lstm(classes=20, embedding=8, hidden=12, width=1.0)
    regrow.sparsify(model, 0.5, "uniform", include=["layers.*"], storage="compressed")
    assert all(isinstance(layer, SparseWeightDropLSTM) for layer in model.layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rigl = regrow.RigL(model, optimizer, total_steps=20, update_every=2)
    before = regrow.masks(model)
    tokens = torch.randint(20, (4, 6), generator=torch.Generator().manual_seed(0))
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
        optimizer.step()
    assert rigl.step == 4
    assert not torch.equal(before["layers.0.weight_hh_l0"], regrow.masks(model)["layers.0.weight_hh_l0"])
