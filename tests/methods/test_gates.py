"""Gates of a cell: one weight together, or apart, each with as many connections as it was given."""

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from recurrent import EVERY, counts, driven, gru_cells_are_stored, network, stored, train
from torch import Tensor, nn
from torch.optim import SGD

import regrow
from regrow.errors import RegrowRuntimeError, RegrowValueError
from regrow.growth.gradient import TILE
from regrow.growth.scores import gradient_magnitude
from regrow.sparsity.distributions import connections
from regrow.weights import SparseWeight, sparse_weights
from regrow.weights.gates import Gate, parts

GATES = {"rnn": 1, "gru": 3, "lstm": 4, "rnn-cell": 1, "gru-cell": 3, "lstm-cell": 4}


@pytest.fixture(scope="module", autouse=True)
def cells() -> Iterator[None]:
    with gru_cells_are_stored():
        yield


with gru_cells_are_stored():
    STORED = [(kind, storage) for kind in GATES for storage in stored(kind) if GATES[kind] > 1]

# --- by hand: an LSTM cell of two units, whose third gate has much smaller weights

MASK = torch.tensor([[1, 1], [1, 0], [1, 1], [0, 1], [1, 0], [1, 1], [1, 1], [1, 0]], dtype=torch.bool)
VALUES = torch.tensor(
    [[5.0, -6.0], [7.0, 0.0], [8.0, 9.0], [0.0, -5.0], [0.1, 0.0], [0.2, -0.3], [-7.0, 6.0], [9.0, 0.0]]
)
GRADIENT = torch.tensor(
    [[0.0, 0.0], [0.0, 1.0], [0.0, 0.0], [2.0, 0.0], [0.0, 30.0], [0.0, 0.0], [0.0, 0.0], [0.0, 4.0]]
)


def by_hand(gates: str, method: type[regrow.Method], **options: Any) -> tuple[Tensor, Tensor]:
    """Mask and values after one update, by which a third of each weight's connections go."""
    cell = nn.LSTMCell(1, 2)
    model = regrow.sparsify(
        cell, init={"weight_hh": MASK}, include="weight_hh", gates=gates, storage="masked"
    )
    with torch.no_grad():
        cell.weight_hh.copy_(VALUES)
    optimizer = SGD(model.parameters(), lr=1e-30)
    driver = method(model, optimizer, total_steps=8, update_every=1, drop_fraction=1 / 3, **options)
    for _ in range(2):
        optimizer.zero_grad()
        (cell.weight_hh * GRADIENT).sum().backward()
        optimizer.step()
    driver.detach()
    return cell.weight_hh_mask.clone(), cell.weight_hh.detach().clone()


def test_together_the_gates_exchange_connections() -> None:
    mask, values = by_hand("together", regrow.RigL, schedule="constant")
    # 4 of 12 go: the gate of small weights loses all three, and one 5 of another; they come where the gradient is
    expected = MASK.clone()
    expected[4, 0] = expected[5, 0] = expected[5, 1] = expected[0, 0] = False
    expected[4, 1] = expected[7, 1] = expected[3, 0] = expected[1, 1] = True
    assert torch.equal(mask, expected)
    assert [int(gate.sum()) for gate in mask.view(4, -1)] == [3, 4, 1, 4]
    assert torch.equal(values, VALUES * (MASK & expected))


def test_apart_each_gate_keeps_its_own() -> None:
    mask, values = by_hand("apart", regrow.RigL, schedule="constant")
    # one of the three in each gate goes, and one comes: in the first, second, third and fourth
    expected = MASK.clone()
    expected[0, 0] = expected[3, 1] = expected[4, 0] = expected[6, 1] = False
    expected[1, 1] = expected[3, 0] = expected[4, 1] = expected[7, 1] = True
    assert torch.equal(mask, expected)
    assert [int(gate.sum()) for gate in mask.view(4, -1)] == [3, 3, 3, 3]
    assert torch.equal(values, VALUES * (MASK & expected))


@pytest.mark.parametrize("gates", ["together", "apart"])
def test_by_hand_at_random(gates: str) -> None:
    mask, values = by_hand(gates, regrow.SelfishRNN, final_fraction=1 / 3)
    gone = [(0, 0), (4, 0), (5, 0), (5, 1)] if gates == "together" else [(0, 0), (3, 1), (4, 0), (6, 1)]
    survivors = MASK.clone()
    for place in gone:
        survivors[place] = False
    assert (mask | ~survivors).all()
    assert int(mask.sum()) == 12
    if gates == "apart":
        assert [int(gate.sum()) for gate in mask.view(4, -1)] == [3, 3, 3, 3]
    back = values[mask & ~survivors]
    assert all(float(value) in (0.0, *(float(VALUES[place]) for place in gone)) for value in back)


