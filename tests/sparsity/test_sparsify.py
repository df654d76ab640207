"""`sparsify` and its arguments, `densify`, `masks`, `summary`."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regrow
from regrow.weights import sparse_weights

storages = pytest.mark.parametrize("storage", ["masked", "compressed"])


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))


@storages
def test_counts_are_exact_and_weights_are_the_dense_ones_masked(storage: str) -> None:
    dense = [layer.weight.detach().clone() for layer in mlp() if isinstance(layer, nn.Linear)]
    model = regrow.sparsify(mlp(), distribution={"0": 0.98, "2": 0.882}, storage=storage)
    assert [weight.nnz for weight in sparse_weights(model)] == [4704, 3540]
    for weight, before in zip(sparse_weights(model), dense, strict=False):
        assert torch.equal(weight.to_dense(), torch.where(weight.mask(), before, 0.0))
    x = torch.randn(3, 784)
    hidden = torch.relu(torch.nn.functional.linear(x, sparse_weights(model)[0].to_dense(), model[0].bias))
    torch.testing.assert_close(model[1](model[0](x)), hidden)


def test_both_storages_start_alike_and_the_seed_decides() -> None:
    one, two = (regrow.sparsify(mlp(), 0.9, "uniform", storage=s) for s in ("masked", "compressed"))
    other = regrow.sparsify(mlp(), 0.9, "uniform", seed=1)
    for name, mask in regrow.masks(one).items():
        assert torch.equal(mask, regrow.masks(two)[name])
        assert not torch.equal(mask, regrow.masks(other)[name])
        assert mask.sum() == regrow.masks(other)[name].sum()


@pytest.mark.parametrize("distribution", ["uniform", "er", "erk"])
def test_the_overall_sparsity(distribution: str) -> None:
    model = regrow.sparsify(mlp(), 0.9, distribution)
    summary = regrow.summary(model)
    assert summary.sparsity == pytest.approx(0.9, abs=1e-4)
    if distribution == "uniform":
        assert summary.rows[0].reason == "first layer, dense under uniform"
        assert [row.connections for row in summary.rows] == [235_200, 3000, 100]
        named = regrow.summary(regrow.sparsify(mlp(), 0.9, "uniform", include="*"))
        assert [row.connections for row in named.rows] == [23_520, 3000, 100]


def test_a_function_of_the_shapes() -> None:
    model = regrow.sparsify(
        mlp(), 0.5, lambda shapes, s: {n: s if sh[0] > 100 else 0.2 for n, sh in shapes.items()}
    )
    assert [row.connections for row in regrow.summary(model).rows] == [117_600, 24_000, 800]


def test_include_and_exclude() -> None:
    assert set(regrow.masks(regrow.sparsify(mlp(), 0.9, include=["0", "4"]))) == {"0.weight", "4.weight"}
    assert set(regrow.masks(regrow.sparsify(mlp(), 0.9, exclude="4.weight"))) == {"0.weight", "2.weight"}
    chosen = regrow.sparsify(
        mlp(), 0.9, include=lambda name, module: getattr(module, "out_features", 0) == 100
    )
    assert set(regrow.masks(chosen)) == {"2.weight"}
    rows = regrow.summary(regrow.sparsify(mlp(), 0.9, exclude="4")).rows
    assert (rows[2].storage, rows[2].reason) == ("dense", "excluded by the caller")


def test_two_calls_with_two_storages() -> None:
    model = regrow.sparsify(mlp(), 0.9, include="0", storage="compressed")
    regrow.sparsify(model, 0.5, include="2", storage="masked")
    assert [w.storage for w in sparse_weights(model)] == ["compressed", "masked"]
    assert [row.storage for row in regrow.summary(model).rows] == ["compressed", "masked", "dense"]


def test_init_by_magnitude_masks_and_a_criterion() -> None:
    model = mlp()
    largest = (
        model[2]
        .weight.detach()
        .abs()
        .view(-1)
        .sort(descending=True, stable=True)
        .indices[:3000]
        .sort()
        .values
    )
    regrow.sparsify(model, 0.9, "uniform", init="magnitude")
    assert torch.equal(sparse_weights(model)[0].positions(), largest)

    masks = {"2.weight": torch.rand(100, 300) < 0.3}
    model = regrow.sparsify(mlp(), include="2", init=masks)
    assert torch.equal(regrow.masks(model)["2.weight"], masks["2.weight"])

    def first_columns(model: nn.Module, shapes: Any) -> dict[str, Tensor]:
        return {name: -torch.arange(shape[1]).expand(shape).double() for name, shape in shapes.items()}

    model = regrow.sparsify(mlp(), 0.9, "uniform", include="2", init=first_columns)
    assert regrow.masks(model)["2.weight"].nonzero()[:, 1].max() == 29


def test_rescale_scales_to_the_sparse_fan_in() -> None:
    plain, scaled = (regrow.sparsify(mlp(), distribution={"0": 0.75}, rescale=r) for r in (False, True))
    torch.testing.assert_close(scaled[0].weight, plain[0].weight * 2)


def test_a_trained_network_cut_at_random_warns() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    model(torch.randn(4, 8))
    with pytest.warns(
        UserWarning, match="has been trained, and its connections are cut at random: init='magnitude'"
    ):
        regrow.sparsify(model, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        regrow.sparsify(regrow.densify(model), 0.5, init="magnitude")


@storages
def test_densify(storage: str) -> None:
    model = regrow.sparsify(mlp(), 0.9, storage=storage)
    x = torch.randn(3, 784)
    before, masks = model(x), regrow.masks(model)
    assert regrow.is_sparse(model)
    assert regrow.densify(model) is model
    assert not regrow.is_sparse(model)
    assert [type(layer) for layer in model] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    torch.testing.assert_close(model(x), before)
    assert torch.equal(model[0].weight != 0, masks["0.weight"])
    assert set(model.state_dict()) == set(mlp().state_dict())
    model(x).sum().backward()
    assert model[0].weight.grad is not None
    assert model[0].weight.grad[~masks["0.weight"]].any()
    assert set(regrow.masks(regrow.sparsify(model, 0.5, init="magnitude"))) == set(masks)


@storages
def test_summary(storage: str) -> None:
    model = regrow.sparsify(mlp(), distribution={"0": 0.98, "2": 0.882}, storage=storage)
    summary = regrow.summary(model)
    text = str(summary)
    assert f"0.weight  300 x 784  0.0200  0.0200   4,704        {storage}" in text
    assert "4.weight  10 x 100   1.0000  1.0000   1,000        dense" in text
    assert "not named by the caller" in text
    assert summary.connections == 8244
    assert summary.parameters == 8244 + 1000 + 410
    assert json.loads(json.dumps(summary.to_dict()))["layers"][1]["connections"] == 3540
    assert [row.storage for row in regrow.summary(mlp()).rows] == ["dense"] * 3


def test_gradients_are_zero_where_inactive_even_where_they_are_inf() -> None:
    model = regrow.sparsify(nn.Sequential(nn.Linear(4, 4, bias=False)), 0.5)
    model(torch.full((1, 4), float("inf"))).sum().backward()
    gradient, mask = model[0].weight.grad, regrow.masks(model)["0.weight"]
    assert gradient is not None
    assert (gradient[~mask] == 0).all()
    assert gradient[mask].isinf().all()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_convolutions_in_either_memory_format(memory_format: torch.memory_format) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 3))
    model = regrow.sparsify(model.to(memory_format=memory_format), 0.8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    method = regrow.RigL(model, optimizer, total_steps=40, update_every=4)
    counts = [w.nnz for w in sparse_weights(model)]
    for _ in range(20):
        optimizer.zero_grad()
        x = torch.randn(4, 3, 8, 8).to(memory_format=memory_format)
        model(x).square().sum().backward()
        optimizer.step()
        assert [w.nnz for w in sparse_weights(model)] == counts
        for weight in sparse_weights(model):
            assert not weight.parameter.detach()[~weight.mask()].any()
    assert method.step == 20


def shared() -> nn.Module:
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    return nn.Sequential(first, second)


def test_two_layers_that_share_a_weight_have_one_topology() -> None:
    model = regrow.sparsify(shared(), 0.5)
    assert len(sparse_weights(model)) == 1
    assert regrow.summary(model).rows[1].reason == "shares the weight of `0`"


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (mlp, {"sparsity": 1}, r"`sparsity` must be in \[0, 1\), got 1"),
        (mlp, {"sparsity": -0.1}, r"`sparsity` must be in \[0, 1\), got -0.1"),
        (mlp, {"sparsity": "0.9"}, r"`sparsity` must be a number in \[0, 1\), got '0.9'"),
        (mlp, {}, r"`sparsity` is None, but it must be in \[0, 1\)"),
        (
            mlp,
            {"sparsity": 0.9, "distribution": {"0": 0.5}},
            "`sparsity` is 0.9, but a dictionary as `distribution`",
        ),
        (mlp, {"distribution": {"0": 1.0}}, r"`distribution\['0'\]` must be in \[0, 1\), got 1.0"),
        (mlp, {"distribution": {"fc*": 0.5}}, r"`distribution` matches nothing: 'fc\*'\nLayers: 0, 2, 4"),
        (mlp, {"sparsity": 0.9, "include": "0", "exclude": "2"}, "`include` and `exclude` were both given"),
        (mlp, {"sparsity": 0.9, "include": "layer"}, "`include` matches nothing: 'layer'"),
        (mlp, {"sparsity": 0.9, "include": []}, "`include` is empty"),
        (mlp, {"sparsity": 0.9, "exclude": "5"}, "`exclude` matches nothing: '5'"),
        (
            mlp,
            {"sparsity": 0.9, "include": lambda n, m: False},
            "`include` picks no layer: the predicate was false",
        ),
        (mlp, {"sparsity": 0.9, "exclude": "*"}, r"nothing to sparsify \(0.weight: excluded by the caller"),
        (
            nn.ReLU,
            {"sparsity": 0.9},
            r"`model` has nothing to sparsify.*it has no weights.*\nGive a model with weights of two or more",
        ),
        (
            lambda: nn.Linear(4, 4, dtype=torch.complex64),
            {"sparsity": 0.9},
            r"nothing to sparsify \(weight: its weight is complex64\)\.\nGive a model .* floating-point type",
        ),
        (
            lambda: nn.Embedding(9, 3),
            {"sparsity": 0.9},
            r"nothing to sparsify \(weight: embedding.*\nName layers with `include`",
        ),
        (
            mlp,
            {"sparsity": 0.9, "storage": "mask"},
            "`storage` must be one of auto, masked, compressed.*`masked`",
        ),
        (mlp, {"sparsity": 0.9, "init": "magnitud"}, "`init` must be one of.*did you mean `magnitude`"),
        (
            mlp,
            {"init": {"0.weight": torch.ones(2, 2, dtype=torch.bool)}},
            "`init` must give one tensor for each of",
        ),
        (mlp, {"init": {"0.weight": torch.ones(300, 784)}, "include": "0"}, "must be a boolean mask"),
        (
            lambda: nn.Sequential(nn.Conv1d(1, 4, 3), nn.Linear(4, 4)),
            {"sparsity": 0.5, "storage": "compressed"},
            "`storage` is 'compressed', but `0.weight` cannot be stored so: Conv1d has no compressed form",
        ),
        (
            lambda: nn.Linear(4, 4),
            {"sparsity": 0.5, "storage": "compressed"},
            "cannot be stored so: the model itself cannot be replaced",
        ),
        (shared, {"sparsity": 0.5, "storage": "compressed"}, "cannot be stored so: its weight is shared"),
        (
            lambda: nn.TransformerEncoderLayer(8, 2, 16),
            {"sparsity": 0.5, "storage": "compressed", "include": "linear1"},
            "TransformerEncoderLayer reads its weight directly",
        ),
        (lambda: regrow.sparsify(mlp(), 0.9), {"sparsity": 0.5}, "`model` is sparse already.*\n.*densify"),
    ],
)
def test_bad_input_is_named_and_changes_nothing(build: Any, arguments: dict[str, Any], message: str) -> None:
    model = build()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(regrow.RegrowError, match=message):
        regrow.sparsify(model, **arguments)
    assert [type(module) for module in model.modules()] == kinds
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_every_error_is_also_the_builtin_one() -> None:
    with pytest.raises(ValueError, match="`sparsity`"):
        regrow.sparsify(mlp(), 2)
    with pytest.raises(RuntimeError, match="sparsify"):
        regrow.RigL(mlp(), torch.optim.SGD(mlp().parameters(), lr=0.1), total_steps=1)
