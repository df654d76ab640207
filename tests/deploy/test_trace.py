"""From a network to a graph that computes the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regrow
from regrow.deploy.graph import Connections, Graph
from regrow.deploy.reference import interpret
from regrow.deploy.structure import unflatten
from regrow.deploy.trace import NotTraceable, trace


def run(graph: Graph, *inputs: Tensor) -> Any:
    return unflatten(graph.structure, interpret(graph, inputs))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(inplace=True),
        nn.Conv2d(32, 32, 3, stride=2, bias=False),
        nn.ReLU6(),
        nn.Flatten(),
        nn.Linear(288, 100),
        nn.Dropout(),
        nn.Linear(100, 10),
    )


@pytest.mark.parametrize("storage", ["masked", "compressed"])
def test_a_sparse_network(storage: str) -> None:
    model = regrow.sparsify(net(), sparsity=0.9, storage=storage)
    x = torch.rand(1, 3, 8, 8)
    graph = trace(model, (x,))
    assert graph.dynamic
    assert graph.shapes == [(1, 3, 8, 8)]
    masks = regrow.masks(model)
    assert set(graph.weights) == set(masks)
    for name, mask in masks.items():
        weight = graph.weights[name]
        assert isinstance(weight, Connections) == (float(mask.float().mean()) <= 0.5)
        assert torch.equal((weight.dense() if isinstance(weight, Connections) else weight) != 0, mask)
    model.eval()
    for batch in (1, 2, 7):
        x = torch.rand(batch, 3, 8, 8)
        torch.testing.assert_close(run(graph, x), model(x), rtol=1e-5, atol=1e-6)


def test_what_cannot_be_traced_says_why() -> None:
    class ByValue(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(NotTraceable, match=r"^ByValue cannot be traced: Could not guard on data-dependent"):
        trace(ByValue(), (torch.ones(2, 3),))
