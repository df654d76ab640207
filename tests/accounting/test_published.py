"""The figures of the RigL paper and its counter: `rigl-family.md` 1.6, 9.1, 10.1 to 10.3, and 12 C, D and I."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from regrow import models as zoo
from regrow.accounting import Costs, costs_of, pruning_levels, stored_size, training_multiple
from regrow.sparsity.initial import asked_sparsities

Selector = Callable[[str, nn.Module], bool]


@cache
def network(name: str, width: float = 1.0, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return zoo.models()[name].build(width=width, **options)


@cache
def count(
    name: str,
    sparsity: float,
    distribution: str,
    convention: str = "clean",
    width: float = 1.0,
    include: Selector | None = None,
) -> Costs:
    model = network(name, width)
    sparsities = asked_sparsities(model, sparsity, distribution, include=include)
    return apply(name, model, sparsities, convention)


def apply(name: str, model: nn.Module, sparsities: Mapping[str, float], convention: str) -> Costs:
    shape = zoo.models()[name].example_shape({})
    return costs_of(model, torch.zeros(1, *shape, device="meta"), sparsities, convention=convention)


# --- ResNet-50 on ImageNet: the table of 10.3


TABLE = [  # sparsity, distribution, test clean, test rigl, RigL 1x, RigL 5x, megabytes
    (0.8, "uniform", 0.2241, 0.2254, 0.2279, 1.1396, 23.729),
    (0.8, "erk", 0.4146, 0.4153, 0.4172, 2.0861, 23.684),
    (0.9, "uniform", 0.1272, 0.1285, 0.1314, 0.6570, 13.532),
    (0.9, "erk", 0.2429, 0.2431, 0.2456, 1.2282, 13.499),
    (0.95, "uniform", 0.0787, 0.0801, 0.0831, 0.4157, 8.433),
    (0.95, "erk", 0.1229, 0.1230, 0.1259, 0.6295, 8.399),
]


@pytest.mark.parametrize(("sparsity", "distribution", "clean", "rigl", "once", "five", "size"), TABLE)
def test_resnet50(
    sparsity: float, distribution: str, clean: float, rigl: float, once: float, five: float, size: float
) -> None:
    counted = count("resnet50", sparsity, distribution)
    assert counted.flops["inference_multiple"] == pytest.approx(clean, abs=1e-4)
    assert counted.size_megabytes["sparse"] == pytest.approx(size, abs=1e-3)
    counted = count("resnet50", sparsity, distribution, "rigl")
    assert counted.flops["inference_multiple"] == pytest.approx(rigl, abs=1e-4)
    assert counted.size_megabytes["sparse"] == pytest.approx(size, abs=1e-3)
    training = counted.training_multiple
    assert training["rigl"] == pytest.approx(once, abs=1e-4)
    assert replace(counted, multiplier=5).training_multiple["rigl"] == pytest.approx(five, abs=3e-4)
    for name in ("static", "snip", "set"):
        assert training[name] == pytest.approx(counted.flops["inference_multiple"])


def test_resnet50_dense() -> None:
    clean, rigl = count("resnet50", 0.8, "erk"), count("resnet50", 0.8, "erk", "rigl")
    assert clean.parameters["dense"] == 25_502_912
    assert clean.multiply_adds["dense"] == 4_089_184_256
    assert clean.flops["dense"] == pytest.approx(8.1895e9, rel=1e-5)
    assert rigl.flops["dense"] == pytest.approx(8.2023e9, rel=1e-5)
    assert clean.size_megabytes["dense"] == rigl.size_megabytes["dense"] == pytest.approx(102.122, abs=1e-3)
    assert len(clean.layers) == 54
    assert rigl.training_flops("dense", steps=32_000, batch_size=4096) == pytest.approx(3.225e18, rel=1e-3)


def test_the_stride_sits_on_the_3x3() -> None:
    with torch.device("meta"):
        model = zoo.resnet50()
    for stage in (model.layer2, model.layer3, model.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    counted = apply("resnet50", model, {}, "clean")
    assert (
        counted.multiply_adds["dense"] == 3_857_973_248
    )  # the first version's, which the paper did not train
    assert counted.parameters["dense"] == 25_502_912


def test_the_first_convolution_in_each_convention() -> None:
    clean, rigl = (count("resnet50", 0.8, "erk", convention).layers[0] for convention in ("clean", "rigl"))
    assert (clean.name, clean.uses, rigl.uses) == ("conv1.weight", 112**2, 115**2)


@pytest.mark.parametrize(
    ("sparsity", "real"), [(0.8, 0.79970), (0.9, 0.89967), (0.95, 0.94965), (0.965, 0.96464)]
)
def test_uniform_is_sparse_a_little_less_than_asked(sparsity: float, real: float) -> None:
    parameters = count("resnet50", sparsity, "uniform").parameters
    assert 1 - parameters["sparse"] / parameters["dense"] == pytest.approx(real, abs=1e-5)


@pytest.mark.parametrize(
    ("sparsity", "distribution", "multiple"),
    [
        (0.8, "erk", 0.6102),
        (0.9, "erk", 0.4954),
        (0.95, "erk", 0.4153),
        (0.8, "uniform", 0.4836),
        (0.9, "uniform", 0.4190),
    ],
)
def test_snfs(sparsity: float, distribution: str, multiple: float) -> None:
    training = count("resnet50", sparsity, distribution, "rigl").training_multiple
    assert training["snfs"] == pytest.approx(multiple, abs=1e-4)


@pytest.mark.parametrize(("sparsity", "once", "longer"), [(0.8, 0.5603, 0.840), (0.9, 0.5053, 0.758)])
def test_pruning(sparsity: float, once: float, longer: float) -> None:
    counted = count("resnet50", sparsity, "uniform", "rigl")
    assert counted.training_multiple["pruning"] == pytest.approx(once, abs=1e-4)
    assert replace(counted, multiplier=1.5).training_multiple["pruning"] == pytest.approx(longer, abs=1e-3)


@pytest.mark.parametrize(("sparsity", "multiple"), [(0.8, 0.4543), (0.9, 0.3029)])
def test_granet_by_its_own_defaults(sparsity: float, multiple: float) -> None:
    counted = count("resnet50", sparsity, "erk", "rigl")
    assert round(counted.training_multiple["granet"], 4) == multiple
    assert replace(counted, update_every=100_000).training_multiple["granet"] == pytest.approx(
        multiple, abs=5e-5
    )
    assert replace(counted, multiplier=2.0).training_multiple["granet"] == pytest.approx(
        2 * multiple, abs=1e-4
    )


def test_pruning_by_the_flops_of_each_level() -> None:
    """The straight line between dense and sparse is what counting the network at each of the 33 levels gives."""
    dense = count("resnet50", 0.8, "uniform", "rigl").flops["dense"]

    def flops(level: float) -> float:
        return count("resnet50", 0.8 * level, "uniform", "rigl").flops["sparse"]

    multiple = training_multiple("pruning", dense=dense, sparse=flops)
    assert multiple == pytest.approx(0.5603, abs=1e-4)
    exact = training_multiple("pruning", dense=dense, sparse=flops(1.0), levels=pruning_levels(exact=True))
    assert exact == pytest.approx(multiple, abs=0.012)  # each step, not each thousandth and the last one
    assert exact > multiple


@pytest.mark.parametrize(
    ("sparsity", "distribution", "multiplier", "method", "published"),
    [  # the training columns of the paper's tables, those that hold (the text says which were slips)
        (0.8, "uniform", 1, "static", 0.23),
        (0.8, "uniform", 5, "rigl", 1.14),
        (0.9, "uniform", 5, "rigl", 0.66),
        (0.8, "erk", 1, "rigl", 0.42),
        (0.9, "erk", 1, "rigl", 0.25),
        (0.8, "erk", 5, "rigl", 2.09),
        (0.9, "erk", 5, "rigl", 1.23),
        (0.8, "erk", 1, "snfs", 0.61),
        (0.9, "erk", 1, "snfs", 0.50),
        (0.8, "uniform", 1, "pruning", 0.56),
        (0.9, "uniform", 1, "pruning", 0.51),
        (0.8, "uniform", 1.5, "pruning", 0.84),
        (0.9, "uniform", 1.5, "pruning", 0.76),
        (0.95, "uniform", 5, "rigl", 0.42),
        (0.965, "uniform", 1, "rigl", 0.069),
        (0.965, "uniform", 5, "rigl", 0.34),
        (0.95, "erk", 1, "rigl", 0.126),
        (0.95, "erk", 5, "rigl", 0.63),
        (0.95, "uniform", 1, "pruning", 0.478),
    ],
)
def test_training_columns(
    sparsity: float, distribution: str, multiplier: float, method: str, published: float
) -> None:
    counted = replace(count("resnet50", sparsity, distribution, "rigl"), multiplier=multiplier)
    digits = len(str(published).partition(".")[2])
    assert counted.training_multiple[method] == pytest.approx(published, abs=0.6 * 10**-digits)


@pytest.mark.parametrize("name", ["resnet50", "mobilenet-v1", "wrn-22-2"])
def test_order_and_limits_of_the_training_multiples(name: str) -> None:
    for sparsity in (0.8, 0.95):
        counted = count(name, sparsity, "erk")
        training = counted.training_multiple
        assert 1 > training["snfs"] > training["rigl"] > training["static"]
        rare = replace(counted, update_every=10**9).training_multiple["rigl"]
        assert rare == pytest.approx(counted.flops["inference_multiple"], rel=1e-6)


@pytest.mark.parametrize(
    ("width", "fraction", "size"), [(0.465, 0.2214, 24.12), (0.34, 0.1206, 13.65), (0.26, 0.0720, 8.47)]
)
def test_small_dense_resnet50(width: float, fraction: float, size: float) -> None:
    small = apply("resnet50", network("resnet50", width), {}, "clean")
    assert small.flops["dense"] / 8.1895e9 == pytest.approx(fraction, abs=1e-4)
    assert small.size_megabytes["dense"] == pytest.approx(size, abs=0.005)


# --- MobileNet-v1 on ImageNet: the notebook's figures


def in_erk(name: str, module: nn.Module) -> bool:
    """The notebook's cell "conv1 dense, depthwise inside ERK"."""
    return isinstance(module, nn.Conv2d) and name != "conv1"


