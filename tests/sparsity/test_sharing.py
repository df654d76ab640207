"""Weights and modules that appear more than once in a model, and other corners of `sparsify`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regrow
from regrow.weights import sparse_weights


class Twice(nn.Module):
    """One linear layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(20, 20)
        self.b = self.a

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(torch.relu(self.a(x)))
        return y


class Tied(nn.Module):
    """An embedding and a head that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.hidden, self.head = (
            nn.Embedding(20, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 20, bias=False),
        )
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.hidden(self.embedding(x)))
        return y


def test_a_module_under_two_names_is_masked_once_and_never_compressed() -> None:
    model = regrow.sparsify(Twice(), 0.8)
    assert len(sparse_weights(model)) == 1
    assert model.a is model.b
    with pytest.raises(regrow.RegrowError, match="cannot be stored so: it is used under several names: a, b"):
        regrow.sparsify(Twice(), 0.8, storage="compressed")


@pytest.mark.parametrize("include", [["embedding"], ["head"], ["embedding", "head"], ["*"]])
def test_a_tied_weight_that_is_named_has_one_topology(include: list[str]) -> None:
    model = Tied()
    regrow.sparsify(model, 0.5, include=include)
    weights = sparse_weights(model)
    assert len({id(w.parameter) for w in weights}) == len(weights)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0001)
    regrow.SET(model, optimizer, total_steps=10, update_every=2)
    for _ in range(6):
        optimizer.zero_grad()
        model(torch.arange(20)).square().sum().backward()
        optimizer.step()
    for weight in weights:
        assert not weight.parameter.detach()[~weight.mask()].any()


def test_a_dense_checkpoint_is_cut_in_tied_weights_too() -> None:
    source, target = Tied(), Tied()
    regrow.sparsify(target, 0.5, include="embedding")
    target.load_state_dict(source.state_dict())
    (weight,) = sparse_weights(target)
    assert int(target.head.weight.count_nonzero()) <= weight.nnz
    assert torch.equal(weight.to_dense(), torch.where(weight.mask(), source.head.weight.detach(), 0.0))


def test_a_part_of_a_checkpoint_leaves_nothing_inactive_behind() -> None:
    model, other = (regrow.sparsify(nn.Sequential(nn.Linear(10, 10)), 0.5, seed=s) for s in (0, 1))
    state = {"0.weight_mask": other.state_dict()["0.weight_mask"]}
    with pytest.raises(
        regrow.RegrowError, match="`0.weight` is missing: the state dict holds `0.weight_mask`"
    ):
        model.load_state_dict(state, strict=False)
    assert not model[0].weight.detach()[~regrow.masks(model)["0.weight"]].any()


def chain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))


def test_uniform_leaves_the_first_layer_of_the_model_dense_not_the_first_that_is_left() -> None:
    model = regrow.sparsify(chain(), 0.5, "uniform", exclude="0")
    assert set(regrow.masks(model)) == {"1.weight", "2.weight"}


def test_a_dictionary_names_default_layers_by_globs_and_any_layer_exactly() -> None:
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    assert set(regrow.masks(regrow.sparsify(model, distribution={"*": 0.5}))) == {"1.weight", "2.weight"}
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    assert set(regrow.masks(regrow.sparsify(model, distribution={"0": 0.5, "1": 0.2}))) == {
        "0.weight",
        "1.weight",
    }
    for argument in ({"exclude": "1"}, {"include": ["0", "1"]}):
        with pytest.raises(regrow.RegrowError, match="or one beside a dictionary as `distribution`"):
            regrow.sparsify(chain(), distribution={"*": 0.5}, **argument)  # type: ignore[arg-type]


def test_a_layer_without_weights_is_passed_over() -> None:
    with pytest.warns(UserWarning, match="zero-element"):
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 0))
    assert set(regrow.masks(regrow.sparsify(model, 0.5))) == {"0.weight"}


def test_a_mask_that_is_there_already() -> None:
    model = chain()
    model[0].register_buffer("weight_mask", torch.ones(8, 8))
    with pytest.raises(regrow.RegrowError, match="`model` has something called `0.weight_mask` already"):
        regrow.sparsify(model, 0.5)
    assert not regrow.is_sparse(model)


@pytest.mark.parametrize("positions", [[9, 1], [1, 1], [-1, 2], [3, 99]])
def test_positions_of_a_sparse_linear_are_checked(positions: list[int]) -> None:
    with pytest.raises(
        regrow.RegrowError, match=r"`positions` must be int64, ascending without repetition, in \[0, 16\)"
    ):
        regrow.SparseLinear(4, 4, positions=torch.tensor(positions), values=torch.ones(2))


def test_autocast_with_bfloat16_weights() -> None:
    model: Any = regrow.sparsify(chain().bfloat16(), 0.5, storage="compressed")
    with torch.autocast("cpu", torch.bfloat16):
        assert model(torch.randn(2, 8)).dtype == torch.bfloat16


@pytest.mark.parametrize("storage", ["masked", "compressed"])
def test_a_sparse_model_can_be_exported(storage: str) -> None:
    model = regrow.sparsify(chain(), 0.5, storage=storage).eval()
    x = torch.randn(2, 8)
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x))
