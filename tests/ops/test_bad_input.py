"""What does not fit is refused with a message that names it, before anything is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from regrow import SparseLinear
from regrow.errors import RegrowRuntimeError, RegrowValueError
from regrow.ops import csr, native
from regrow.ops.csr import Csr
from regrow.ops.linear import linear, sparse_linear

ROWS, COLUMNS, BATCH = 5, 7, 4
POSITIONS = torch.tensor([0, 3, 9, 20, 34])

needs_kernels = pytest.mark.skipif(not native.available(), reason="the kernels were not built")


def operands(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    index = Csr.of(*csr.from_positions(POSITIONS, ROWS, COLUMNS), COLUMNS)
    return {
        "input": torch.randn(BATCH, COLUMNS).to(dtype),
        "values": torch.randn(len(POSITIONS), 1).to(dtype),
        "bias": torch.randn(ROWS).to(dtype),
        **index._asdict(),
    }


@pytest.mark.parametrize(
    ("positions", "values", "message"),
    [
        ([0, 35], None, r"`positions` must be int64, ascending without repetition, in \[0, 35\)"),
        ([-1, 3], None, r"ascending without repetition, in \[0, 35\)"),
        ([3, 0], None, "ascending without repetition"),
        ([3, 3], None, "ascending without repetition"),
        ([[0, 3]], None, r"`positions` must have one dimension, got shape \(1, 2\)"),
        ([0, 3], torch.zeros(3), r"`values` must be floating point of shape \(2,\), .* got torch.float32 of"),
        ([0, 3], torch.zeros(2, dtype=torch.int64), "`values` must be floating point .* got torch.int64"),
    ],
)
def test_a_layer_that_cannot_be(positions: list[int], values: Tensor | None, message: str) -> None:
    given = torch.tensor(positions)
    with pytest.raises(RegrowValueError, match=message):
        SparseLinear(
            COLUMNS, ROWS, positions=given, values=torch.zeros(given.shape) if values is None else values
        )


def test_data_parallel() -> None:
    layer = SparseLinear(COLUMNS, ROWS, positions=POSITIONS, values=torch.zeros(len(POSITIONS)))
    with pytest.raises(RegrowRuntimeError, match="Use torch.nn.parallel.DistributedDataParallel"):
        layer._replicate_for_data_parallel()  # what nn.DataParallel calls for each of its devices


@pytest.mark.parametrize(
    ("name", "operand", "message"),
    [
        ("input", torch.zeros(4, 6), r"`input` must have 7 as its last dimension, got shape \(4, 6\)"),
        (
            "input",
            torch.zeros(4, 7, dtype=torch.float64),
            "`input` must be of the weight's dtype torch.float32",
        ),
        ("values", torch.zeros(4, 1), r"`col` must be int32 of shape \(4,\), got torch.int32 of \(5,\)"),
        (
            "values",
            torch.zeros(5, 1, dtype=torch.int32),
            r"`values` must be floating point of shape \[capacity",
        ),
        ("bias", torch.zeros(4), r"`bias` must have shape \(5,\), got \(4,\)"),
        (
            "bias",
            torch.zeros(5).double(),
            "`bias` must be of the weight's dtype torch.float32, got torch.float64",
        ),
        (
            "order",
            torch.zeros(5, dtype=torch.int32, device="meta"),
            "`order` must be on the weight's device cpu",
        ),
        ("col", torch.zeros(5, dtype=torch.int64), "`col` must be int32"),
        ("crow", torch.zeros(6, dtype=torch.int64), "`crow` must be an int32 vector, got torch.int64"),
        ("order", torch.zeros(3, dtype=torch.int32), r"`order` must be int32 of shape \(5,\)"),
        ("activation", "tanh", "`activation` must be one of none, relu, gelu, silu, got 'tanh'"),
    ],
)
def test_the_operator(name: str, operand: object, message: str) -> None:
    with pytest.raises((RegrowRuntimeError, RegrowValueError), match=message):
        sparse_linear(**{**operands(), name: operand})


FORWARD = ("input", "values", "bias", "crow", "col")
BACKWARD = ("input", "values", "crow_t", "row_t", "order")


@needs_kernels
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("input", lambda t: t[None], "`input` must be of shape"),
        ("input", lambda t: t.half(), "kernels are for float32, float64 and bfloat16"),
        ("input", lambda t: t.int(), "kernels are for float32, float64 and bfloat16"),
        ("values", lambda t: t[:4], "`values` must hold at least 5 numbers"),
        ("bias", lambda t: t[:4], "`bias` must hold at least 5 numbers"),
        ("crow", lambda t: t + 1, "`crow` must be of shape .* and start at 0"),
        ("crow", lambda t: t[:0], "`crow` must be a contiguous int32 vector on the CPU of at least 1"),
        ("col", lambda t: t[:4], "`col` must be a contiguous int32 vector on the CPU of at least 5"),
        ("col", lambda t: t.long(), "`col` must be a contiguous int32 vector"),
    ],
)
def test_the_forward_kernel(name: str, change: Callable[[Tensor], Tensor], message: str) -> None:
    given = operands()
    given[name] = change(given[name])
    with pytest.raises(RuntimeError, match=message):
        torch.ops.regrow_native.linear_forward(*(given[key] for key in FORWARD), 0, False)


@needs_kernels
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gradient", lambda t: t[:3], r"`gradient` must be of shape \[4, 5\]"),
        ("gradient", lambda t: t.double(), "`gradient` must be of shape .* and the input's dtype"),
        ("kept", lambda t: t[:, :4], r"`kept` must be of shape \[4, 5\]"),
        ("kept", lambda _: None, "`kept` is missing: the activation needs it"),
        ("values", lambda t: t[:4], "`values` must hold at least 5 numbers"),
        ("crow_t", lambda t: t[:7], "`crow_t` must be a contiguous int32 vector on the CPU of at least 8"),
        ("row_t", lambda t: t[:4], "`row_t` must be a contiguous int32 vector on the CPU of at least 5"),
        ("order", lambda t: t[:4], "`order` must be a contiguous int32 vector on the CPU of at least 5"),
    ],
)
def test_the_backward_kernel(name: str, change: Callable[[Tensor], Any], message: str) -> None:
    given = {**operands(), "gradient": torch.randn(BATCH, ROWS), "kept": torch.randn(BATCH, ROWS)}
    given[name] = change(given[name])
    tensors = [given[key] for key in ("gradient", "input", "kept", "values", "crow_t", "row_t", "order")]
    with pytest.raises(RuntimeError, match=message):
        torch.ops.regrow_native.linear_backward(*tensors, 1, True, True, True)


@needs_kernels
@pytest.mark.parametrize(
    ("drop", "grow", "message"),
    [
        ([5], [], r"`drop` must be in \[0, 5\), got 5"),
        ([-1], [], r"`drop` must be in \[0, 5\), got -1"),
        ([], [35], "`grow` must ascend, below rows x columns"),
        ([], [2, 1], "`grow` must ascend"),
        ([], [1, 1], "`grow` must ascend"),
    ],
)
def test_updates(drop: list[int], grow: list[int], message: str) -> None:
    given = operands()
    with pytest.raises(RuntimeError, match=message):
        csr.rewire(
            given["crow"], given["col"], COLUMNS, *(torch.tensor(t, dtype=torch.int64) for t in (drop, grow))
        )


@needs_kernels
def test_an_index_that_is_none() -> None:
    given = operands()
    with pytest.raises(RuntimeError, match=r"`col` must be in \[0, 7\)"):
        Csr.of(given["crow"], given["col"] + 5, COLUMNS)
    falling = given["crow"].clone()
    falling[2] = 0
    with pytest.raises(RuntimeError, match="`crow` must ascend from 0"):
        csr.positions(falling, given["col"], COLUMNS)
    with pytest.raises(RuntimeError, match="`source` must be in"):
        csr.move(torch.tensor([7], dtype=torch.int32), torch.zeros(5, 1))


def layer(input: Tensor, values: Tensor, bias: Tensor, **index: Tensor) -> Tensor:
    return linear(input, values, bias, Csr(**index))


def test_float16_has_no_kernel_and_is_right_all_the_same() -> None:
    given = operands(torch.float16)
    exact = {key: t.double() if t.is_floating_point() else t for key, t in given.items()}
    torch.testing.assert_close(layer(**given).double(), layer(**exact), rtol=2e-3, atol=2e-3)
