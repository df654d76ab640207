"""Recurrent layers with a compressed weight against torch's own, dense and in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from machine import ISAS, threads, using
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from regrow._random import generator
from regrow.errors import RegrowRuntimeError, RegrowValueError
from regrow.ops import csr, listener
from regrow.ops.csr import Csr
from regrow.ops.listener import Operands
from regrow.ops.recurrent import scan, sparse_scan
from regrow.ops.unrolled import GATES

IMPLEMENTATIONS = [*ISAS, "reference"]
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 0.04}


class Case:
    """Operands of a recurrent layer, drawn from a seed."""

    def __init__(
        self,
        kind: str,
        time: int,
        batch: int,
        units: int,
        density: float = 0.4,
        dtype: torch.dtype = torch.float64,
        bias: bool = True,
        ragged: bool = False,
        seed: int = 0,
    ) -> None:
        draw = generator(seed, "recurrent")
        rows = GATES[kind] * units

        def drawn(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(*shape, generator=draw, dtype=torch.float64) * scale).to(dtype)

        self.kind = kind
        self.mask = torch.rand(rows, units, generator=draw) < density
        crow, col = csr.from_positions(self.mask.view(-1).nonzero().view(-1), rows, units)
        col = torch.cat([col, col.new_zeros(seed % 3)])
        self.index = Csr.of(crow, col, units)
        self.gates = drawn(time, batch, rows)
        self.initial = tuple(drawn(batch, units) for _ in range(1 + (kind == "lstm")))
        self.values = drawn(len(col), 1, scale=0.8 / max(density * units, 1) ** 0.5)
        self.bias = drawn(rows) if bias else None
        self.lengths = torch.randint(0, time + 1, (batch,), generator=draw) if ragged else None
        self.above = (drawn(time, batch, units), *(drawn(batch, units) for _ in self.initial))

    @property
    def leaves(self) -> list[Tensor]:
        return [self.gates, *self.initial, self.values, *([] if self.bias is None else [self.bias])]

    def scan(self, *leaves: Tensor) -> tuple[Tensor, ...]:
        """Output and final state."""
        gates, *rest = leaves
        initial, (values, *bias) = rest[: len(self.initial)], rest[len(self.initial) :]
        output, state = scan(
            self.kind, gates, initial, values, bias[0] if bias else None, self.index, lengths=self.lengths
        )
        return output, *state

    def gradients(self) -> tuple[list[Tensor], list[Tensor]]:
        """What `scan` returns, and the gradients of `leaves`."""
        own = [leaf.clone().requires_grad_() for leaf in self.leaves]
        found = self.scan(*own)
        return [part.detach() for part in found], list(torch.autograd.grad(found, own, self.above))

    def expected(self) -> tuple[list[Tensor], list[Tensor]]:
        """The same by torch's own module in float64, one sequence at a time where they end apart."""
        rows, units = self.mask.shape
        module: Any = {"gru": nn.GRU, "lstm": nn.LSTM}.get(self.kind, nn.RNN)
        options = {"nonlinearity": self.kind[4:]} if self.kind.startswith("rnn") else {}
        dense = module(rows, units, bias=self.bias is not None, **options).double()
        weight = torch.zeros(rows, units, dtype=torch.float64)
        weight[self.mask] = self.values[: int(self.mask.sum()), 0].double()
        with torch.no_grad():
            dense.weight_ih_l0.copy_(torch.eye(rows))
            dense.weight_hh_l0.copy_(weight)
            if self.bias is not None:
                dense.bias_ih_l0.zero_()
                dense.bias_hh_l0.copy_(self.bias)
        gates = self.gates.double().requires_grad_()
        initial = [part.double().requires_grad_() for part in self.initial]
        time, batch, _ = gates.shape
        outputs, states = [], []
        for b in range(batch):
            length = time if self.lengths is None else int(self.lengths[b])
            state: Any = tuple(part[None, b : b + 1] for part in initial)
            output = gates.new_zeros(0, 1, units)
            if length:
                output, state = dense(gates[:length, b : b + 1], state if len(state) > 1 else state[0])
                state = state if isinstance(state, tuple) else (state,)
            outputs.append(torch.cat([output, state[0].expand(time - length, 1, units)]))
            states.append(state)
        final = [torch.cat(parts, 1)[0] for parts in zip(*states, strict=True)]
        found = [torch.cat(outputs, 1), *final]
        leaves = [gates, *initial, dense.weight_hh_l0]
        leaves += [] if self.bias is None else [dense.bias_hh_l0]
        above = [part.double() for part in self.above]
        gradients = list(torch.autograd.grad(found, leaves, above, materialize_grads=True))
        at = 1 + len(initial)
        gradients[at] = gradients[at][self.mask]
        return [part.detach() for part in found], gradients


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(list(GATES)),
    time=st.integers(1, 5),
    batch=st.sampled_from([1, 2, 15, 16, 17, 20, 33, 50]),
    units=st.integers(1, 40),
    density=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    dtype=st.sampled_from(list(TOLERANCE)),
    bias=st.booleans(),
    ragged=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_output_and_gradients(
    implementation: str,
    kind: str,
    time: int,
    batch: int,
    units: int,
    density: float,
    dtype: torch.dtype,
    bias: bool,
    ragged: bool,
    seed: int,
) -> None:
    case = Case(kind, time, batch, units, density, dtype, bias, ragged, seed)
    with using(implementation):
        found, gradients = case.gradients()
    expected, expected_gradients = case.expected()
    assert found[0].shape == (time, batch, units)
    nnz = int(case.mask.sum())
    at = 1 + len(case.initial)
    assert not gradients[at][nnz:].any()
    gradients[at] = gradients[at][:nnz, 0]
    for one, other in zip([*found, *gradients], [*expected, *expected_gradients], strict=True):
        assert one.dtype == dtype
        scale = max(1.0, float(other.abs().max())) if other.numel() else 1.0
        torch.testing.assert_close(one.double(), other, rtol=0, atol=TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", list(GATES))
@pytest.mark.parametrize("density", [0.02, 0.3])
def test_many_units_and_the_number_of_threads(isa: str, kind: str, density: float) -> None:
    """Several parts and blocks of the weight, and slices of the batch; a number of threads changes no bit."""
    case = Case(kind, 2, 52, 900, density, torch.float32)
    results = []
    for number in (1, 2, 3):
        with threads(number), using(isa):
            found, gradients = case.gradients()
        results.append([*found, *gradients])
    for several in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], several, strict=True))
    with using("reference"):
        found, gradients = case.gradients()
    for one, other in zip(results[0], [*found, *gradients], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-7), (torch.float64, 1e-15)])