# --- at the start


@pytest.mark.parametrize("kind", GATES)
def test_the_connections_of_a_weight_are_shared_evenly(kind: str) -> None:
    if GATES[kind] == 1:
        with pytest.raises(RegrowValueError, match="`gates` is 'apart', but none of .* has several gates"):
            network(kind, gates="apart")
        return
    together, apart = network(kind), network(kind, gates="apart")
    for one, other in zip(sparse_weights(together), sparse_weights(apart), strict=True):
        assert one.nnz == other.nnz
        shares = counts(other, GATES[kind])
        assert max(shares) - min(shares) <= 1
        assert shares == sorted(shares, reverse=True)
        assert (one.record.gates, other.record.gates) == (1, GATES[kind])
        assert other.record.asked == one.record.asked


def test_the_largest_of_each_gate() -> None:
    model = nn.LSTM(3, 2)
    with torch.no_grad():
        model.weight_ih_l0.copy_(torch.arange(24.0).view(8, 3))
    regrow.sparsify(model, 0.75, "uniform", include="weight_ih_l0", init="magnitude", gates="apart")
    (mask,) = regrow.masks(model).values()
    two, one = [False] * 4 + [True] * 2, [False] * 5 + [True]
    assert torch.equal(mask.view(4, 6), torch.tensor([two, two, one, one]))


def test_what_cannot_be() -> None:
    with pytest.raises(RegrowValueError, match="`gates` must be .*together.*apart"):
        network("lstm", gates="each")
    with pytest.raises(RegrowValueError, match="`gates` is 'apart', but none of"):
        regrow.sparsify(nn.Sequential(nn.Linear(4, 4)), 0.5, gates="apart")
    with pytest.raises(RegrowValueError, match="would get 3 connections for 4 gates"):
        regrow.sparsify(nn.LSTM(5, 5), 0.97, "uniform", include="weight_ih_l0", gates="apart")

    class Own(regrow.Method):
        def update(self, step: int, weights: list[SparseWeight]) -> None:
            """Would move whole weights."""

    class Remembers(regrow.SET):
        def drop(self, weight: SparseWeight, fraction: float) -> Tensor:
            self.remember(weight, "regrow_own", weight.values())
            return super().drop(weight, fraction)

    model = network("lstm", gates="apart")
    driver, optimizer = driven(model, Remembers)
    with pytest.raises(
        RegrowRuntimeError, match=r"`cell.weight_ih_l0\[0\]` is a gate that is apart, and state is of"
    ):
        train(model, optimizer, 0, EVERY + 1)
    driver.detach()
    model = network("lstm", gates="apart")
    with pytest.raises(RegrowValueError, match="Own moves whole weights, and the gates of"):
        Own(model, SGD(model.parameters(), lr=0.1))
    regrow.Static(model, SGD(model.parameters(), lr=0.1)).detach()


# --- in training

KEEP: dict[str, tuple[type[regrow.Method], dict[str, Any]]] = {
    "rigl": (regrow.RigL, {}),
    "rigl in some columns": (regrow.RigL, {"grow_columns": 4}),
    "set": (regrow.SET, {"per_sign": True, "grow_init": "normal"}),
    "itop": (regrow.ITOP, {}),
    "selfish-rnn": (regrow.SelfishRNN, {}),
    "snfs": (regrow.SNFS, {"redistribution": False}),
}


@pytest.mark.parametrize(("kind", "storage"), STORED)
@pytest.mark.parametrize("name", KEEP)
def test_each_gate_keeps_its_number(name: str, kind: str, storage: str) -> None:
    method, options = KEEP[name]
    if name == "snfs" and storage == "compressed":
        return  # which it refuses on any weight
    model, masked = network(kind, storage, gates="apart"), network(kind, gates="apart")
    before = [counts(weight, GATES[kind]) for weight in sparse_weights(model)]
    topologies = set()

    def check(step: int) -> None:
        assert [counts(weight, GATES[kind]) for weight in sparse_weights(model)] == before, step
        topologies.add(tuple(weight.fingerprint() for weight in sparse_weights(model)))

    records: list[dict[str, Any]] = []
    driver, optimizer = driven(model, method, **options)
    driver.register_update_hook(records.append)
    other, beside = driven(masked, method, **options)
    train(model, optimizer, 0, 6 * EVERY + 1, check)
    train(masked, beside, 0, 6 * EVERY + 1)
    assert len(topologies) > 4
    assert all(record["layers"].keys() == {w.name for w in sparse_weights(model)} for record in records)
    for one, another in zip(sparse_weights(model), sparse_weights(masked), strict=True):
        assert one.fingerprint() == another.fingerprint()
        torch.testing.assert_close(one.to_dense(), another.to_dense(), rtol=0, atol=1e-9)
    driver.detach()
    other.detach()


