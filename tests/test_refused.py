"""Weights that cannot be sparse: dense by default with the reason, refused where they are named, before any change."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regrow


def with_weight(weight: Tensor) -> nn.Linear:
    """A linear layer of this weight, as the layers of quantisation libraries hold theirs."""
    layer = nn.Linear(64, 64)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


class Quantised(Tensor):
    """A tensor that is not what it seems: torchao's, DTensor."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in (Tensor.mul_, Tensor.masked_fill_):
            raise NotImplementedError(func)
        return super().__torch_function__(func, types, args, kwargs or {})


def in_inference_mode() -> nn.Linear:
    with torch.inference_mode():
        return nn.Linear(64, 64)


def sparse_layout() -> nn.Linear:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # in beta
        return with_weight(torch.eye(64).to_sparse_csr())


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated
        return torch.jit.script(nn.Linear(64, 64))


LEAVE = "Leave it out."
NEVER: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "int8": (lambda: with_weight(torch.ones(64, 64, dtype=torch.int8)), "its weight is int8", LEAVE),
    "uint8": (lambda: with_weight(torch.ones(2048, 2, dtype=torch.uint8)), "its weight is uint8", LEAVE),
    "float8": (
        lambda: with_weight(torch.ones(64, 64).to(torch.float8_e4m3fn)),
        "its weight is float8_e4m3fn",
        LEAVE,
    ),
    "complex": (lambda: nn.Linear(64, 64, dtype=torch.complex64), "its weight is complex64", LEAVE),
    "subclass": (
        lambda: with_weight(torch.ones(64, 64).as_subclass(Quantised)),
        "its weight is a Quantised, no plain tensor",
        LEAVE,
    ),
    "csr": (sparse_layout, "its weight is sparse_csr", LEAVE),
    "inference": (
        in_inference_mode,
        "its weight was made in inference mode",
        "Make the model outside of torch.inference_mode().",
    ),
    "expanded": (
        lambda: with_weight(torch.ones(1, 64).expand(64, 64)),
        "its entries share memory (expand), or have none",
        "Give it a tensor of its own: weight.clone().",
    ),
}


@pytest.mark.parametrize("storage", ["masked", "compressed", "auto"])
@pytest.mark.parametrize("name", NEVER)
@pytest.mark.filterwarnings("ignore:.*stay dense:UserWarning")
def test_what_cannot_be_sparse_stays_dense_and_is_refused_where_it_is_named(name: str, storage: str) -> None:
    build, reason, remedy = NEVER[name]
    model = nn.Sequential(nn.Linear(64, 64), build())
    plain = model[0].weight.detach().clone()
    for named in ({"include": "*"}, {"include": lambda n, m: isinstance(m, nn.Linear)}):
        with pytest.raises(regrow.RegrowError) as caught:
            regrow.sparsify(model, sparsity=0.5, storage=storage, **named)
        assert str(caught.value) == f"`include` names `1.weight`, but {reason}.\n{remedy}"
    with pytest.raises(regrow.RegrowError, match=r"^`distribution` names `1.weight`, but"):
        regrow.sparsify(model, distribution={"0": 0.5, "1": 0.5}, storage=storage)
    assert not regrow.is_sparse(model)
    assert type(model[0]) is nn.Linear
    assert torch.equal(model[0].weight, plain)
    regrow.sparsify(model, sparsity=0.5, storage=storage)
    assert {row.name: row.reason for row in regrow.summary(model).rows if row.storage == "dense"} == {
        "1.weight": reason
    }


@pytest.mark.parametrize("tied", [False, True])
def test_an_embedding_with_sparse_gradients_is_refused(tied: bool) -> None:
    model = nn.Sequential(
        nn.Linear(16, 50), nn.Embedding(50, 16, sparse=True), nn.EmbeddingBag(9, 4, sparse=True)
    )
    if tied:
        model[0].weight = model[1].weight
    for named in ("0",) if tied else ("1", "2"):
        with pytest.raises(regrow.RegrowError) as caught:
            regrow.sparsify(model, sparsity=0.5, include=named)
        assert str(caught.value) == (
            f"`include` names `{named}.weight`, but its gradient is a sparse tensor, which no mask can cut.\n"
            "Make the embedding with sparse=False."
        )
        assert not regrow.is_sparse(model)


def test_an_embedding_with_dense_gradients_trains_where_it_is_named() -> None:
    model = regrow.sparsify(nn.Sequential(nn.Embedding(50, 16)), sparsity=0.5, include="0")
    model(torch.tensor([1])).sum().backward()
    assert not model[0].weight.grad[~regrow.masks(model)["0.weight"]].any()


def test_a_scripted_module_is_refused() -> None:
    model = nn.Sequential(nn.Linear(64, 64), scripted())
    with pytest.raises(regrow.RegrowError, match="compiled by TorchScript.\nCall sparsify before torch.jit"):
        regrow.sparsify(model, sparsity=0.5, include="*")
    assert not regrow.is_sparse(model)
    regrow.sparsify(model, sparsity=0.5)


@pytest.mark.parametrize("storage", ["masked", "compressed"])
def test_a_layer_without_connections_can_be_rescaled(storage: str) -> None:
    """Its criterion chooses over all layers together and leaves one empty."""

    def criterion(model: nn.Module, shapes: Any) -> dict[str, Tensor]:
        return {name: torch.full(shape, float(name == "0.weight")) for name, shape in shapes.items()}

    criterion.per_layer = False
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    with pytest.warns(UserWarning, match=r"leaves no connection at all in \['1.weight'\]") as caught:
        regrow.sparsify(model, 0.5, init=criterion, rescale=True, storage=storage)
    assert [warning.filename for warning in caught] == [__file__]
    assert [row.connections for row in regrow.summary(model).rows] == [4096, 0]


def test_what_is_no_module_is_named() -> None:
    with pytest.raises(regrow.RegrowError, match="`model` must be a torch.nn.Module, got a list"):
        regrow.sparsify([nn.Linear(8, 8)], sparsity=0.5)