def test_mobilenet_dense() -> None:
    clean, rigl = (count("mobilenet-v1", 0.75, "erk", convention) for convention in ("clean", "rigl"))
    assert clean.parameters["dense"] == 4_209_088
    assert clean.flops["dense"] == pytest.approx(1142.524e6, abs=500)
    assert rigl.flops["dense"] == pytest.approx(1141.544e6, abs=500)
    assert clean.size_megabytes["dense"] == pytest.approx(16.884, abs=5e-4)
    assert rigl.size_megabytes["dense"] == pytest.approx(16.864, abs=5e-4)
    assert rigl.training_flops("dense", steps=32_000, batch_size=4096) == pytest.approx(4.49e17, rel=1e-3)


def test_mobilenet_sizes_of_the_counter() -> None:
    uses = {layer.name: layer.uses for layer in count("mobilenet-v1", 0.75, "erk", "rigl").layers}
    assert uses["conv1.weight"] == 113**2
    strided = [1, 3, 5, 11]
    assert [uses[f"blocks.{block}.depthwise.weight"] for block in strided] == [57**2, 29**2, 15**2, 8**2]


@pytest.mark.parametrize(
    ("sparsity", "distribution", "include", "megaflops", "size"),
    [
        (0.75, "erk", None, 599.144, 4.888),
        (0.75, "uniform", None, 330.769, 4.894),
        (0.9, "erk", None, 334.134, 2.392),
        (0.9, "uniform", None, 168.614, 2.396),
        (0.75, "erk", in_erk, 588.355, 4.757),
        (0.9, "erk", in_erk, 312.956, 2.235),
    ],
)
def test_mobilenet(
    sparsity: float, distribution: str, include: Selector | None, megaflops: float, size: float
) -> None:
    counted = count("mobilenet-v1", sparsity, distribution, "rigl", include=include)
    assert counted.flops["sparse"] / 1e6 == pytest.approx(megaflops, rel=1e-4)
    assert counted.size_megabytes["sparse"] == pytest.approx(size, abs=6e-4)