def test_gates_over_their_whole_range(isa: str, dtype: torch.dtype, tolerance: float) -> None:
    """Without connections an RNN is tanh of its gates; with n = 0 and h = 1 a GRU is sigmoid of z."""
    x = torch.cat([torch.linspace(-120, 120, 4001), torch.tensor([1e-30, -0.0, float("inf"), -float("inf")])])
    x = torch.cat([x, torch.tensor([float("nan")])]).to(dtype)[None, :, None]
    none = x.new_zeros(0, 1)
    empty = torch.zeros(0, dtype=torch.int64)
    rnn, gru = (Csr.of(*csr.from_positions(empty, rows, 1), 1) for rows in (1, 3))
    start = x.new_zeros(x.shape[1], 1)
    with using(isa):
        tanh, _ = scan("rnn_tanh", x, (start,), none, None, rnn)
        gates = torch.cat([torch.zeros_like(x), x, torch.zeros_like(x)], 2)
        sigmoid, _ = scan("gru", gates, (start + 1,), none, None, gru)
    for found, expected in ((tanh, x.double().tanh()), (sigmoid, x.double().sigmoid())):
        torch.testing.assert_close(
            found.double(), expected, rtol=tolerance, atol=tolerance / 10, equal_nan=True
        )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("batch", [3, 32])
