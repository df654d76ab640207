"""Recurrent layers: what they multiply in each time step, and the networks of papers at the papers' densities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regrow
from regrow import models as zoo
from regrow.accounting import Costs, costs_of
from regrow.sparsity.initial import asked_sparsities

LENGTH, BATCH = 6, 3
GATES = {nn.RNN: 1, nn.GRU: 3, nn.LSTM: 4, nn.RNNCell: 1, nn.GRUCell: 3, nn.LSTMCell: 4}


def uses(counted: Costs) -> dict[str, float]:
    return {layer.name: layer.uses for layer in counted.layers}


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_each_weight_multiplies_once_a_time_step(
    kind: type[nn.RNNBase], bidirectional: bool, layers: int
) -> None:
    model = kind(5, 7, layers, batch_first=True, bidirectional=bidirectional)  # type: ignore[call-arg]
    counted = regrow.costs(model, torch.zeros(BATCH, LENGTH, 5))
    directions, rows = 1 + bidirectional, GATES[kind] * 7
    assert set(uses(counted).values()) == {LENGTH}
    inputs = [5, *[7 * directions] * (layers - 1)]
    products = sum(directions * rows * (size + 7) for size in inputs)
    assert counted.multiply_adds == {"dense": LENGTH * products, "sparse": LENGTH * products}
    # two products with a bias and an addition for each row of each direction and layer
    outputs = 2 * directions * layers * rows
    assert counted.flops["dense"] == LENGTH * (2 * products + outputs)


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_connections_alone_count(kind: type[nn.RNNBase], sparsity: float) -> None:
    model = regrow.sparsify(nn.Sequential(kind(20, 30, batch_first=True)), sparsity, storage="masked")  # type: ignore[call-arg]
    counted = regrow.costs(model, torch.zeros(BATCH, LENGTH, 20))
    connections = sum(int(mask.sum()) for mask in regrow.masks(model).values())
    assert counted.multiply_adds["sparse"] == LENGTH * connections
    assert counted.parameters["sparse"] == connections


class Cells(nn.Module):
    """A cell over a sequence, with all arguments by name and the state first."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.cell = kind(5, 7)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 7)
        state: Any = (h, h) if isinstance(self.cell, nn.LSTMCell) else h
        for one in x.unbind(1):
            state = self.cell(hx=state, input=one)
        result: Tensor = state[0] if isinstance(state, tuple) else state
        return result


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.GRUCell, nn.LSTMCell])
def test_cells_count_each_call(kind: type[nn.RNNCellBase]) -> None:
    counted = regrow.costs(Cells(kind), torch.zeros(BATCH, LENGTH, 5))
    assert uses(counted) == {"cell.weight_ih": LENGTH, "cell.weight_hh": LENGTH}
    assert counted.multiply_adds["dense"] == LENGTH * GATES[kind] * 7 * (5 + 7)


