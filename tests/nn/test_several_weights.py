"""A module whose compressed form owns two sparse weights."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD

import regrow
from regrow.errors import RegrowValueError
from regrow.nn import CompressedModule
from regrow.ops.linear import linear
from regrow.weights import CompressedWeight, sparse_weights
from regrow.weights.storages import Form

WEIGHTS = ("value", "gate")


class Gated(nn.Module):
    """A gated unit: what one matrix computes, times what another lets through."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.gate = (nn.Parameter(torch.randn(6, 10) / 3) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.value) * functional.linear(x, self.gate).sigmoid()


class SparseGated(CompressedModule):
    """The same with compressed weights."""

    @classmethod
    def of(cls, dense: Gated, positions: dict[str, Tensor], values: dict[str, Tensor]) -> "SparseGated":
        made = cls()
        for name, at in positions.items():
            own = dense.get_parameter(name)
            made.own(name, own.shape, at, values.get(name, own.detach().reshape(-1)[at]))
        return made

    def dense(self, weights: dict[str, Tensor]) -> Gated:
        made = Gated()
        for name, weight in weights.items():
            setattr(made, name, nn.Parameter(weight))
        return made

    def forward(self, x: Tensor) -> Tensor:
        value, gate = (
            linear(*self.operands(name, x), self.index_of(name), "none", self.listener_of(name))
            for name in WEIGHTS
        )
        return value * gate.sigmoid()


@pytest.fixture(scope="module", autouse=True)
def form() -> Iterator[None]:
    """Compressed storage knows the module as long as these tests run."""
    assert CompressedWeight.forms is not None
    CompressedWeight.forms[Gated] = Form(SparseGated, SparseGated.of, SparseGated.dense, WEIGHTS)
    yield
    del CompressedWeight.forms[Gated]


def network(storage: str | None, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(Gated(), nn.Linear(6, 3)).double()
    if storage is None:
        return model
    return regrow.sparsify(model, 0.5, "uniform", include=["0"], storage=storage, seed=seed)


def train(model: nn.Module, method: type[regrow.Method]) -> torch.optim.Optimizer:
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    driver = method(model, optimizer, total_steps=20, update_every=3)
    torch.manual_seed(1)
    for _ in range(10):
        optimizer.zero_grad()
        model(torch.randn(8, 10, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
    driver.detach()
    return optimizer


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for masks in (regrow.masks, regrow.dense_state_dict):
        found, expected = masks(one), masks(other)
        assert found.keys() == expected.keys()
        for name in found:
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", [regrow.RigL, regrow.SET])
def test_both_storages_train_alike(method: type[regrow.Method]) -> None:
    masked, compressed = network("masked"), network("compressed")
    assert isinstance(compressed[0], SparseGated)  # type: ignore[index]
    assert [weight.name for weight in sparse_weights(compressed)] == ["0.value", "0.gate"]
    before = regrow.masks(compressed)
    for model in (masked, compressed):
        train(model, method)
    assert not torch.equal(before["0.gate"], regrow.masks(compressed)["0.gate"])
    assert_same(masked, compressed)
    rows = regrow.summary(compressed).rows
    assert [(row.name, row.storage, row.connections) for row in rows[:2]] == [
        ("0.value", "compressed", 30),
        ("0.gate", "compressed", 30),
    ]


@pytest.mark.parametrize("into", [None, "masked", "compressed"])
def test_save_load_and_densify(into: str | None, tmp_path: Path) -> None:
    model = network("compressed")
    train(model, regrow.RigL)
    other = regrow.load(regrow.save(model, tmp_path / "model.safetensors"), into=network(into, seed=9))
    assert_same(other, model)
    again = network("compressed", seed=8)
    again.load_state_dict(model.state_dict())
    assert_same(again, model)
    x, expected = torch.randn(4, 10, dtype=torch.float64), copy.deepcopy(model)
    dense = regrow.densify(other)
    assert type(dense[0]) is Gated  # type: ignore[index]
    torch.testing.assert_close(dense(x), expected(x))


def test_compress_moves_both_with_their_momentum() -> None:
    model = network("masked")
    optimizer = train(model, regrow.RigL)
    one = copy.deepcopy(model)
    buffers = [
        optimizer.state[weight.parameter]["momentum_buffer"][weight.mask()]
        for weight in sparse_weights(model)
    ]
    regrow.compress(model, optimizer)
    assert_same(model, one)
    for weight, buffer in zip(sparse_weights(model), buffers, strict=True):
        assert weight.storage == "compressed"
        assert torch.equal(weight.take(optimizer.state[weight.parameter]["momentum_buffer"]), buffer)


def test_they_are_compressed_together_or_not_at_all() -> None:
    storage = {"0.value": "compressed", "0.gate": "masked"}
    for options in ({"include": ["0.gate"], "storage": "compressed"}, {"include": ["0"], "storage": storage}):
        with pytest.raises(RegrowValueError, match="Gated has a compressed form with value, gate alone"):
            regrow.sparsify(network(None), 0.5, "uniform", **options)  # type: ignore[arg-type]