@pytest.mark.parametrize(("sparsity", "real"), [(0.75, 0.742), (0.9, 0.890)])
def test_real_sparsity_of_mobilenet(sparsity: float, real: float) -> None:
    parameters = count("mobilenet-v1", sparsity, "uniform").parameters
    assert 1 - parameters["sparse"] / parameters["dense"] == pytest.approx(real, abs=5e-4)


@pytest.mark.parametrize(
    ("sparsity", "distribution", "ratio"),
    [(0.75, "uniform", 0.290), (0.9, "uniform", 0.148), (0.75, "erk", 0.525), (0.9, "erk", 0.293)],
)
def test_what_is_trained_of_mobilenet(sparsity: float, distribution: str, ratio: float) -> None:
    counted = count("mobilenet-v1", sparsity, distribution, "rigl")
    assert counted.flops["inference_multiple"] == pytest.approx(ratio, abs=5e-4)


def test_big_sparse_mobilenet() -> None:
    """Width 1.98 at 75%: the notebook gives it the densities of width 1, depthwise kernels included."""
    small, big = network("mobilenet-v1"), network("mobilenet-v1", 1.98)
    erk = asked_sparsities(small, 0.75, "erk", include=in_erk)
    assert apply("mobilenet-v1", big, erk, "rigl").flops["sparse"] == pytest.approx(2180.140e6, abs=500)
    uniform = {**asked_sparsities(small, 0.75, "uniform", include=in_erk), "fc.weight": 0.8}
    assert apply("mobilenet-v1", big, uniform, "rigl").flops["sparse"] == pytest.approx(1122.572e6, abs=500)


# --- CIFAR-10