def test_any_layout_is_taken(isa: str, batch: int) -> None:
    case = Case("lstm", 3, batch, 5)
    with using(isa):
        expected = case.scan(*case.leaves)
        for gates in (
            case.gates.permute(2, 0, 1).contiguous().permute(1, 2, 0),
            case.gates.transpose(0, 1).contiguous().transpose(0, 1),
            torch.stack([case.gates, case.gates], -1)[..., 0],
        ):
            transposed = [part.t().contiguous().t() for part in case.initial]
            found = case.scan(gates, *transposed, *case.leaves[3:])
            assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", list(GATES))
def test_a_batch_of_none(implementation: str, kind: str) -> None:
    with using(implementation):
        found, gradients = Case(kind, 2, 0, 5).gradients()
    assert found[0].shape == (2, 0, 5)
    assert not any(part.any() for part in gradients)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", list(GATES))
def test_what_is_not_finite_stays_in_its_sequence(implementation: str, kind: str) -> None:
    case = Case(kind, 3, 20, 9)
    with using(implementation):
        clean, _ = case.gradients()
        case.gates[0, 17] = float("nan")
        case.initial[0][3] = float("inf")
        found, _ = case.gradients()
    rest = torch.ones(20, dtype=torch.bool).index_fill(0, torch.tensor([3, 17]), False)
    assert found[0][:, 17].isnan().any()
    for one, other in zip(found, clean, strict=True):
        assert torch.equal(one[..., rest, :], other[..., rest, :])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", list(GATES))
@pytest.mark.parametrize("ragged", [False, True])
def test_gradcheck(implementation: str, kind: str, ragged: bool) -> None:
    case = Case(kind, 3, 2, 4, ragged=ragged, seed=3)
    leaves = [leaf.requires_grad_() for leaf in case.leaves]
    with using(implementation):
        assert torch.autograd.gradcheck(case.scan, leaves)
        assert torch.autograd.gradgradcheck(case.scan, leaves)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", list(GATES))
@pytest.mark.parametrize("ragged", [False, True])
def test_opcheck(implementation: str, kind: str, ragged: bool) -> None:
    case = Case(kind, 3, 20, 5, dtype=torch.float32, ragged=ragged)
    h, c = (*case.initial, None)[:2]
    leaves = [
        part if part is None else part.requires_grad_() for part in (case.gates, h, c, case.values, case.bias)
    ]
    with using(implementation):
        torch.library.opcheck(sparse_scan, (*leaves, *case.index, kind, case.lengths))


