"""What ``layer.weight`` gives where the weight is stored compressed."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from runs import storages
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

import regrow
from regrow.weights import sparse_weights

LAYERS: list[Callable[[], nn.Module]] = [lambda: nn.Linear(24, 16), lambda: nn.Conv2d(4, 8, 3)]


def layer(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return regrow.sparsify(nn.Sequential(make().double()), 0.7, storage="compressed")[0]


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize(
    "penalty",
    [
        lambda w: w.abs().sum(),
        lambda w: w.pow(2).sum(),
        lambda w: w.norm(),
        lambda w: torch.linalg.vector_norm(w, 1),
        lambda w: w[1:].mean() + w.std(),
        lambda w: torch.cat([w, 2 * w]).square().sum(),
        lambda w: w.flatten(1).norm(dim=1).sum(),
        lambda w: F.mse_loss(w, torch.ones_like(w)),
    ],
)
def test_penalties_reach_the_values(
    make: Callable[[], nn.Module], penalty: Callable[[Tensor], Tensor]
) -> None:
    sparse = layer(make)
    dense = sparse.weight.to_dense().detach().requires_grad_()
    expected = penalty(dense)
    expected.backward()
    found = penalty(sparse.weight)
    found.backward()
    torch.testing.assert_close(found, expected)
    assert dense.grad is not None
    torch.testing.assert_close(sparse.weight.grad, dense.grad.where(dense != 0, 0))
    assert torch.autograd.gradgradcheck(
        lambda values: penalty(sparse.weight) * sparse.weight.values().sum(), sparse.weight_values
    )


@pytest.mark.parametrize("make", LAYERS)
def test_what_it_shows(make: Callable[[], nn.Module]) -> None:
    sparse = layer(make)
    weight, shape = sparse.weight, make().weight.shape
    assert (weight.shape, weight.size(0), weight.dim(), len(weight)) == (
        shape,
        shape[0],
        len(shape),
        shape[0],
    )
    assert (weight.dtype, weight.device, weight.numel()) == (
        torch.float64,
        torch.device("cpu"),
        shape.numel(),
    )
    assert weight.requires_grad
    assert not weight.data.requires_grad
    weight.requires_grad_(False)
    assert not sparse.weight_values.requires_grad
    weight.requires_grad = True
    assert sparse.weight_values.requires_grad
    assert sparse.weight.grad is None
    assert int((weight != 0).sum()) == len(weight.values())
    for twin in (copy.deepcopy(weight), pickle.loads(pickle.dumps(weight)), weight.detach().clone()):
        assert type(twin) is Tensor
        assert torch.equal(twin, weight.to_dense())
    assert "read-only" in repr(weight)


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize(
    "write",
    [
        lambda layer: nn.init.zeros_(layer.weight),
        lambda layer: nn.init.kaiming_uniform_(layer.weight),
        lambda layer: nn.init.xavier_normal_(layer.weight),
        lambda layer: nn.init.trunc_normal_(layer.weight, std=0.02),
        lambda layer: nn.init.orthogonal_(layer.weight),
        lambda layer: layer.weight.data.normal_(),
        lambda layer: layer.weight.detach().mul_(2),
        lambda layer: layer.weight.data.copy_(torch.ones(layer.weight.shape)),
        lambda layer: layer.weight.data.__setitem__(0, 1.0),
        lambda layer: layer.weight.data.__imul__(2),
        lambda layer: torch.add(torch.ones(1), 1, out=layer.weight.data),
        lambda layer: torch._foreach_mul_([layer.weight.data], 2.0),
        lambda layer: setattr(layer, "weight", nn.Parameter(torch.ones(3))),
        lambda layer: setattr(layer.weight, "data", torch.ones(3)),
        lambda layer: setattr(layer.weight, "grad", torch.ones(3)),
    ],
)
def test_it_cannot_be_written(make: Callable[[], nn.Module], write: Callable[[nn.Module], object]) -> None:
    sparse = layer(make)
    before = copy.deepcopy(sparse.state_dict())
    with (
        torch.no_grad(),
        pytest.raises(regrow.RegrowError, match="`weight` of a layer in compressed storage is read-only"),
    ):
        write(sparse)
    assert all(torch.equal(value, before[key]) for key, value in sparse.state_dict().items())


class Attention(nn.Module):
    """As timm's eva02, beit and swinv2 do: the layer's weight is read, the layer never called."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96, bias=False)
        self.bias = nn.Parameter(torch.zeros(96))
        self.proj = nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = F.linear(x, self.qkv.weight, bias=self.bias).chunk(3, -1)
        return self.proj(F.scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize("method", [regrow.RigL, regrow.SET, regrow.GraNet])
def test_a_parent_that_reads_its_childs_weight_trains_alike_on_both_storages(
    method: type[regrow.Method],
) -> None:
    results = []
    for storage in ("masked", "compressed"):
        torch.manual_seed(0)
        model = regrow.sparsify(Attention().double(), 0.8, storage=storage)
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
        options = {"final_sparsity": 0.9} if method is regrow.GraNet else {}
        method(model, optimizer, total_steps=20, update_every=3, **options)  # type: ignore[call-arg]
        for _ in range(15):
            optimizer.zero_grad()
            x = torch.randn(4, 6, 32, dtype=torch.float64)
            F.cross_entropy(model(x).flatten(0, 1), x[..., :8].argmax(-1).flatten()).backward()
            optimizer.step()
        results.append([(w.mask(), w.to_dense()) for w in sparse_weights(model)])
    for (mask, dense), (other, found) in zip(*results, strict=True):
        assert torch.equal(mask, other)
        torch.testing.assert_close(found, dense)


@storages
def test_a_penalty_on_a_weight_trains_alike_and_grows_alike(storage: str) -> None:
    torch.manual_seed(0)
    model = regrow.sparsify(
        nn.Sequential(nn.Linear(20, 30).double(), nn.Linear(30, 4).double()), 0.7, storage=storage
    )
    reference = regrow.sparsify(
        copy.deepcopy(regrow.densify(copy.deepcopy(model))), init=regrow.masks(model), storage="masked"
    )
    runs = []
    for each in (model, reference):
        optimizer = SGD(each.parameters(), lr=0.1)
        regrow.RigL(each, optimizer, total_steps=20, update_every=3)
        generator = torch.Generator().manual_seed(0)
        for _ in range(10):
            x = torch.randn(8, 20, dtype=torch.float64, generator=generator)
            optimizer.zero_grad()
            (each(x).square().mean() + 0.01 * each[0].weight.square().sum()).backward()
            optimizer.step()
        runs.append([w.to_dense() for w in sparse_weights(each)])
    for found, expected in zip(*runs, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("make", LAYERS)
def test_reset_parameters_draws_values_as_the_dense_layer_does(make: Callable[[], nn.Module]) -> None:
    sparse = layer(make)
    before, mask = sparse.weight.to_dense().clone(), sparse.weight != 0
    sparse.reset_parameters()
    weight = sparse.weight.to_dense()
    bound = make().weight[0].numel() ** -0.5
    assert torch.equal(weight != 0, mask)
    assert not (weight == before)[mask].any()
    assert float(weight.detach().abs().max()) <= bound
    assert float(sparse.bias.detach().abs().max()) <= bound
    sparse(
        torch.randn(2, *([24] if isinstance(sparse, regrow.SparseLinear) else [4, 5, 5]), dtype=torch.float64)
    )
