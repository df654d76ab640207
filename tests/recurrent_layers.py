"""Recurrent layers in either storage, and the same layer of torch with their zeros."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import regrow
from regrow._torch import tree_leaves

KINDS: dict[str, Any] = {
    "gru": nn.GRU,
    "lstm": nn.LSTM,
    "tanh": nn.RNN,
    "relu": lambda *sizes, **ways: nn.RNN(*sizes, nonlinearity="relu", **ways),
}


def layer(kind: str, *sizes: int, seed: int = 0, **ways: Any) -> nn.Sequential:
    """Build a dense layer of torch in float64, in a model of its own."""
    torch.manual_seed(seed)
    return nn.Sequential(KINDS[kind](*sizes, **ways)).double()


def sparse(
    kind: str, *sizes: int, storage: str = "compressed", sparsity: float = 0.5, seed: int = 0, **ways: Any
) -> nn.Sequential:
    """Build a sparse one; the same seed gives the same connections in each storage."""
    model: Any = layer(kind, *sizes, seed=seed, **ways)
    return regrow.sparsify(model, sparsity, "uniform", include=["*"], storage=storage, seed=seed)  # type: ignore[return-value]


def pair(model: nn.Sequential) -> tuple[Any, Any]:
    """Return the layer of a sparse model, and torch's own with the same weights."""
    return model[0], regrow.densify(copy.deepcopy(model))[0]  # type: ignore[index]


def results(output: Any) -> list[Tensor]:
    """List the output and the final states; of a packed sequence all its parts."""
    return [each for each in tree_leaves(tuple(output)) if each is not None]


def assert_same(one: Any, other: Any, atol: float = 1e-9) -> None:
    """Compare what two layers have returned."""
    assert isinstance(one[0], PackedSequence) == isinstance(other[0], PackedSequence)
    assert isinstance(one[1], tuple) == isinstance(other[1], tuple)
    found, expected = results(one), results(other)
    assert [each.shape for each in found] == [each.shape for each in expected]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


def assert_same_gradients(module: Any, dense: nn.Module, atol: float = 1e-9) -> None:
    """Compare the gradients of all parameters, at the connections alone where a weight is compressed."""
    own = dict(module.named_parameters())
    for name, parameter in dense.named_parameters():
        assert parameter.grad is not None
        if name in own:
            found, expected = own[name].grad, parameter.grad
        else:
            index = module.index_of(name)
            rows = torch.repeat_interleave(torch.arange(len(index.crow) - 1), index.crow.diff())
            columns = index.col[: len(rows)].long()
            found, expected = own[f"{name}_values"].grad[: len(rows), 0], parameter.grad[rows, columns]
        torch.testing.assert_close(found, expected, rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")
