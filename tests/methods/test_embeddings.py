"""Embeddings and read-outs that are sparse on request, and tied ones, which are one weight."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from recurrent import EVERY, driven
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

import regrow
from regrow import SNTASGD
from regrow.errors import RegrowValueError
from regrow.methods.registry import methods
from regrow.weights import sparse_weights

SYMBOLS, SIZE = 11, 8
EVERYTHING = ["encoder", "cell", "decoder"]


class Language(nn.Module):
    """A small language model: embedding, LSTM, read-out."""

    def __init__(self, tied: bool, padding: int | None = None) -> None:
        super().__init__()
        self.encoder = nn.Embedding(SYMBOLS, SIZE, padding_idx=padding)
        self.cell = nn.LSTM(SIZE, SIZE)
        self.decoder = nn.Linear(SIZE, SYMBOLS)
        if tied:
            self.decoder.weight = self.encoder.weight

    def forward(self, symbols: Tensor) -> Tensor:
        found: Tensor = self.decoder(self.cell(self.encoder(symbols))[0])
        return found


def network(
    tied: bool, storage: Any = "masked", *, padding: int | None = None, pattern: str | None = None
) -> Any:
    torch.manual_seed(0)
    model = Language(tied, padding).double()
    return regrow.sparsify(model, 0.6, "uniform", include=EVERYTHING, storage=storage, pattern=pattern)


def train(model: nn.Module, optimizer: Optimizer, start: int, stop: int) -> None:
    for step in range(start, stop):
        generator = torch.Generator().manual_seed(step)
        symbols = torch.randint(SYMBOLS, (6, 4), generator=generator)
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(symbols).flatten(0, 1), symbols.add(1).flatten() % SYMBOLS)
        loss.backward()
        optimizer.step()


def test_they_are_dense_unless_they_are_asked_for() -> None:
    for tied, reason in ((False, None), (True, "tied to the embedding `encoder`")):
        model = regrow.sparsify(Language(tied), 0.6)
        reasons = {row.name: row.reason for row in regrow.summary(model).rows if row.storage == "dense"}
        assert reasons["encoder.weight"] == "embedding"
        assert reasons.get("decoder.weight") == reason


def test_tied_weights_are_one_with_one_topology() -> None:
    model = network(tied=True)
    assert [weight.name for weight in sparse_weights(model)] == [
        "encoder.weight",
        "cell.weight_ih_l0",
        "cell.weight_hh_l0",
    ]
    weight = sparse_weights(model)[0]
    assert weight.nnz == SYMBOLS * SIZE - int(0.6 * SYMBOLS * SIZE)
    assert model.decoder.weight is model.encoder.weight is weight.parameter
    assert len(sparse_weights(network(tied=False))) == 4


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "record",
    [record for record in methods().values() if record.cls.__module__.startswith("regrow.")],
    ids=lambda record: record.name,
)
def test_every_method_trains_them(record: Any, tied: bool) -> None:
    model = network(tied, pattern=record.pattern)
    before = regrow.masks(model)
    driver, optimizer = driven(model, record.cls)
    train(model, optimizer, 0, 8 * EVERY)
    for weight in sparse_weights(model):
        assert not weight.parameter.detach()[~weight.mask()].any()
    moved = not torch.equal(regrow.masks(model)["encoder.weight"], before["encoder.weight"])
    assert moved == (record.name not in ("static", "partially-masked"))  # which moves at the very end
    assert (model.decoder.weight is model.encoder.weight) == tied
    driver.detach()


def test_tied_weights_grow_by_the_gradient_of_both_uses() -> None:
    """A hand-made tie: growth goes by the sum of what the embedding and the read-out say."""
    torch.manual_seed(0)
    model = Language(tied=True).double()
    mask = torch.zeros(SYMBOLS, SIZE, dtype=torch.bool)
    mask[:, 0] = True
    regrow.sparsify(model, init={"encoder.weight": mask}, include="encoder", storage="masked")
    driver, optimizer = driven(model, regrow.RigL, drop_fraction=0.5, schedule="constant")
    train(model, optimizer, 0, EVERY)
    generator = torch.Generator().manual_seed(EVERY)
    symbols = torch.randint(SYMBOLS, (6, 4), generator=generator)
    dense = copy.deepcopy(model)
    table = dense.encoder.weight.detach().clone().requires_grad_()
    states = dense.cell(functional.embedding(symbols, table))[0]
    scores = functional.linear(states, table, dense.decoder.bias)
    functional.cross_entropy(scores.flatten(0, 1), symbols.add(1).flatten() % SYMBOLS).backward()
    assert table.grad is not None
    values = model.encoder.weight.detach().clone()
    train(model, optimizer, EVERY, EVERY + 1)  # an update: the weights rest
    gone = values[:, 0].abs().argsort()[:5]
    free = table.grad.abs()
    free[:, 0] = -1
    free[gone, 0] = table.grad[gone, 0].abs()
    expected = mask.clone()
    expected[gone, 0] = False
    expected.view(-1)[free.view(-1).topk(5).indices] = True
    assert torch.equal(regrow.masks(model)["encoder.weight"], expected)
    driver.detach()


def test_a_read_out_in_compressed_storage_trains_as_a_masked_one() -> None:
    storage = {"decoder.weight": "compressed"}
    others = dict.fromkeys(("encoder.weight", "cell.weight_ih_l0", "cell.weight_hh_l0"), "masked")
    models = network(False), network(False, {**others, **storage})
    drivers = []
    for model in models:
        optimizer = SNTASGD(model.parameters(), lr=0.5)
        drivers.append(regrow.SelfishRNN(model, optimizer, total_steps=60, update_every=EVERY))
        for loss in (1, 1, 1, 1, 1, 1, 2):
            optimizer.trigger(loss)
        train(model, optimizer, 0, 5 * EVERY)
        optimizer.swap_in()
    assert [weight.storage for weight in sparse_weights(models[1])].count("compressed") == 1
    for weight, other in zip(*map(sparse_weights, models), strict=True):
        assert weight.fingerprint() == other.fingerprint()
        torch.testing.assert_close(weight.to_dense(), other.to_dense(), rtol=0, atol=1e-9)
    for driver in drivers:
        driver.detach()


def test_tied_weights_are_not_compressed() -> None:
    model = network(tied=True, storage="auto")
    assert sparse_weights(model)[0].storage == "masked"
    with pytest.raises(RegrowValueError, match="encoder.weight"):
        network(tied=True, storage="compressed")


def test_copies_files_and_dense_again(tmp_path: Path) -> None:
    model = network(tied=True)
    driver, optimizer = driven(model, regrow.SET)
    train(model, optimizer, 0, 3 * EVERY)
    driver.detach()
    symbols = torch.arange(SYMBOLS)[:, None]
    expected = model(symbols).detach()
    copied = copy.deepcopy(model)
    assert copied.decoder.weight is copied.encoder.weight
    file = regrow.save(model, tmp_path / "model.safetensors")
    loaded = regrow.load(file, Language(tied=True).double())
    dense = regrow.densify(copy.deepcopy(model))
    again = network(tied=True)
    again.load_state_dict(model.state_dict())
    for one in (copied, loaded, dense, again):
        assert torch.equal(one(symbols), expected)
        assert one.decoder.weight is one.encoder.weight
    another, own = driven(copied, regrow.RigL)
    train(copied, own, 0, 3 * EVERY)
    assert not copied.encoder.weight.detach()[~regrow.masks(copied)["encoder.weight"]].any()
    another.detach()


def test_a_padding_row_stays_as_it_is() -> None:
    model = network(tied=False, padding=3)
    driver, optimizer = driven(model, regrow.RigL)
    train(model, optimizer, 0, 3 * EVERY)
    assert not model.encoder.weight[3].any()
    driver.detach()