@pytest.mark.parametrize("kind", list(GATES))
def test_compiled_without_a_graph_break(kind: str) -> None:
    torch._dynamo.reset()
    case = Case(kind, 4, 18, 6)
    eager, expected = case.gradients()
    case.scan = torch.compile(case.scan, fullgraph=True, backend="aot_eager")  # type: ignore[method-assign]
    compiled, gradients = case.gradients()
    for one, other in zip([*compiled, *gradients], [*eager, *expected], strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", list(GATES))
def test_flops_are_two_for_each_connection_and_example(kind: str) -> None:
    case = Case(kind, 3, 5, 6)
    with FlopCounterMode(display=False) as counter:
        case.gradients()
    assert counter.get_total_flops() == 3 * 2 * int(case.mask.sum()) * 3 * 5


class Ear:
    """A listener, and the owner of its weight."""

    recording = True

    def __init__(self) -> None:
        self.heard: list[Operands] = []

    def leave(self, operands: Operands) -> None:
        self.heard.append(operands)

    @property
    def listener(self) -> Ear:
        return self

    def settle(self) -> None:
        """Nothing to do."""

    def dense(self, rows: int, columns: int) -> Tensor:
        """The sum of all dense gradients."""
        tile = torch.zeros(rows, columns, dtype=torch.float64)
        for operands in self.heard:
            operands.put_rows(tile, 0, True)
        return tile


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", list(GATES))
@pytest.mark.parametrize("way", ["direct", "operator", "differentiable"])
def test_the_listener_is_left_the_dense_gradient(implementation: str, kind: str, way: str) -> None:
    case, ear = Case(kind, 3, 18, 6), Ear()
    h, c = (*case.initial, None)[:2]
    values = case.values.requires_grad_()
    with using(implementation):
        if way == "operator":
            listener.belongs_to(case.index.crow, ear)
            output, cell, _ = sparse_scan(case.gates, h, c, values, case.bias, *case.index, kind)
        else:
            output, state = scan(kind, case.gates, case.initial, values, case.bias, case.index, ear)
            cell = state[-1]
        gradient = torch.autograd.grad(
            [output, cell][: len(case.initial)],
            values,
            case.above[:1] + case.above[2:],
            create_graph=way == "differentiable",
        )[0]
    found = ear.dense(*case.mask.shape)
    torch.testing.assert_close(found[case.mask], gradient[: int(case.mask.sum()), 0].detach())
    # beyond the connections it is what a weight with all of them has
    full = Case(kind, 3, 18, 6)
    full.values = torch.zeros(case.mask.numel(), 1, dtype=torch.float64)
    full.values[case.mask.view(-1)] = case.values.detach()
    full.mask = torch.ones_like(case.mask)
    crow, col = csr.from_positions(torch.arange(full.mask.numel()), *full.mask.shape)
    full.index, full.above = Csr.of(crow, col, full.mask.shape[1]), case.above
    full.gates, full.initial, full.bias = case.gates, case.initial, case.bias
    own = full.values.requires_grad_()
    output, *state = full.scan(*full.leaves)
    above = [case.above[0], torch.zeros_like(case.above[1]), *case.above[2:]]
    expected = torch.autograd.grad([output, *state], own, above)[0]
    torch.testing.assert_close(found, expected.view_as(found))


def test_an_index_that_was_overwritten_is_refused() -> None:
    case = Case("gru", 2, 3, 4)
    values = case.values.requires_grad_()
    output, _ = scan("gru", case.gates, case.initial, values, case.bias, case.index)
    case.index.col.add_(0)
    with pytest.raises(RegrowRuntimeError, match="was overwritten between the forward and the backward pass"):
        output.sum().backward()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"kind": "gated"},
            RegrowValueError,
            "`kind` must be one of gru, lstm, rnn_tanh, rnn_relu, got 'gated'",
        ),
        (
            {"kind": "lstm"},
            RegrowRuntimeError,
            "the weight of lstm must have 4 rows for each column, got 12 and 4",
        ),
        (
            {"gates": torch.zeros(2, 3, 11)},
            RegrowRuntimeError,
            r"`gates` must have shape \[time, batch, 12\] with at least one time step, got \(2, 3, 11\)",
        ),
        ({"gates": torch.zeros(0, 3, 12)}, RegrowRuntimeError, r"at least one time step, got \(0, 3, 12\)"),
        (
            {"gates": torch.zeros(2, 3, 12, dtype=torch.float16)},
            RegrowRuntimeError,
            "must be of the weight's dtype",
        ),
        ({"initial": ()}, RegrowRuntimeError, r"`initial` of gru must be \(h,\), got 0 tensors"),
        (
            {"initial": (torch.zeros(4, 4),)},
            RegrowRuntimeError,
            r"`initial` must have shape \[3, 4\], a row for each sequence, got \(4, 4\)",
        ),
        (
            {"initial": (torch.zeros(3, 4, dtype=torch.float64),)},
            RegrowRuntimeError,
            "`initial` must be torch.float32 on cpu, got torch.float64 on cpu",
        ),
        (
            {"lengths": torch.tensor([1, 2])},
            RegrowRuntimeError,
            r"`lengths` must be int64 of shape \[3\], got torch.int64 of \(2,\)",
        ),
    ],
)
def test_operands_that_do_not_fit(change: dict[str, Any], error: type[Exception], message: str) -> None:
    case = Case("gru", 2, 3, 4, dtype=torch.float32)
    given = {"kind": "gru", "gates": case.gates, "initial": case.initial, **change}
    with pytest.raises(error, match=message):
        scan(**given, values=case.values, bias=case.bias, index=case.index)