def test_a_layer_called_by_name() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(5, 7, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.rnn(hx=x.new_zeros(2, len(x), 7), input=x)[0]
            return result

    assert set(uses(regrow.costs(Named(), torch.zeros(BATCH, LENGTH, 5))).values()) == {LENGTH}


@pytest.mark.filterwarnings("ignore:LSTM with projections")  # torch's word on its speed
def test_a_projection() -> None:
    model = nn.LSTM(5, 7, batch_first=True, proj_size=2)
    counted = regrow.costs(model, torch.zeros(BATCH, LENGTH, 5))
    assert counted.multiply_adds["dense"] == LENGTH * (28 * 5 + 28 * 2 + 2 * 7)


@cache
def network(name: str, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return zoo.models()[name].build(**options)


def count(
    name: str, density: float, include: Sequence[str] = ("layers.*", "readout.*"), **options: Any
) -> Costs:
    """Costs with the weights that `include` names at `density`."""
    model, record = network(name, **options), zoo.models()[name]
    names = [glob for glob in include if glob != "readout.*" or name == "char-gru"]
    sparsities = asked_sparsities(model, 1 - density, "uniform", include=names)
    example = torch.zeros(1, *record.example_shape({}), dtype=torch.int64, device="meta")
    return costs_of(model, example, sparsities)


@pytest.mark.parametrize(
    ("name", "length", "products"),
    [  # multiply-adds of a time step
        ("char-gru", 512, 1536 * (128 + 512) + 512 * 256 + 256 * 128 + 128 * 256),
        ("stacked-lstm", 35, 4 * 6000 * 1500 + 15_000_000),
        ("rhn", 35, 11 * 1660 * 830 + 8_300_000),
        ("on-lstm", 70, 4830 * (400 + 1150 + 2 * 1150) + 1680 * (1150 + 400) + 4_000_000),
        ("awd-lstm", 70, 4600 * (400 + 1150 + 2 * 1150) + 1600 * (1150 + 400) + 400 * 33_278),
    ],
)
def test_a_time_step_of_the_papers_networks(name: str, length: int, products: int) -> None:
    """Embeddings are look-ups; all else multiplies once a time step."""
    counted = count(name, 1.0)
    assert zoo.models()[name].example_shape({}) == (length,)
    assert counted.multiply_adds["dense"] == length * products
    assert not counted.uncounted


def test_a_mixture_reads_out_once_an_expert() -> None:
    options = {"experts": 15, "embedding": 300, "last": 650}
    plain = 4600 * (300 + 1150 + 2 * 1150) + 2600 * (1150 + 650)
    head = 650 * 15 + 650 * 15 * 300 + 15 * 300 * 33_278
    assert count("awd-lstm", 1.0, **options).multiply_adds["dense"] == 70 * (plain + head)


@pytest.mark.parametrize(
    ("name", "density", "masked", "kept"),
    [
        ("stacked-lstm", 0.33, 66_000_000, 21.78e6),
        ("rhn", 0.472, 23_455_800, 11.07e6),
        ("on-lstm", 0.45, 25_199_500, 0.45 * 25_199_500),
    ],
)
def test_selfish_rnn(name: str, density: float, masked: int, kept: float) -> None:
    """At a uniform density over all weights, products in training and test are that share of the dense network's."""
    counted = count(name, density, ["*"])
    assert counted.parameters["dense"] == masked
    assert counted.parameters["sparse"] == pytest.approx(kept, rel=1e-3)
    assert counted.multiply_adds["sparse"] / counted.multiply_adds["dense"] == pytest.approx(
        density, rel=1e-6
    )
    assert counted.flops["inference_multiple"] == pytest.approx(density, rel=2e-3)
    assert counted.training_multiple["set"] == pytest.approx(density, rel=2e-3)


@pytest.mark.parametrize("named", ["embedding", "head", "*"])
def test_a_sparse_weight_that_is_shared_counts_once_and_multiplies_sparse(named: str) -> None:
    """Selfish-RNN masks encoder and decoder, where they are tied as one weight."""
    model = zoo.char_gru(30, embedding=8, hidden=12, readout=10)
    example = torch.zeros(1, LENGTH, dtype=torch.int64)
    asked = asked_sparsities(model, 0.75, "uniform", include=[named])
    said = costs_of(model, example, asked)
    counted = regrow.costs(
        regrow.sparsify(model, 0.75, "uniform", include=[named], storage="masked"), example
    )
    assert counted.to_dict() == said.to_dict()
    layers = {layer.name: layer for layer in counted.layers}
    assert layers["embedding.weight"].connections == layers["head.weight"].connections == 30 * 8 // 4
    assert layers["embedding.weight"].parameters == 30 * 8
    assert layers["head.weight"].parameters == layers["embedding.weight"].flops_sparse == 0
    assert layers["head.weight"].flops_sparse == LENGTH * (2 * 30 * 8 // 4 + 30)
    assert counted.size_megabytes == said.size_megabytes


def test_character_gru_of_the_rigl_paper() -> None:
    """75% of the GRU's and the read-outs' weights; embedding and softmax, which are one, stay dense."""
    counted = count("char-gru", 0.25)
    sparse = 1536 * 128 // 4 + 1536 * 512 // 4 + 512 * 256 // 4 + 256 * 128 // 4
    assert counted.multiply_adds["sparse"] == 512 * (sparse + 128 * 256)
    dense = 512 * (4 * sparse + 128 * 256)
    assert counted.multiply_adds["dense"] == dense
    assert counted.parameters["sparse"] == sparse + 256 * 128
    assert math.isclose(counted.flops["dense"], 2 * dense, rel_tol=5e-3)
