"""Outputs of layers that are constant, or that nothing reads, are cut; the network computes the same."""

import pytest
import torch
from torch import nn

import regrow


def without(layer: nn.Module, *, rows: list[int] = [], columns: list[int] = []) -> None:  # noqa: B006
    with torch.no_grad():
        layer.weight[rows] = 0  # type: ignore[index]
        layer.weight[:, columns] = 0  # type: ignore[index]


def same(model: nn.Module, x: torch.Tensor) -> dict[str, int]:
    deployed = regrow.deploy(model.eval(), x)
    with torch.no_grad():
        torch.testing.assert_close(deployed(x), model(x), rtol=1e-5, atol=1e-5)
    assert deployed.graph is not None
    return deployed.graph.cut


@pytest.mark.parametrize("dense", [False, True], ids=["sparse", "dense"])
def test_linear_layers(dense: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 16), nn.GELU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 5))
    if not dense:
        regrow.densify(regrow.sparsify(model, sparsity=0.6, storage="masked"))
    without(model[0], rows=[3, 5])  # constants, GELU of the bias
    without(model[2], columns=[7, 8], rows=[2])
    without(model[4], columns=[0, 1])
    assert same(model, torch.randn(4, 20)) == {"0": 4, "2": 3}


@pytest.mark.parametrize(("padding", "bias", "cut"), [(0, 0.5, 2), (1, 0.5, 1), (1, -0.5, 2)])
def test_a_constant_meets_no_zeros_of_a_padding(padding: int, bias: float, cut: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=padding))
    without(model[0], rows=[1])
    without(model[2], columns=[6])
    with torch.no_grad():
        model[0].bias[1] = bias
    assert same(model, torch.randn(2, 3, 9, 9)) == {"0": cut}


def test_a_layer_keeps_one_output() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Sigmoid(), nn.Linear(4, 3))
    without(model[0], rows=[0, 1, 2, 3])
    assert same(model, torch.randn(2, 6)) == {"0": 3}


def test_what_two_read_or_what_is_added_stays() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = (nn.Linear(6, 6) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            out: torch.Tensor = self.third(self.second(x) + x)
            return out

    model = Twice()
    without(model.first, rows=[1, 2])
    without(model.third, columns=[3])
    assert same(model, torch.randn(2, 6)) == {}
