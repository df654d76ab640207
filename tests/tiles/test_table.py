"""The table of batch tiles is complete, and who listens to conversions is heard while listening."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from regrow.ops import native
from regrow.tiles import FUNCTIONS, OPERATORS, BatchTiles, on_convert, to_tiles
from regrow.tiles.functions import attributes

PROBE = """
import torch
from regrow.tiles.tensor import BatchTiles, to_tiles
x = to_tiles(torch.ones(2, 3, 4, 4))
for y in (x.relu() + x, torch.nn.functional.max_pool2d(x, 2), torch.nn.BatchNorm2d(3)(x)):
    assert type(y) is BatchTiles, type(y)
"""


@pytest.mark.skipif(not native.available(), reason="the kernels were not built")
def test_any_import_of_the_room_brings_the_whole_table() -> None:
    subprocess.run([sys.executable, "-c", PROBE], check=True)


def test_the_tensor_answers_by_the_table() -> None:
    assert BatchTiles.functions is FUNCTIONS
    assert BatchTiles.operators is OPERATORS
    for function in (F.relu, torch.add, F.batch_norm, F.max_pool2d, F.dropout, torch.mean, Tensor.contiguous):
        assert function in FUNCTIONS


def test_attributes_are_read_and_set_without_a_conversion() -> None:
    heard: list[str] = []
    x, plain = to_tiles(torch.ones(2, 3, 4, 5)), torch.ones(2, 3, 4, 5)
    with on_convert(lambda operation, shape, milliseconds: heard.append(operation)):
        for name in ("shape", "dtype", "device", "layout", "ndim", "is_leaf", "is_cpu", "nbytes", "itemsize"):
            assert getattr(x, name) == getattr(plain, name)
        assert x.grad_fn is None
        x.requires_grad = True
        x.grad = torch.zeros_like(x)
        del x.grad
        assert x.grad is None
        assert not hasattr(x, "__cuda_array_interface__")
        assert heard == []
        assert x.mT.shape == (2, 3, 5, 4)  # values, in another order
        assert len(heard) == 1
    assert Tensor.mT.__get__ not in attributes()
    assert Tensor.mT.__set__ in attributes()


@pytest.mark.parametrize("function", [torch.neg, torch.tanh, F.gelu, lambda x, out: torch.add(x, x, out=out)])
def test_element_wise_functions_write_where_they_are_told_to(function: object) -> None:
    assert callable(function)
    x = torch.randn(2, 3, 4, 4)
    out = torch.zeros_like(to_tiles(x))
    assert function(to_tiles(x), out=out) is out
    assert torch.equal(out.to_dense_layout(), function(x, out=torch.empty_like(x)))


def test_listeners_hear_what_happens_inside() -> None:
    outer: list[str] = []
    inner: list[str] = []
    x = torch.ones(2, 3, 4, 4)
    with on_convert(lambda operation, shape, milliseconds: outer.append(operation)):
        with pytest.raises(ZeroDivisionError), on_convert(lambda operation, *_: inner.append(operation)):
            to_tiles(x, operation="both")
            raise ZeroDivisionError
        to_tiles(x, operation="outer alone")
    to_tiles(x, operation="nobody")
    assert outer == ["both", "outer alone"]
    assert inner == ["both"]
