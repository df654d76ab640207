"""Small-Dense: widths from stored sizes, against the published ones."""

from functools import partial

import pytest
import torch
from torch import nn

from regrow.accounting import stored_size
from regrow.errors import RegrowValueError
from regrow.models import lenet, mlp, mobilenet_v1, models, resnet50, scales, small_dense
from regrow.sparsity.initial import asked_sparsities


def sparse_size(build, sparsity, distribution="erk", include=None, convention="clean"):
    with torch.device("meta"):
        model = build()
    return stored_size(model, asked_sparsities(model, sparsity, distribution, include=include), convention)


@pytest.mark.parametrize("distribution", ["uniform", "erk"])
@pytest.mark.parametrize(("sparsity", "width"), [(0.8, 0.465), (0.9, 0.34), (0.95, 0.26)])
def test_resnet50(distribution, sparsity, width):
    # the published widths give 24.12, 13.65 and 8.47 MB, one to two percent above the sizes they are to match
    assert small_dense(resnet50, sparse_size(resnet50, sparsity, distribution)) == pytest.approx(
        width, abs=0.005
    )


@pytest.mark.parametrize(("sparsity", "width"), [(0.75, 0.47), (0.85, 0.353), (0.9, 0.285), (0.95, 0.204)])
def test_mobilenet(sparsity, width):
    # they match the cell of the notebook that has depthwise kernels inside ERK and the first layer dense
    def inside(name, module):
        return isinstance(module, nn.Conv2d) and name != "conv1"

    size = sparse_size(mobilenet_v1, sparsity, include=inside, convention="rigl")
    assert small_dense(mobilenet_v1, size, convention="rigl") == pytest.approx(width, abs=0.005)


@pytest.mark.parametrize("build", [mlp, lenet, partial(mlp, hidden=(1000, 500, 20))])
@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 1.0])
def test_no_width_is_closer(build, share):
    target = share * stored_size(build())
    width = small_dense(build, target)
    error = abs(stored_size(build(width=width)) - target)
    for step in (-0.02, -0.001, 0.001, 0.02):
        if 0.03 < width + step <= 1:
            assert abs(stored_size(build(width=width + step)) - target) >= error - 1e-12


def test_own_builder():
    def build(width=1.0):
        return nn.Sequential(nn.Linear(100, int(64 * width)), nn.ReLU(), nn.Linear(int(64 * width), 10))

    width = small_dense(build, 0.5 * stored_size(build()))
    assert int(64 * width) == 32


def test_own_builder_that_needs_values():
    def build(width=1.0):
        size = int(torch.tensor(64 * width))  # has no value on the meta device
        return nn.Sequential(nn.Linear(100, size), nn.ReLU(), nn.Linear(size, 10))

    assert int(64 * small_dense(build, 0.5 * stored_size(build()))) == 32


@pytest.mark.parametrize(
    ("build", "size", "text"),
    [
        (mlp, 0, "`size_megabytes` must be a number above 0, got 0"),
        (mlp, "1 MB", "`size_megabytes` must be a number above 0, got '1 MB'"),
        (mlp, 2.0, r"`size_megabytes` must be at most that of width 1, 1.0664, got 2"),
        (mlp, 1e-4, r"`size_megabytes` 0.0001 is too small: the smallest width, 0.01, takes 0.009"),
        (lambda size: mlp(hidden=(size,)), 1.0, "`build` must take an argument `width`, but has size"),
        (lambda: mlp(), 1.0, "`build` must take an argument `width`, but has none"),
    ],
)
def test_bad_input(build, size, text):
    with pytest.raises(RegrowValueError, match=text):
        small_dense(build, size)


def test_a_width_that_counts_channels_is_no_factor() -> None:
    def network(width: int = 64) -> torch.nn.Module:
        return torch.nn.Linear(16, width)

    with pytest.raises(RegrowValueError, match=r"a factor of its layers as `width`.*its default is 64\n"):
        small_dense(network, 0.001)
    assert not scales(network)
    assert scales(models()["mlp"].build)
