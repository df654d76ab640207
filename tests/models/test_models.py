"""The networks: shapes, counts, `width`, and that each trains and becomes sparse."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from torch import nn

import regrow
from regrow import models as zoo
from regrow.errors import RegrowValueError
from regrow.models.width import scaled
from regrow.sparsity.layers import find_layers

RECORDS = list(zoo.models().values())
SMALL = {  # options under which a network is cheap to run
    "wrn": {"depth": 10, "widen": 1},
    "vit": {"dim": 24, "depth": 2},
    "gpt": {"dim": 24, "depth": 2, "context": 16},
    "char-gru": {"hidden": 64},
    "stacked-lstm": {"embedding": 64, "hidden": 64},
    "rhn": {"hidden": 64, "depth": 2},
    "on-lstm": {"embedding": 80, "hidden": 80},
    "awd-lstm": {"embedding": 64, "hidden": 64},
}
RECURRENT = ("char-gru", "stacked-lstm", "rhn", "on-lstm", "awd-lstm")
TOKENS = ("gpt", *RECURRENT)
NAMES = [record.name for record in RECORDS]


def weights(model: nn.Module) -> int:
    """Weights of linear layers and convolutions, a tied one once."""
    layers = find_layers(model)
    return sum(
        math.prod(layer.shape)
        for layer in layers
        if isinstance(layer.module, nn.Linear | nn.Conv2d)
        and not (layer.dense_because or "").startswith("tied")
    )


def on_meta(name: str, **options: object) -> nn.Module:
    with torch.device("meta"):
        return zoo.models()[name].build(**options)


def example(record: zoo.ModelRecord, batch: int, **options: object) -> torch.Tensor:
    shape = record.example_shape(options)
    if record.name in TOKENS:
        return torch.randint(0, 10, (batch, *shape))
    return torch.randn(batch, *(min(size, 64) if len(shape) == 3 else size for size in shape))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("mlp", 266_200),
        ("resnet50", 25_502_912),
        ("mobilenet-v1", 4_209_088),
        ("wrn-22-2", 1_076_912),
        ("wrn", 1_076_912),
        ("allconv", 259_904),
    ],
)
def test_weights(name: str, count: int) -> None:
    assert weights(on_meta(name)) == count


def test_resnet50_has_torchvision_s_names_and_shapes() -> None:
    model = on_meta("resnet50")
    state = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert state["conv1.weight"] == (64, 3, 7, 7)
    assert state["layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
    assert state["layer4.2.conv3.weight"] == (2048, 512, 1, 1)
    assert state["layer3.5.bn2.running_mean"] == (256,)
    assert state["fc.bias"] == (1000,)
    assert sum(name.endswith("downsample.0.weight") for name in state) == 4
    basic = on_meta("resnet18").state_dict()
    assert basic["layer4.0.downsample.0.weight"].shape == (512, 256, 1, 1)
    assert "layer1.0.downsample.0.weight" not in basic


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet18", 18),
        ("resnet50", 50),
        ("vgg16", 13 + 1),  # the three linear layers of the form for ImageNet are one here
        ("vgg19", 16 + 1),
        ("wrn-22-2", 22 - 2),  # its name counts two shortcuts
    ],
)
def test_depth(name: str, count: int) -> None:
    layers = find_layers(on_meta(name))
    assert sum("downsample" not in layer.name and "skip" not in layer.name for layer in layers) == count


@pytest.mark.parametrize("record", RECORDS, ids=NAMES)
def test_a_step(record: zoo.ModelRecord) -> None:
    torch.manual_seed(0)
    options = {**SMALL.get(record.name, {}), "classes": 11}
    if record.name not in ("mlp", "lenet"):
        options["width"] = 0.25
    model = record.build(**options)
    regrow.sparsify(model, 0.5, exclude=list(record.dense) or None)
    x = example(record, 2, **options)
    logits = model(x)
    assert logits.shape == ((2, x.shape[1], 11) if record.name in TOKENS else (2, 11))
    logits.square().mean().backward()
    used = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters() if p.dim() > 1]
    assert all(used)


@pytest.mark.parametrize("record", [pytest.param(r, id=r.name) for r in RECORDS if r.name not in RECURRENT])
def test_width(record: zoo.ModelRecord) -> None:
    """Channels are int(c * width) but at input and output."""
    plain, half = (
        {layer.weight_name: layer.shape for layer in find_layers(on_meta(record.name, width=w))}
        for w in (1.0, 0.5)
    )
    assert plain.keys() == half.keys()
    first, last = next(name for name in plain if name.endswith("weight")), list(plain)[-1]
    if record.name == "gpt":
        first, last = "", ""  # both ends are the embedding's
    for name, shape in plain.items():
        small = half[name]
        if name.startswith(("tokens", "positions", "head")):
            assert small == (*shape[:-1], shape[-1] // 2)
            continue
        outputs = shape[0] if name == last else shape[0] // 2
        depthwise = "depthwise" in name
        inputs = shape[1] if name == first or depthwise else shape[1] // 2
        assert small == (outputs, inputs, *shape[2:]), name


@pytest.mark.parametrize("record", RECORDS, ids=NAMES)
def test_every_network_has_width_and_classes(record: zoo.ModelRecord) -> None:
    parameters = inspect.signature(record.build).parameters
    assert parameters["width"].default == 1.0
    assert "classes" in parameters
    documented = inspect.getdoc(record.build) or ""
    assert all(f"{name}:" in documented for name in parameters)
    assert all(size in parameters for size in record.input if isinstance(size, str))


def test_channels_are_cut_not_rounded() -> None:
    assert [scaled(64, width) for width in (0.465, 0.34, 1.98)] == [29, 21, 126]
    assert scaled(100, 0.29) == 29  # 28.999999999999996 in floating point


def test_pre_activation() -> None:
    """A block without a norm's shift and with negative input passes the shortcut only."""
    block = zoo.wrn(depth=10, widen=1).group1[0].eval()
    assert block.skip is None  # 16 channels stay 16
    x = -torch.rand(1, 16, 4, 4)
    with torch.no_grad():
        block.bn1.bias.zero_()
        block.bn2.bias.fill_(-1)
        block.bn2.weight.zero_()
        assert torch.equal(block(x), x)


