"""A network so sparse that its loss stays flat at first is told so; the usual ones are not."""

import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import regrow
from regrow.sparsity.start import signal_left


def mlp(*sizes: int) -> nn.Sequential:
    modules: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        modules += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*modules[:-1])


class Functional(nn.Module):
    """The network of pytorch/examples/mnist."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3), nn.Conv2d(32, 64, 3)
        self.fc1, self.fc2 = nn.Linear(9216, 128), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv2(F.relu(self.conv1(x)))), 2)
        return F.log_softmax(self.fc2(F.relu(self.fc1(torch.flatten(x, 1)))), dim=1)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList(nn.Linear(64, 64) for _ in range(20)), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + F.relu(block(x))
        return self.head(x)


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(64, 512), nn.Linear(512, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.layer_norm(self.a(x), (512,)))


class Hidden(nn.Module):
    """Whose order of layers depends on the data: torch.fx cannot follow it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp(64, 512, 512, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x if x.sum() > 0 else -x)


USUAL: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "readme": (lambda: mlp(784, 300, 100, 10), 0.9),
    "article": (lambda: mlp(784, 300, 100, 10), {"0": 0.98, "2": 0.882}),
    "wide at 90%": (lambda: mlp(784, 1024, 1024, 10), 0.9),
    "small at 98%": (lambda: mlp(64, 128, 10), 0.98),  # where rescaled weights learn no sooner
    "functional at 90%": (Functional, 0.9),
    "residual": (Residual, 0.95),
    "with norms": (lambda: nn.Sequential(mlp(784, 512, 512), nn.LayerNorm(512), mlp(512, 10)), 0.99),
    "with a function for a norm": (Normed, 0.99),
    "hidden": (Hidden, 0.98),
}


def sparsify(model: nn.Module, how: Any, **options: Any) -> nn.Module:
    if isinstance(how, dict):
        return regrow.sparsify(model, distribution=how, **options)
    return regrow.sparsify(model, how, **options)


@pytest.mark.parametrize("name", USUAL)
def test_usual_networks_hear_nothing(name: str) -> None:
    build, how = USUAL[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparsify(build(), how)


@pytest.mark.parametrize(
    ("build", "sparsity", "signal"),
    [
        (lambda: mlp(784, 1024, 1024, 10), 0.98, "0.014"),
        (Functional, 0.98, "0.005"),
        (lambda: mlp(784, *[256] * 8, 10), 0.9, "0.00011"),
    ],
)
def test_a_start_without_a_signal_is_told_once_at_the_callers_line(
    build: Callable[[], nn.Module], sparsity: float, signal: str
) -> None:
    model = build()
    state = torch.get_rng_state()
    with pytest.warns(
        UserWarning, match=f"no norms, starts with {signal} of the signal.*\nrescale=True"
    ) as caught:
        regrow.sparsify(model, sparsity)
    assert [warning.filename for warning in caught] == [__file__]
    assert torch.equal(torch.get_rng_state(), state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for choice in (True, False):
            regrow.sparsify(build(), sparsity, rescale=choice)
        regrow.sparsify(build(), sparsity, init="magnitude")


def test_the_share_is_what_is_left_of_the_outputs_deviation() -> None:
    torch.manual_seed(0)
    model = mlp(784, 1024, 1024, 10)
    x = torch.rand(256, 784)
    with torch.no_grad():
        dense = model(x).std(0).mean()
        regrow.sparsify(model, 0.98, rescale=False, storage="masked")
        sparse = model(x).std(0).mean()
    left = {w.name.removesuffix(".weight"): w.density**0.5 for w in regrow.weights.sparse_weights(model)}
    assert signal_left(mlp(784, 1024, 1024, 10), left) == pytest.approx(float(sparse / dense), rel=0.3)


def test_loading_and_pruning_hear_nothing(tmp_path) -> None:
    model = regrow.sparsify(mlp(784, 1024, 1024, 10), 0.99, rescale=False)
    regrow.save(model, tmp_path / "model.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        regrow.load(tmp_path / "model.safetensors", into=mlp(784, 1024, 1024, 10))
        regrow.sparsify(mlp(784, 1024, 1024, 10), sparsity=0.0)
