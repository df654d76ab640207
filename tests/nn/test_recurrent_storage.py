"""Recurrent layers and their storage: every method on both, files, copies, conversions, compilation."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from recurrent_layers import KINDS, assert_same, layer, pair, sparse
from torch import Tensor, fx, nn
from torch.optim import SGD

import regrow
from regrow.errors import RegrowError
from regrow.methods.registry import MethodRecord, methods
from regrow.nn import SparseGRU, SparseLSTM, SparseRNN
from regrow.ops import native
from regrow.testing import EVERY, Case

kinds = pytest.mark.parametrize("kind", KINDS)
X = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Network(nn.Module):
    """A recurrent layer and a read-out."""

    def __init__(self, kind: str, **ways: Any) -> None:
        super().__init__()
        self.rnn, self.head = KINDS[kind](6, 8, **ways), nn.Linear(8 * (1 + ways.get("bidirectional", 0)), 3)

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.rnn(x)
        logits: Tensor = self.head(output)
        return logits


def network(
    kind: str, storage: str, sparsity: float = 0.6, pattern: str | None = None, **ways: Any
) -> nn.Module:
    torch.manual_seed(0)
    model = Network(kind, **ways).double()
    return regrow.sparsify(model, sparsity, "uniform", include=["rnn"], storage=storage, pattern=pattern)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    """Take an ordinary step; each time step says which of three sums is the largest."""
    x = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
    classes = x.cumsum(0).unflatten(2, (3, 2)).sum(3).argmax(2)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x).flatten(0, 1), classes.flatten()).backward()
    optimizer.step()


def topology(model: nn.Module) -> list[int]:
    return [weight.fingerprint() for weight in regrow.weights.sparse_weights(model)]


BOTH = [record for record in methods().values() if {"masked", "compressed"} <= set(record.storages)]


@pytest.mark.parametrize("kind", ["gru", "lstm"])
@pytest.mark.parametrize("record", BOTH, ids=lambda record: record.name)
def test_every_method_does_the_same_on_both_storages(kind: str, record: MethodRecord) -> None:
    ways = {"num_layers": 2} if kind == "gru" else {"bidirectional": True}
    models = [network(kind, storage, pattern=record.pattern, **ways) for storage in ("masked", "compressed")]
    optimizers = [SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=1e-4) for model in models]
    drivers = [
        Case(record.cls, options={"total_steps": 60}).method(model, optimizer)
        for model, optimizer in zip(models, optimizers, strict=True)
    ]
    before = topology(models[1])
    for number in range(5 * EVERY):
        for model, optimizer in zip(models, optimizers, strict=True):
            step(model, optimizer, number)
        assert topology(models[0]) == topology(models[1]), number
    assert record.cls is regrow.Static or topology(models[1]) != before
    masked, compressed = (regrow.dense_state_dict(model) for model in models)
    for name, tensor in masked.items():
        torch.testing.assert_close(compressed[name], tensor, rtol=0, atol=1e-9)
    assert [driver.step for driver in drivers] == [5 * EVERY] * 2


@pytest.mark.skipif(not native.available(), reason="no kernels here")
def test_candidates_are_the_sum_over_time_steps() -> None:
    """RigL grows where the dense gradient of the whole sequence is largest, in a weight of each kind."""
    model = network("gru", "compressed")
    optimizer = SGD(model.parameters(), lr=0.1)
    rigl = regrow.RigL(model, optimizer, total_steps=100, update_every=2)
    for number in range(2):
        step(model, optimizer, number)
    before = regrow.masks(model)
    dense = regrow.densify(_copy(model))
    step(dense, SGD(dense.parameters(), lr=0.0), 2)
    step(model, optimizer, 2)
    after = regrow.masks(model)
    assert rigl.step == 3
    for name in ("rnn.weight_ih_l0", "rnn.weight_hh_l0"):
        grown, free = after[name] & ~before[name], ~before[name]
        gradient = dense.get_parameter(name).grad
        assert gradient is not None
        assert grown.any()
        assert gradient.abs()[grown].min() >= gradient.abs()[free & ~grown].max()


def _copy(model: nn.Module) -> nn.Module:
    """Return a copy of a model that a method drives, which it does not drive."""
    other = network("gru", "compressed")
    other.load_state_dict(model.state_dict())
    return other


# --- conversions


@kinds
def test_there_and_back(kind: str) -> None:
    model = layer(kind, 4, 6, 2, batch_first=True, dropout=0.25)
    model.eval()
    biases = {name: p for name, p in model.named_parameters() if "bias" in name}
    model[0].weight_ih_l1.requires_grad_(False)
    regrow.sparsify(model, 0.5, "uniform", include=["*"], storage="compressed")
    assert isinstance(model[0], SparseGRU | SparseLSTM | SparseRNN)
    assert not model[0].training
    assert not model[0].weight_ih_l1_values.requires_grad
    assert all(model.get_parameter(name) is p for name, p in biases.items())
    expected, values = model(X.transpose(0, 1)), regrow.dense_state_dict(model)
    regrow.densify(model)
    assert type(model[0]) is type(layer(kind, 4, 6)[0])
    assert (model[0].num_layers, model[0].batch_first, model[0].dropout) == (2, True, 0.25)
    assert not model[0].training
    assert not model[0].weight_ih_l1.requires_grad
    assert all(model.get_parameter(name) is p for name, p in biases.items())
    assert list(model.state_dict()) == list(values)
    assert_same(model(X.transpose(0, 1)), expected)


@kinds
@pytest.mark.parametrize("frm", ["masked", "compressed", None])
@pytest.mark.parametrize("into", ["masked", "compressed"])
def test_state_dicts_of_either_form_are_loaded(kind: str, frm: str | None, into: str) -> None:
    sizes = (4, 6, 2)
    model = layer(kind, *sizes, seed=1) if frm is None else sparse(kind, *sizes, storage=frm, seed=1)
    other = sparse(kind, *sizes, storage=into, seed=2)
    own = regrow.masks(other)
    other.load_state_dict(model.state_dict())
    if frm is None:  # the present topology cuts a dense one
        for name, mask in own.items():
            assert torch.equal(regrow.masks(other)[name], mask)
            model.get_parameter(name).data *= mask
    assert_same(other[0](X), model[0](X))
    plain = layer(kind, *sizes, seed=3)
    plain.load_state_dict(regrow.dense_state_dict(other))
    assert_same(plain[0](X), model[0](X))


@kinds
def test_files_copies_and_pickles(kind: str, tmp_path: Path) -> None:
    model = sparse(kind, 4, 6, 2, bidirectional=True)
    expected = model[0](X)
    file = regrow.save(model, tmp_path / "model.safetensors")
    for into in (
        layer(kind, 4, 6, 2, bidirectional=True, seed=5),
        sparse(kind, 4, 6, 2, bidirectional=True, seed=6),
    ):
        loaded: Any = regrow.load(file, into=into)
        assert "Sparse" in type(loaded[0]).__name__
        assert_same(loaded[0](X), expected, 0.0)
    torch.save(model, tmp_path / "model.pt")
    others = (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(tmp_path / "model.pt", weights_only=False),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for other in others:
        assert_same(other[0](X), expected, 0.0)
        assert regrow.is_sparse(other)
        train = SGD(other.parameters(), lr=0.1)
        driver = regrow.RigL(other, train, total_steps=10, update_every=2)
        for _ in range(2):
            train.zero_grad()
            other[0](X)[0].square().sum().backward()
            train.step()
        assert driver.step == 2


@kinds
def test_compress_in_the_middle_of_a_run(kind: str) -> None:
    models = [network(kind, "masked", num_layers=2) for _ in range(2)]
    optimizers = [SGD(model.parameters(), lr=0.1, momentum=0.9) for model in models]
    for model, optimizer in zip(models, optimizers, strict=True):
        for number in range(3):
            step(model, optimizer, number)
    regrow.compress(models[1], optimizers[1])
    assert {row.storage for row in regrow.summary(models[1]).rows if "rnn" in row.name} == {"compressed"}
    for model, optimizer in zip(models, optimizers, strict=True):
        for number in range(3, 6):
            step(model, optimizer, number)
    masked, compressed = (regrow.dense_state_dict(model) for model in models)
    for name, tensor in masked.items():
        torch.testing.assert_close(compressed[name], tensor, rtol=0, atol=1e-12)


def test_compress_keeps_what_is_known_of_the_dense_weights() -> None:
    model = layer("gru", 4, 6)
    regrow.sparsify(model, 0.5, "uniform", include=["0.weight_hh_l0"], storage="masked")
    before = regrow.summary(model).rows
    regrow.compress(model)
    after = regrow.summary(model).rows
    assert {row.name: row.reason for row in before} == {row.name: row.reason for row in after}
    assert {row.name: row.storage for row in after} == {
        "0.weight_ih_l0": "dense",
        "0.weight_hh_l0": "compressed",
    }


@pytest.mark.parametrize("which", ["all", "recurrent"])
def test_on_the_meta_device_they_are_never_dense(which: str) -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.LSTM(40, 50, 2))
    include = ["0"] if which == "all" else ["0.weight_hh*"]
    torch.manual_seed(0)
    regrow.sparsify(model, 0.9, "uniform", include=include, storage="compressed")
    assert not any(p.is_meta for p in model.parameters())
    assert len(list(model.parameters())) == 8
    for name, parameter in model.named_parameters():
        assert parameter.detach().abs().max() <= 50**-0.5, name
        assert float(parameter.detach().std()) == pytest.approx((3 * 50) ** -0.5, rel=0.25), name
    output, _ = model[0](torch.randn(3, 2, 40))
    output.sum().backward()


def test_a_giant_on_the_meta_device() -> None:
    """Its dense weights would take 2.4 TB."""
    with torch.device("meta"):
        model = nn.Sequential(nn.GRU(10, 400_000))
    share = {"0.weight_ih_l0": 0.9, "0.weight_hh_l0": 1 - 1e-7}
    regrow.sparsify(model, distribution=share, storage="compressed")
    output, _ = model[0](torch.randn(2, 2, 10))
    output.sum().backward()


# --- refused, or masked with the reason


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
@pytest.mark.parametrize(
    ("ways", "include", "message"),
    [
        ({"proj_size": 3}, ["*"], r"an LSTM with projections \(proj_size=3\) has no compressed form"),
        (
            {},
            ["0.weight_ih_l0"],
            "LSTM has a compressed form with weight_hh_l0 and what is sparse beside them",
        ),
        ({"num_layers": 2}, ["0.weight_*_l0"], "compressed form with weight_hh_l0, weight_hh_l1 and what"),
    ],
)
def test_what_has_no_compressed_form(ways: dict[str, Any], include: list[str], message: str) -> None:
    options: dict[str, Any] = {"sparsity": 0.5, "distribution": "uniform", "include": include}
    with pytest.raises(RegrowError, match=message):
        regrow.sparsify(layer("lstm", 4, 6, **ways), storage="compressed", **options)
    model = regrow.sparsify(layer("lstm", 4, 6, **ways), storage="auto", **options)
    rows = [row for row in regrow.summary(model).rows if row.storage != "dense"]
    assert {row.storage for row in rows} == {"masked"}
    model(X)


def test_storages_are_not_mixed_in_a_layer() -> None:
    storage = {"0.weight_ih_l0": "masked", "0.weight_hh_l0": "compressed"}
    with pytest.raises(RegrowError, match="GRU has a compressed form with weight_hh_l0"):
        regrow.sparsify(layer("gru", 4, 6), 0.5, include=["*"], storage=storage)
    model = layer("gru", 4, 6)
    regrow.sparsify(model, 0.5, "uniform", include=["0.weight_ih_l0"], storage="masked")
    with pytest.raises(RegrowError, match="weight_ih_l0 beside it is sparse already"):
        regrow.sparsify(model, 0.5, "uniform", include=["0.weight_hh_l0"], storage="compressed")


@pytest.mark.skipif(not native.available(), reason="no kernels here")
@pytest.mark.parametrize(
    ("make", "sparsity", "storage", "reason"),
    [
        (lambda: nn.GRU(128, 512), 0.9, "compressed", "faster so on this device"),
        (lambda: nn.LSTM(64, 512, 2, bidirectional=True), 0.95, "compressed", "faster so on this device"),
        (lambda: nn.GRU(16, 512), 0.9, "compressed", "faster so on this device"),
        (lambda: nn.GRU(128, 512), 0.3, "masked", "faster masked at a density above"),
        (lambda: nn.LSTM(512, 32), 0.9, "masked", "too small to be faster compressed"),
        (lambda: nn.GRU(128, 512).half(), 0.9, "masked", "no kernels for torch.float16"),
        (lambda: nn.GRUCell(128, 512), 0.9, "masked", "GRUCell has no compressed form"),
    ],
)
def test_the_storage_that_is_chosen(make: Any, sparsity: float, storage: str, reason: str) -> None:
    rows = regrow.summary(regrow.sparsify(nn.Sequential(make()), sparsity, "uniform", include=["*"])).rows
    assert {row.storage for row in rows} == {storage}
    assert all(reason in row.reason for row in rows)


# --- what looks at models


@kinds
def test_costs_and_times(kind: str) -> None:
    masked, compressed = (network(kind, storage, num_layers=2) for storage in ("masked", "compressed"))
    x = torch.randn(4, 1, 6, dtype=torch.float64)
    assert regrow.costs(compressed, x).layers == regrow.costs(masked, x).layers
    found = regrow.explain(compressed, x, seconds=0.001)
    (row,) = found.layers
    weights = regrow.weights.sparse_weights(compressed)
    assert (row.name, row.storage) == ("rnn", "compressed")
    assert row.shape == (sum(weight.numel for weight in weights),)
    assert row.density == sum(weight.nnz for weight in weights) / row.shape[0]
    assert row.milliseconds > 0 < row.dense_milliseconds
    assert not found.untimed


def test_torch_fx_sees_one_call() -> None:
    model = network("lstm", "compressed")
    traced = fx.symbolic_trace(model)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["rnn", "head"]
    x = torch.randn(4, 2, 6, dtype=torch.float64)
    assert torch.equal(traced(x), model(x))


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_torch_compile_around_it(kind: str) -> None:
    torch._dynamo.reset()
    models = [network(kind, "compressed", num_layers=2, bidirectional=True) for _ in range(2)]
    optimizers = [SGD(model.parameters(), lr=0.1, momentum=0.9) for model in models]
    drivers = [
        regrow.RigL(model, optimizer, total_steps=60, update_every=3)
        for model, optimizer in zip(models, optimizers, strict=True)
    ]
    ways = [torch.compile(models[0], backend="aot_eager", fullgraph=True), models[1]]
    before = topology(models[0])
    for number in range(8):
        for way, optimizer in zip(ways, optimizers, strict=True):
            step(way, optimizer, number)
        assert topology(models[0]) == topology(models[1]), number
    assert topology(models[0]) != before
    assert [driver.step for driver in drivers] == [8, 8]
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore")  # dynamo tells of what it does not follow
def test_torch_compile_reads_a_weight() -> None:
    torch._dynamo.reset()
    module, _ = pair(sparse("gru", 4, 6))

    def penalty() -> Tensor:
        found: Tensor = module.weight_hh_l0.square().sum()
        return found

    torch.testing.assert_close(torch.compile(penalty, backend="aot_eager")(), penalty())


def test_substituted_values() -> None:
    """`torch.func.functional_call` with other values of the connections, as weight drop does it."""
    module, dense = pair(sparse("lstm", 4, 6))
    values = module.weight_hh_l0_values
    dropped = values * 2
    found = torch.func.functional_call(module, {"weight_hh_l0_values": dropped}, (X,))
    dense.weight_hh_l0.data *= 2
    assert_same(found, dense(X))
    found[0].sum().backward()
    assert values.grad is not None