def test_dropout_of_wrn() -> None:
    torch.manual_seed(0)
    model = zoo.wrn(depth=10, widen=1, dropout=0.5)
    x = torch.randn(2, 3, 8, 8)
    model.eval()
    assert torch.equal(model(x), model(x))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.train()
    assert not torch.equal(model(x), model(x))


def test_gpt_sees_only_what_came_before() -> None:
    torch.manual_seed(0)
    model = zoo.gpt(dim=24, depth=2, heads=3, context=8).eval()
    tokens = torch.randint(0, 256, (1, 8))
    other = tokens.clone()
    other[0, 5] = (other[0, 5] + 1) % 256
    one, two = model(tokens), model(other)
    assert torch.equal(one[:, :5], two[:, :5])
    assert not torch.allclose(one[:, 5:], two[:, 5:])
    with pytest.raises(RegrowValueError, match="`x` must hold at most `context` = 8 tokens, got 9"):
        model(torch.zeros(1, 9, dtype=torch.int64))


def test_attention_is_made_of_linear_layers() -> None:
    for name in ("vit", "gpt"):
        model = regrow.sparsify(zoo.models()[name].build(**SMALL[name]), 0.5)
        sparse = set(regrow.masks(model))
        for part in ("query", "key", "value", "out"):
            assert f"blocks.1.attention.{part}.weight" in sparse


def test_mobilenet_pads_as_tensorflow_does() -> None:
    model = zoo.mobilenet_v1(width=0.25)
    assert model.conv1(model.pad(torch.zeros(1, 3, 224, 224))).shape == (1, 8, 112, 112)
    ours, theirs = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)
    ours[0, 0, 3, 3] = 1  # under torch's padding the first output would not depend on padding at the left
    padded = model.pad(ours)
    assert padded.shape == (1, 3, 5, 5)
    assert torch.equal(padded[:, :, :4, :4], ours)
    assert torch.equal(padded[:, :, 4], theirs.new_zeros(1, 3, 5))


@pytest.mark.parametrize(
    ("build", "options", "text"),
    [
        (zoo.wrn, {"depth": 20}, r"`depth` must be 6 n \+ 4, such as 10, 16, 22 or 28, got 20"),
        (zoo.wrn, {"depth": 4}, "`depth` must be a whole number of at least 10, got 4"),
        (zoo.wrn, {"widen": 0}, "`widen` must be a whole number of at least 1, got 0"),
        (zoo.wrn, {"dropout": 1.0}, r"`dropout` must be in \[0, 1\), got 1.0"),
        (
            zoo.wrn_22_2,
            {"width": 0.01},
            "`width` 0.01 leaves none of 16 channels, it must be at least 0.0625",
        ),
        (zoo.resnet50, {"width": 0}, "`width` must be a number above 0, got 0"),
        (zoo.resnet18, {"width": "half"}, "`width` must be a number above 0, got 'half'"),
        (zoo.resnet18_cifar, {"classes": 0}, "`classes` must be a whole number of at least 1, got 0"),
        (zoo.resnet50_cifar, {"channels": 1.5}, "`channels` must be a whole number of at least 1, got 1.5"),
        (zoo.mobilenet_v1, {"width": float("inf")}, "`width` must be a number above 0, got inf"),
        (zoo.mobilenet_v1, {"classes": -1}, "`classes` must be a whole number of at least 1, got -1"),
        (zoo.vgg16, {"channels": 0}, "`channels` must be a whole number of at least 1, got 0"),
        (zoo.vgg19, {"width": True}, "`width` must be a number above 0, got True"),
        (zoo.lenet, {"size": 12}, "`size` must be at least 16, for two 5x5 convolutions and pooling, got 12"),
        (zoo.lenet, {"width": 0.01}, "`width` 0.01 leaves none of 20 channels"),
        (zoo.allconv, {"hidden": (16, 0)}, "`hidden` must be a whole number of at least 1, got 0"),
        (zoo.allconv, {"hidden": ()}, r"`hidden` must name one convolution or more, got \(\)"),
        (zoo.mlp, {"hidden": (30, 0)}, "`hidden` must be a whole number of at least 1, got 0"),
        (zoo.mlp, {"width": -1}, "`width` must be a number above 0, got -1"),
        (zoo.vit, {"patch": 5}, "`size` must be a multiple of `patch`, got 32 and 5"),
        (zoo.vit, {"heads": 5}, "`dim` must be a multiple of `heads`, got 192 and 5"),
        (zoo.vit, {"dropout": -0.1}, r"`dropout` must be in \[0, 1\), got -0.1"),
        (zoo.gpt, {"depth": 0}, "`depth` must be a whole number of at least 1, got 0"),
        (zoo.gpt, {"context": 0}, "`context` must be a whole number of at least 1, got 0"),
        (zoo.gpt, {"width": 0.001}, "`width` 0.001 leaves none of 32 channels"),
    ],
)
def test_bad_options(build: object, options: dict[str, object], text: str) -> None:
    with pytest.raises(RegrowValueError, match=text):
        build(**options)  # type: ignore[operator]
