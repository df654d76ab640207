"""A recurrent cell in compressed storage, as a user would write it: it trains, casts and counts as torch's own does."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from recurrent import Recurrent, SparseGRUCell, gru_cells_are_stored
from torch import nn
from torch.optim import SGD

import regrow
from regrow.errors import RegrowRuntimeError
from regrow.weights.storages import dense_class_of


@pytest.fixture(scope="module", autouse=True)
def form() -> Iterator[None]:
    """Compressed storage knows the cell as long as these tests run."""
    with gru_cells_are_stored():
        yield


def network(storage: str) -> Any:
    torch.manual_seed(0)
    return regrow.sparsify(Recurrent("gru-cell").double(), 0.5, "uniform", include=["cell"], storage=storage)


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