@pytest.mark.parametrize("kind", ["gru", "lstm-cell"])
@pytest.mark.parametrize(("method", "options"), [(regrow.Pruning, {}), (regrow.GraNet, {"scope": "layer"})])
def test_each_gate_is_pruned_to_the_final_sparsity(method: Any, options: dict[str, Any], kind: str) -> None:
    model = network(kind, gates="apart")
    driver, optimizer = driven(model, method, **options)
    train(model, optimizer, 0, 60)
    for weight in sparse_weights(model):
        size = (weight.shape[0] // GATES[kind], weight.shape[1])
        assert counts(weight, GATES[kind]) == [connections(size, 0.9)] * GATES[kind]
    driver.detach()


def test_snfs_moves_connections_from_gate_to_gate_as_between_layers() -> None:
    model = network("lstm", gates="apart")
    total = sum(weight.nnz for weight in sparse_weights(model))
    before = [counts(weight, 4) for weight in sparse_weights(model)]
    driver, optimizer = driven(model, regrow.SNFS)
    train(model, optimizer, 0, 4 * EVERY)
    assert sum(weight.nnz for weight in sparse_weights(model)) == total
    assert [counts(weight, 4) for weight in sparse_weights(model)] != before
    driver.detach()


def test_the_search_of_a_gate_is_exact_beyond_a_tile() -> None:
    """The dense gradient of a compressed gate is computed from its own rows alone, tile by tile."""
    torch.manual_seed(0)
    size = 800
    assert size * size > TILE
    model: Any = nn.ModuleDict({"cell": nn.GRUCell(3, size)})
    regrow.sparsify(model, 0.9, "uniform", include="cell", storage="compressed", gates="apart")
    optimizer = SGD(model.parameters(), lr=0.1)
    driver = regrow.RigL(model, optimizer, total_steps=9, update_every=1)
    for step in range(2):
        optimizer.zero_grad()
        model["cell"](torch.randn(4, 3), torch.randn(4, size)).square().sum().backward()
        if not step:
            optimizer.step()
    weight = next(w for w in sparse_weights(model) if w.parameter_name == "weight_hh")
    dense = torch.cat([tile.clone() for _, tile in weight.dense_gradient().tiles()]).view(-1)
    for gate in parts([weight]):
        assert isinstance(gate, Gate)
        none = torch.empty(0, dtype=torch.int64)
        own = dense[gate.start : gate.start + gate.numel]
        for survivors in (none, gate.positions()):
            found = gate.best(500, survivors, lambda g, *_: g.abs())
            free = own.abs().clone()
            free[survivors] = -1
            assert torch.equal(found, free.topk(500).indices.sort().values)
            assert torch.equal(found, gate.best(500, survivors, gradient_magnitude))
    driver.detach()


# --- copies and files


def gates_of(model: nn.Module) -> list[int]:
    return [weight.record.gates for weight in sparse_weights(model)]


@pytest.mark.parametrize(("kind", "storage"), STORED)
def test_copies_and_files_know_that_gates_are_apart(kind: str, storage: str, tmp_path: Path) -> None:
    model = network(kind, storage, gates="apart")
    expected = [GATES[kind]] * 2
    assert gates_of(copy.deepcopy(model)) == expected
    if "recurrent" not in type(model.cell).__module__ or storage == "masked":
        assert gates_of(pickle.loads(pickle.dumps(model))) == expected
    file = regrow.save(model, tmp_path / "model.safetensors")
    loaded = regrow.load(file, regrow.densify(network(kind, storage, gates="apart")))
    assert gates_of(loaded) == expected
    assert gates_of(regrow.load(file, network(kind, storage))) == [1, 1], "as the model was made"
    again = network(kind, storage, gates="apart")
    again.load_state_dict(model.state_dict())
    assert gates_of(again) == expected
    driver, optimizer = driven(loaded, regrow.SET)
    before = [counts(weight, GATES[kind]) for weight in sparse_weights(loaded)]
    train(loaded, optimizer, 0, 3 * EVERY)
    assert [counts(weight, GATES[kind]) for weight in sparse_weights(loaded)] == before
    driver.detach()


def test_compress_keeps_them_apart() -> None:
    model = network("gru-cell", gates="apart")
    regrow.compress(model)
    assert gates_of(model) == [3, 3]
