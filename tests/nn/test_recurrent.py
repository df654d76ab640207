"""`SparseGRU`, `SparseLSTM` and `SparseRNN` against torch's layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recurrent_layers import KINDS, assert_same, assert_same_gradients, layer, pair, results, sparse
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import regrow
from regrow.errors import RegrowError, RegrowRuntimeError
from regrow.nn import SparseGRU, SparseLSTM, SparseRNN

SIZES = st.integers(1, 7)
kinds = pytest.mark.parametrize("kind", KINDS)


def states(kind: str, *shape: int) -> Any:
    """Draw an initial state that gradients reach."""
    drawn = tuple(torch.randn(*shape, dtype=torch.float64, requires_grad=True) for _ in range(2))
    return drawn if kind == "lstm" else drawn[0]


def leaves(hx: Any) -> list[Tensor]:
    return [hx] if isinstance(hx, Tensor) else list(hx or ())


def run(module: Any, x: Any, hx: Any, seed: int) -> tuple[Any, list[Tensor]]:
    """Run a layer, and send gradients back from all that it returns; its results, and the gradients of what it got."""
    given = [x.data if isinstance(x, PackedSequence) else x, *leaves(hx)]
    given[0].requires_grad_()
    for each in given:
        each.grad = None
    output = module(x, hx)
    torch.manual_seed(seed)
    floating = [each for each in results(output) if each.requires_grad]
    torch.autograd.backward(
        floating, [torch.randn_like(each, memory_format=torch.contiguous_format) for each in floating]
    )
    return output, [each.grad.clone() for each in given]


def compare(model: nn.Sequential, x: Any, hx: Any = None, seed: int = 0) -> None:
    module, dense = pair(model)
    (found, own), (expected, theirs) = run(module, x, hx, seed), run(dense, x, hx, seed)
    assert_same(found, expected)
    for a, b in zip(own, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)
    assert_same_gradients(module, dense)


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(list(KINDS)),
    sizes=st.tuples(SIZES, SIZES, st.integers(1, 3)),
    time=SIZES,
    batch=SIZES | st.none() | st.just(33),
    ways=st.fixed_dictionaries({name: st.booleans() for name in ("bias", "batch_first", "bidirectional")}),
    sparsity=st.sampled_from([0.0, 0.4, 0.8]),
    initial=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_outputs_states_and_gradients_are_those_of_torch(
    kind: str,
    sizes: tuple[int, int, int],
    time: int,
    batch: int | None,
    ways: dict[str, bool],
    sparsity: float,
    initial: bool,
    seed: int,
) -> None:
    model = sparse(kind, *sizes, sparsity=sparsity, seed=seed, **ways)
    lead = [time] if batch is None else [batch, time] if ways["batch_first"] else [time, batch]
    x = torch.randn(*lead, sizes[0], dtype=torch.float64)
    number = sizes[2] * (1 + ways["bidirectional"])
    state = [number, sizes[1]] if batch is None else [number, batch, sizes[1]]
    compare(model, x, states(kind, *state) if initial else None, seed)


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(list(KINDS)),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    ordered=st.booleans(),
    layers=st.integers(1, 2),
    bidirectional=st.booleans(),
    initial=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_packed_sequences(
    kind: str, lengths: list[int], ordered: bool, layers: int, bidirectional: bool, initial: bool, seed: int
) -> None:
    model = sparse(kind, 3, 5, layers, bidirectional=bidirectional, batch_first=True, seed=seed)
    lengths = sorted(lengths, reverse=True) if ordered else lengths
    given = [torch.randn(length, 3, dtype=torch.float64) for length in lengths]
    packed = pack_sequence(given, enforce_sorted=ordered)
    hx = states(kind, layers * (1 + bidirectional), len(lengths), 5) if initial else None
    compare(model, packed, hx, seed)


@pytest.mark.filterwarnings("ignore:the values of")  # gradcheck writes each entry of them
@kinds
def test_gradients_are_right_and_differentiable(kind: str) -> None:
    module, _ = pair(sparse(kind, 2, 3, 1, bidirectional=True))
    x = torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=True)
    hx = states(kind, 2, 2, 3)
    values = [p for p in module.parameters() if p.dim() == 2]

    def function(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        initial = rest[: len(leaves(hx))]
        return tuple(results(module(x, initial if kind == "lstm" else initial[0])))

    inputs = (x, *leaves(hx), *values)
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs[: 1 + len(leaves(hx))])


@kinds
def test_some_weights_stay_dense(kind: str) -> None:
    """Those from the input may; they stay the very parameters, and `summary` and `costs` tell of them."""
    model = layer(kind, 4, 6, 2)
    before = dict(model.named_parameters())
    regrow.sparsify(model, 0.5, "uniform", include=["0.weight_hh_l*"], storage="compressed")
    assert isinstance(model[0], SparseGRU | SparseLSTM | SparseRNN)
    assert all(model.get_parameter(name) is before[name] for name in ("0.weight_ih_l0", "0.bias_hh_l1"))
    compare(model, torch.randn(3, 2, 4, dtype=torch.float64))
    rows = {row.name: row for row in regrow.summary(model).rows}
    assert {name: row.storage for name, row in rows.items()} == {
        f"0.weight_{way}_l{i}": {"ih": "dense", "hh": "compressed"}[way]
        for i in (0, 1)
        for way in ("ih", "hh")
    }
    x = torch.randn(3, 1, 4, dtype=torch.float64)
    masked = layer(kind, 4, 6, 2)
    regrow.sparsify(masked, 0.5, "uniform", include=["0.weight_hh_l*"], storage="masked")
    assert regrow.costs(model, x).layers == regrow.costs(masked, x).layers


@kinds
def test_dropout_is_between_the_layers(kind: str) -> None:
    module, dense = pair(sparse(kind, 3, 5, 3, dropout=1.0))
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    assert_same(module(x), dense(x))
    assert_same(module.eval()(x), dense.eval()(x))
    module, _ = pair(sparse(kind, 3, 64, 2, dropout=0.5))
    x = x.expand(4, 2, 3)
    first = module(x)[0]
    assert not torch.equal(first, module(x)[0])
    module.dropout = 0.0
    assert torch.equal(module(x)[0], module.eval()(x)[0])


@kinds
def test_without_gradients_and_cast(kind: str) -> None:
    module, dense = pair(sparse(kind, 4, 6))
    x = torch.randn(3, 2, 4, dtype=torch.float64)
    with torch.no_grad():
        found = module(x)
        assert_same(found, dense(x))
    assert not any(each.requires_grad for each in results(found))
    with torch.inference_mode():
        assert_same(module(x), found)
    module = module.float()
    exact = results(module(x.float()))
    with torch.autocast("cpu", torch.bfloat16):
        cast = results(module(x.float()))
        again = results(module(x.float(), states(kind, 1, 2, 6)))
    assert {each.dtype for each in (*cast, *again)} == {torch.bfloat16}
    for a, b in zip(cast, exact, strict=True):
        torch.testing.assert_close(a.float(), b, rtol=0.05, atol=0.05)
    half = results(module.bfloat16()(x.bfloat16()))
    for a, b in zip(half, exact, strict=True):
        torch.testing.assert_close(a.float(), b, rtol=0.05, atol=0.05)


def test_an_empty_batch() -> None:
    for kind in KINDS:
        module, dense = pair(sparse(kind, 4, 6, 2, bidirectional=True))
        x = torch.randn(3, 0, 4, dtype=torch.float64)
        assert_same(module(x), dense(x))


# --- what other people's code does with the layer


@kinds
def test_weights_can_be_read(kind: str) -> None:
    module, dense = pair(sparse(kind, 4, 6, 2, bidirectional=True))
    module.flatten_parameters()
    assert [len(each) for each in module.all_weights] == [len(each) for each in dense.all_weights]
    for name, parameter in dense.named_parameters():
        weight = getattr(module, name)
        assert weight.shape == parameter.shape
        assert torch.equal(weight.detach() + 0, parameter.detach())
    flat = [(weight + 0).detach() for weight in module._flat_weights]
    assert all(torch.equal(a, b) for a, b in zip(flat, dense._flat_weights, strict=True))
    penalty = module.weight_hh_l1.square().sum() + sum(weight.abs().sum() for weight in module._flat_weights)
    penalty.backward()
    (dense.weight_hh_l1.square().sum() + sum(w.abs().sum() for w in dense.parameters())).backward()
    assert_same_gradients(module, dense)
    assert "connections=" in repr(module.weight_hh_l1)
    assert "connections=" in repr(module)


def test_weights_cannot_be_written() -> None:
    module, _ = pair(sparse("lstm", 4, 6))
    writes: list[Any] = [
        lambda: nn.init.orthogonal_(module.weight_hh_l0),
        lambda: nn.init.xavier_uniform_(module.weight_ih_l0),
        lambda: setattr(module, "weight_hh_l0", nn.Parameter(torch.zeros(24, 6))),
    ]
    for write in writes:
        with pytest.raises(
            RegrowRuntimeError, match=r"`weight_.h_l0` of a layer in compressed storage is read-only"
        ):
            write()
    module.bias_hh_l0.data.zero_()
    with pytest.raises(AttributeError, match="no attribute 'weight_hh_l1'"):
        module.weight_hh_l1


@kinds
def test_reset_parameters_draws_as_torch_does(kind: str) -> None:
    module, _ = pair(sparse(kind, 30, 50, 2))
    masks = regrow.masks(nn.Sequential(module))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.01)
    module.reset_parameters()
    bound = 50**-0.5
    for name, parameter in regrow.dense_state_dict(nn.Sequential(module)).items():
        values = parameter[masks[name]] if name in masks else parameter
        assert values.abs().max() <= bound, name
        assert float(values.std()) == pytest.approx(bound / 3**0.5, rel=0.25), name


# --- the constructor


def test_the_constructor() -> None:
    positions = {"weight_hh_l0": torch.arange(0, 108, 3)}
    values = {"weight_hh_l0": torch.ones(36, dtype=torch.float64)}
    gru = SparseGRU(4, 6, positions=positions, values=values)
    assert gru.weight_ih_l0.dtype == torch.float64
    assert gru.weight_ih_l0.abs().max() <= 6**-0.5
    assert float((gru.weight_hh_l0 != 0).sum()) == 36
    output, h = gru(torch.randn(5, 3, 4, dtype=torch.float64))
    assert (output.shape, h.shape) == ((5, 3, 6), (1, 3, 6))
    dense = gru.to_dense({"weight_hh_l0": gru.weight_hh_l0.detach() + 0})
    assert type(dense) is nn.GRU
    assert dense.weight_ih_l0 is gru.weight_ih_l0
    relu = SparseRNN(4, 6, 1, "relu", positions={"weight_hh_l0": torch.arange(36)}, values=values)
    assert relu.nonlinearity == relu.to_dense({"weight_hh_l0": torch.zeros(6, 6)}).nonlinearity == "relu"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"proj_size": 2}, "`proj_size` must be 0, got 2.\nUse storage='masked'"),
        ({"positions": {}}, "`values` must have the keys of `positions`"),
        (
            {"positions": {}, "values": {}},
            "`positions` must be those of weight_ih_l0, weight_hh_l0.*got none",
        ),
        (
            {"num_layers": 2},
            "`positions` must be those of weight_ih_l0, weight_hh_l0, weight_ih_l1, weight_hh_l1",
        ),
        (
            {"positions": {"weight_hh_l0": torch.tensor([3, 1])}},
            r"`positions\['weight_hh_l0'\]` must be int64, asc",
        ),
        (
            {"values": {"weight_hh_l0": torch.ones(3)}},
            r"`values\['weight_hh_l0'\]` must be floating point of shape",
        ),
        ({"dropout": 1.5}, "`dropout`"),
        ({"hidden_size": 2**30}, "`hidden_size`"),
    ],
)
def test_bad_arguments(changed: dict[str, Any], message: str) -> None:
    given = {
        "positions": {"weight_hh_l0": torch.tensor([1, 3])},
        "values": {"weight_hh_l0": torch.ones(2)},
        **changed,
    }
    with pytest.raises(RegrowError, match=message):
        SparseLSTM(**{"input_size": 4, "hidden_size": 6, **given})


# --- bad input


X = torch.randn(5, 3, 4, dtype=torch.float64)
H = torch.zeros(1, 3, 6, dtype=torch.float64)


@pytest.mark.parametrize(
    ("kind", "x", "hx", "message"),
    [
        ("gru", X[..., :3], None, r"`input` must be \(T, B, 4\) or \(T, 4\), got shape \(5, 3, 3\)"),
        ("gru", X[None], None, "`input` must be"),
        ("gru", X[:0], None, r"`input` must have a time step, got shape \(0, 3, 4\)"),
        ("gru", X.float(), None, "`input` must be of the weight's dtype torch.float64, got torch.float32"),
        ("gru", X, H[:, :2], r"`hx` must hold h_0 of shape \(1, 3, 6\).*got \(1, 2, 6\)"),
        ("gru", X, H[0], r"`hx` must hold h_0 of shape \(1, 3, 6\)"),
        ("gru", X[:, 0], H, r"`hx` must hold h_0 of shape \(1, 6\) .*\(layers \* directions, hidden_size\)"),
        ("gru", X, (H, H), "`hx` must be the tensor h_0, got tuple"),
        ("gru", X, H.float(), "`hx` must hold h_0 of torch.float64 on cpu, as `input`, got torch.float32"),
        ("lstm", X, H, r"`hx` must be a tuple \(h_0, c_0\), got Tensor"),
        ("lstm", X, (H, H[..., :5]), r"`hx` must hold c_0 of shape \(1, 3, 6\)"),
        (
            "gru",
            PackedSequence(X[:4, 0], torch.tensor([1, 3])),
            None,
            r"packed with its sequences sorted by length.*\[1, 3\]\nUse .*enforce_sorted=False",
        ),
        (
            "gru",
            PackedSequence(X[:4, 0], torch.tensor([3, 2])),
            None,
            "as many rows as its batch_sizes add up to, 5",
        ),
        (
            "gru",
            PackedSequence(X, torch.tensor([3, 2])),
            None,
            r"`input` must be \(rows of a packed sequence\)",
        ),
        ("gru", pack_padded_sequence(X, [5, 4, 1]), H[:, :2], r"`hx` must hold h_0 of shape \(1, 3, 6\)"),
    ],
)
def test_bad_input(kind: str, x: Any, hx: Any, message: str) -> None:
    module, dense = pair(sparse(kind, 4, 6))
    with pytest.raises(RegrowRuntimeError, match=message):
        module(x, hx)
    if isinstance(x, PackedSequence) and x.data.dim() == 2 and hx is None:
        return  # which torch takes, and reads what it likes
    with pytest.raises((RuntimeError, ValueError, AttributeError, IndexError)):
        dense(x, hx)
