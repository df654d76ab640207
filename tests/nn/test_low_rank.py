"""A linear layer of low rank with a rest."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import regrow
from regrow.models import mlp
from regrow.nn import LowRankLinear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rest", [True, False])
def test_it_is_a_product_and_a_rest(bias: bool, rest: bool) -> None:
    torch.manual_seed(0)
    layer, x = (
        LowRankLinear(8, 6, 2, bias=bias, rest=rest).double(),
        torch.randn(3, 5, 8, dtype=torch.float64),
    )
    matrix = layer.expand.weight @ layer.reduce.weight
    assert torch.linalg.matrix_rank(matrix) == 2
    if layer.rest is not None:
        matrix = matrix + layer.rest.weight
    expected = x @ matrix.T + (layer.expand.bias if layer.expand.bias is not None else 0.0)
    torch.testing.assert_close(layer(x), expected)
    assert (layer.rest is not None, layer.expand.bias is not None) == (rest, bias)


def test_its_weights_can_be_sparse() -> None:
    model = regrow.sparsify(nn.Sequential(LowRankLinear(16, 12, 3)), 0.5, rescale=False)
    assert list(regrow.masks(model)) == ["0.reduce.weight", "0.expand.weight", "0.rest.weight"]


def test_a_rank_that_saves_nothing_is_refused() -> None:
    LowRankLinear(12, 12, 5)
    with pytest.raises(regrow.RegrowError, match=r"`rank` 6 makes a core of .*\nGive a rank below 6"):
        LowRankLinear(12, 12, 6)
    with pytest.raises(regrow.RegrowError, match="`rank` must be a whole number"):
        LowRankLinear(12, 12, 0)


def test_a_network_of_such_layers() -> None:
    model = mlp(20, (16, 12), 4, rank=3)
    assert [type(layer).__name__ for layer in model.layers] == [
        "LowRankLinear",
        "ReLU",
        "LowRankLinear",
        "ReLU",
        "Linear",
    ]
    assert sum(p.numel() for p in mlp(20, (16, 12), 4, rank=3, rest=False).parameters()) == (
        3 * (20 + 16) + 16 + 3 * (16 + 12) + 12 + 12 * 4 + 4
    )
