"""A recurrent cell in compressed storage, as a user would write it: it trains, casts and counts as torch's own does."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

import regrow
from regrow.errors import RegrowRuntimeError
from regrow.nn import CompressedModule
from regrow.ops.linear import linear
from regrow.weights import CompressedWeight
from regrow.weights.storages import Form, dense_class_of

WEIGHTS = ("weight_ih", "weight_hh")


class SparseGRUCell(CompressedModule):
    """A GRU cell with compressed weights."""

    bias_ih: nn.Parameter
    bias_hh: nn.Parameter

    @classmethod
    def of(
        cls, dense: nn.GRUCell, positions: dict[str, Tensor], values: dict[str, Tensor]
    ) -> "SparseGRUCell":
        made = cls()
        made.input_size, made.hidden_size = dense.input_size, dense.hidden_size
        for name, at in positions.items():
            own = dense.get_parameter(name)
            made.own(name, own.shape, at, values.get(name, own.detach().reshape(-1)[at]))
        made.bias_ih, made.bias_hh = dense.bias_ih, dense.bias_hh
        return made

    def dense(self, weights: dict[str, Tensor]) -> nn.GRUCell:
        made = nn.GRUCell(self.input_size, self.hidden_size)  # type: ignore[arg-type]
        for name, weight in weights.items():
            setattr(made, name, nn.Parameter(weight))
        made.bias_ih, made.bias_hh = self.bias_ih, self.bias_hh
        return made

    def product(self, name: str, input: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        operands = self.operands(name, input, bias)
        return linear(*operands, self.index_of(name), "none", self.listener_of(name)).chunk(3, -1)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        reset, update, new = self.product("weight_ih", x, self.bias_ih)
        own_reset, own_update, own_new = self.product("weight_hh", h, self.bias_hh)
        keep = (update + own_update).sigmoid()
        new = (new + (reset + own_reset).sigmoid() * own_new).tanh()
        return (1 - keep) * new + keep * h


class Recurrent(nn.Module):
    """A cell that reads a sequence, and what reads its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(6, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 10)
        for each in x.unbind(1):
            h = self.cell(each, h)
        found: Tensor = self.head(h)
        return found


@pytest.fixture(scope="module", autouse=True)
def form() -> Iterator[None]:
    """Compressed storage knows the cell as long as these tests run."""
    assert CompressedWeight.forms is not None
    CompressedWeight.forms[nn.GRUCell] = Form(SparseGRUCell, SparseGRUCell.of, SparseGRUCell.dense, WEIGHTS)
    yield
    del CompressedWeight.forms[nn.GRUCell]


def network(storage: str) -> Any:
    torch.manual_seed(0)
    return regrow.sparsify(Recurrent().double(), 0.5, "uniform", include=["cell"], storage=storage)


@pytest.mark.parametrize("method", [regrow.RigL, regrow.SET])
def test_it_trains_as_masked_storage_does(method: type[regrow.Method]) -> None:
    models = network("masked"), network("compressed")
    assert isinstance(models[1].cell, SparseGRUCell)
    before = regrow.masks(models[1])
    for model in models:
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
        driver = method(model, optimizer, total_steps=20, update_every=3)
        torch.manual_seed(1)
        for _ in range(10):
            optimizer.zero_grad()
            model(torch.randn(8, 4, 6, dtype=torch.float64)).square().sum().backward()
            optimizer.step()
        driver.detach()
    masks, others = (regrow.masks(model) for model in models)
    assert not torch.equal(before["cell.weight_hh"], others["cell.weight_hh"])
    for name, mask in masks.items():
        assert torch.equal(mask, others[name]), name
    x = torch.randn(5, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(models[1](x), models[0](x))
    dense = regrow.densify(models[1])
    assert type(dense.cell) is nn.GRUCell
    torch.testing.assert_close(dense(x), models[0](x))


def test_it_is_counted_as_torchs_own() -> None:
    x = torch.randn(1, 4, 6, dtype=torch.float64)
    masked, compressed = (regrow.costs(network(storage), x) for storage in ("masked", "compressed"))
    assert compressed.layers == masked.layers
    assert not compressed.uncounted
    assert compressed.size_megabytes == masked.size_megabytes
    assert dense_class_of(network("compressed").cell) is nn.GRUCell
    assert dense_class_of(nn.Linear(2, 2)) is nn.Linear


def test_autocast_and_another_dtype() -> None:
    model = network("compressed").float()
    x = torch.randn(5, 4, 6)
    exact = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(x)
    torch.testing.assert_close(found.float(), exact, rtol=0.05, atol=0.05)
    with pytest.raises(RegrowRuntimeError, match="`input` must be of the weight's dtype torch.float32"):
        model(x.double())