def test_wrn_22_2_dense() -> None:
    counted = count("wrn-22-2", 0.5, "erk")
    assert counted.parameters["dense"] == 1_076_912
    assert counted.multiply_adds["dense"] == 157_730_048
    assert 2 * counted.multiply_adds["dense"] == pytest.approx(3.1546e8, rel=1e-5)
    assert len(counted.layers) == 23


@pytest.mark.parametrize(
    ("sparsity", "uniform", "erk"),
    [(0.5, 0.502, 0.729), (0.8, 0.203, 0.353), (0.9, 0.104, 0.175), (0.95, 0.054, 0.089)],
)
def test_wrn_22_2(sparsity: float, uniform: float, erk: float) -> None:
    for distribution, fraction in (("uniform", uniform), ("erk", erk)):
        flops = count("wrn-22-2", sparsity, distribution).flops
        assert flops["inference_multiple"] == pytest.approx(fraction, abs=6e-4)


def test_resnet50_in_the_form_for_cifar() -> None:
    counted = apply("resnet50-cifar", network("resnet50-cifar", classes=100), {}, "clean")
    assert counted.flops["dense"] == pytest.approx(2.59e9, abs=0.01e9)


# --- MNIST: sizes of 10.1, in bytes


@pytest.mark.parametrize(
    ("sizes", "size"), [((245, 160, 55), 195_100), ((266, 88, 33), 107_092), ((97, 71, 33), 38_696)]
)
def test_size_of_a_dense_network(sizes: tuple[int, int, int], size: int) -> None:
    assert stored_size(zoo.mlp(sizes[0], sizes[1:])) * 1e6 == pytest.approx(size, abs=1e-6)


@pytest.mark.parametrize(
    ("sizes", "connections", "size"), [((408, 100, 69), 6309, 31_914), ((375, 62, 51), 3080, 16_113)]
)
def test_size_of_a_sparse_network(sizes: tuple[int, int, int], connections: int, size: int) -> None:
    model = zoo.mlp(sizes[0], sizes[1:])
    last = 10 * sizes[2]
    second = 500
    first = connections - second - last
    found = {
        "layers.0.weight": 1 - first / (sizes[0] * sizes[1]),
        "layers.2.weight": 1 - second / (sizes[1] * sizes[2]),
    }
    counted = costs_of(model, torch.zeros(1, sizes[0]), found)
    assert counted.parameters["sparse"] == connections
    assert counted.size_megabytes["sparse"] * 1e6 == pytest.approx(size, abs=1)


def test_mlp() -> None:
    counted = count("mlp", 0.98, "erk")
    assert counted.parameters["dense"] == counted.multiply_adds["dense"] == 266_200


# --- WRN-28-10 on CIFAR: FreeTickets' table (`tickets-family.md`, section 2)


@pytest.mark.parametrize(
    ("sparsity", "tickets", "forward", "dense", "edst"),
    [(0.8, 3, 0.33956, 6, 0.611), (0.9, 7, 0.16862, 5, 0.573)],
)
def test_freetickets(sparsity: float, tickets: int, forward: float, dense: int, edst: float) -> None:
    with torch.device("meta"):
        model = zoo.wrn(depth=28, widen=10)
    counted = apply("wrn", model, asked_sparsities(model, sparsity, "erk"), "clean")
    # the shortcuts of 1 x 1 are among the masked weights
    assert counted.parameters["dense"] == 36_461_232
    assert counted.multiply_adds["dense"] == 5_243_328_768
    assert sum(layer.density == 1 for layer in counted.layers) == dense
    products = counted.multiply_adds
    assert products["sparse"] / products["dense"] == pytest.approx(forward, abs=5e-6)
    for convention in ("clean", "rigl"):
        multiples = replace(counted, convention=convention, tickets=tickets).training_multiple
        assert multiples["edst"] == pytest.approx(edst, abs=5e-4)
        assert multiples["dst"] == pytest.approx(tickets * forward, abs=5e-5)
    assert replace(counted, tickets=3).training_multiple["dst"] == pytest.approx(3 * forward, abs=5e-5)
    if sparsity == 0.8:
        assert round(3 * products["sparse"] / products["dense"], 3) == 1.019


def test_wrn_28_10_for_100_classes() -> None:
    with torch.device("meta"):
        model = zoo.wrn(depth=28, widen=10, classes=100)
    for sparsity, forward in ((0.8, 0.33740), (0.9, 0.16628)):
        counted = apply("wrn", model, asked_sparsities(model, sparsity, "erk"), "clean")
        products = counted.multiply_adds
        assert counted.parameters["dense"] == 36_518_832
        assert products["sparse"] / products["dense"] == pytest.approx(forward, abs=1e-5)
