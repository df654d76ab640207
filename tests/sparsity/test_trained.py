"""Whether a network looks trained: by its norms, or by weights that no initialiser draws."""

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import NEEDS_FASHION_MNIST
from torch import Tensor, nn

import regrow
from regrow import data
from regrow.models import models
from regrow.sparsity.layers import find_layers
from regrow.sparsity.trained import looks_drawn, looks_trained

INIT = nn.init
INITIALISERS: dict[str, Callable[[Tensor], Any]] = {
    "torch's own": lambda w: INIT.kaiming_uniform_(w, a=math.sqrt(5)),
    "kaiming": INIT.kaiming_normal_,
    "xavier": INIT.xavier_uniform_,
    "truncated": lambda w: INIT.trunc_normal_(w, std=0.02),
    "skewed": lambda w: INIT.trunc_normal_(w, std=1.0, a=-0.5, b=2.0),
    "orthogonal": INIT.orthogonal_,
    "gpt-2 projection": lambda w: INIT.normal_(w, std=0.02 / math.sqrt(2 * 12)),
    "not centred": INIT.uniform_,
    "identity": lambda w: INIT.eye_(w.flatten(1)),
    "sparse": lambda w: INIT.sparse_(w.flatten(1), 0.9),
    "two values": lambda w: w.bernoulli_().mul_(2).sub_(1),
}
SHAPES = [
    (300, 784),
    (10, 100),
    (16, 150),
    (64, 27),
    (16, 16),
    (6, 5, 3, 3),
    (2, 128),
    (1500, 200),
    (256, 3000),
]


@pytest.mark.parametrize("initialiser", INITIALISERS)
def test_no_initialiser_looks_trained(initialiser: str) -> None:
    for shape in SHAPES:
        for seed in range(20 if math.prod(shape) < 10_000 else 2):
            torch.manual_seed(seed)
            weight = torch.zeros(shape)
            with torch.no_grad():
                INITIALISERS[initialiser](weight)
            assert looks_drawn(weight) is not False, (shape, seed)


def test_constant_weights_say_nothing() -> None:
    assert looks_drawn(torch.zeros(32, 32)) is None
    assert looks_drawn(torch.ones(32, 32)) is None
    assert looks_drawn(torch.full((300, 784), 0.1)) is None  # whose mean is another number
    assert not looks_trained(nn.Linear(1, 1), [torch.zeros(32, 32)])


def looks(model: nn.Module) -> bool:
    return looks_trained(model, [layer.parameter for layer in find_layers(model) if not layer.dense_because])


@pytest.mark.parametrize("name", ["mlp", "lenet", "allconv", "wrn-22-2", "vit", "gpt", "char-gru", "rhn"])
def test_no_network_of_regrow_looks_trained_when_it_is_new(name: str) -> None:
    torch.manual_seed(0)
    assert not looks(models()[name].build())


def mlp() -> nn.Sequential:
    layers = (nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    return nn.Sequential(nn.Flatten(), *layers)


def lenet() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


@NEEDS_FASHION_MNIST
@pytest.mark.parametrize("build", [mlp, lenet])
def test_an_epoch_of_training_is_seen_without_norms(build: Callable[[], nn.Sequential]) -> None:
    """One pass over 20,000 images; the network that it began with looks new."""
    torch.manual_seed(0)
    model = build()
    fresh = copy.deepcopy(model)
    images = data.fashion_mnist(limit=20_000)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for x, y in zip(images.train_inputs.split(100), images.train_targets.split(100), strict=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert not looks(fresh)
    assert looks(model)
    with pytest.warns(UserWarning, match="`model` has been trained") as caught:
        regrow.sparsify(copy.deepcopy(model), sparsity=0.5)
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        regrow.sparsify(copy.deepcopy(model), sparsity=0.5, init="random")  # on purpose
        regrow.sparsify(model, sparsity=0.5, init="magnitude")


class RMS(nn.Module):
    """As the models of the transformers library have it: a scale and no bias."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return x * x.square().mean(-1, keepdim=True).rsqrt() * self.weight


class LlamaRMSNorm(RMS):
    pass


@pytest.mark.parametrize(
    "norm", [nn.LayerNorm, LlamaRMSNorm, lambda size: nn.GroupNorm(4, size), nn.BatchNorm1d]
)
def test_one_step_is_seen_in_norms(norm: Callable[[int], nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), norm(64), nn.ReLU(), nn.Linear(64, 4))
    assert not looks(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    model(torch.randn(8, 16)).square().mean().backward()
    optimizer.step()
    assert looks(model)


def test_scales_of_norms_may_be_drawn() -> None:
    """DCGAN draws them around 1, with biases of zero."""
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3))
    nn.init.normal_(model[1].weight, 1.0, 0.02)
    assert not looks(model)
