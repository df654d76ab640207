"""One record per network: the choices of recipes and of `regrow flops`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from regrow.models.allconv import allconv
from regrow.models.lenet import lenet
from regrow.models.mlp import mlp
from regrow.models.mobilenet import mobilenet_v1
from regrow.models.onlstm import on_lstm
from regrow.models.recurrent import awd_lstm, char_gru, stacked_lstm
from regrow.models.resnet import resnet18, resnet18_cifar, resnet50, resnet50_cifar
from regrow.models.rhn import rhn
from regrow.models.transformer import gpt, vit
from regrow.models.vgg import vgg16, vgg19
from regrow.models.wrn import wrn, wrn_22_2


@dataclass(frozen=True)
class ModelRecord:
    """A network by name: `build` takes the options a recipe may give and returns the module."""

    name: str
    build: Callable[..., nn.Module]
    paper: str
    line: str
    input: tuple[int | str, ...] = ()
    """Shape of one example: sizes, or names of the options that hold them. A network of tokens has their count; one
    that carries a state takes any, and has that of its paper's training steps."""
    dense: tuple[str, ...] = ()
    """Layers that the RigL paper keeps dense whatever the distribution, as globs for `sparsify(exclude=...)`."""

    def example_shape(self, options: Mapping[str, Any]) -> tuple[int, ...]:
        """Return the shape of one example where `options` are given to `build`."""
        defaults = {n: p.default for n, p in inspect.signature(self.build).parameters.items()}
        known = {**defaults, **options}
        return tuple(known[size] if isinstance(size, str) else size for size in self.input)


RESNET = "He et al. 2016, arXiv 1512.03385"
IMAGENET, CIFAR = ("channels", 224, 224), ("channels", 32, 32)

_RECORDS = [
    ModelRecord(
        "mlp",
        mlp,
        "LeNet-300-100, LeCun et al. 1998",
        "fully connected, ReLU between the layers",
        ("inputs",),
    ),
    ModelRecord(
        "lenet",
        lenet,
        "LeNet-5, LeCun et al. 1998",
        "LeNet-5 in the widths of Caffe: 20 and 50 channels",
        ("channels", "size", "size"),
    ),
    ModelRecord(
        "allconv",
        allconv,
        "after Springenberg et al. 2014, arXiv 1412.6806",
        "small convolutional network, strides in place of pooling",
        ("channels", 28, 28),
    ),
    ModelRecord(
        "wrn",
        wrn,
        "Zagoruyko and Komodakis 2016, arXiv 1605.07146",
        "wide residual network of any depth and factor, pre-activation",
        CIFAR,
    ),
    ModelRecord(
        "wrn-22-2",
        wrn_22_2,
        "Zagoruyko and Komodakis 2016, arXiv 1605.07146",
        "the RigL paper's network for CIFAR-10",
        CIFAR,
    ),
    ModelRecord("resnet18", resnet18, RESNET, "18 layers, form for ImageNet", IMAGENET),
    ModelRecord("resnet50", resnet50, RESNET, "50 layers, form for ImageNet, stride on the 3x3", IMAGENET),
    ModelRecord("resnet18-cifar", resnet18_cifar, RESNET, "18 layers, 3x3 stem, form for CIFAR", CIFAR),
    ModelRecord("resnet50-cifar", resnet50_cifar, RESNET, "50 layers, 3x3 stem, form for CIFAR", CIFAR),
    ModelRecord(
        "mobilenet-v1",
        mobilenet_v1,
        "Howard et al. 2017, arXiv 1704.04861",
        "depthwise and pointwise convolutions in turn",
        IMAGENET,
        ("conv1",),
    ),
    ModelRecord(
        "vgg16", vgg16, "Simonyan and Zisserman 2015, arXiv 1409.1556", "batch norm, form for CIFAR", CIFAR
    ),
    ModelRecord(
        "vgg19", vgg19, "Simonyan and Zisserman 2015, arXiv 1409.1556", "batch norm, form for CIFAR", CIFAR
    ),
    ModelRecord(
        "vit",
        vit,
        "Dosovitskiy et al. 2021, arXiv 2010.11929",
        "small vision transformer",
        ("channels", "size", "size"),
    ),
    ModelRecord(
        "gpt", gpt, "GPT-2, Radford et al. 2019", "small transformer over tokens, causal", ("context",)
    ),
    ModelRecord(
        "char-gru",
        char_gru,
        "Evci et al. 2020, arXiv 1911.11134",
        "the RigL paper's GRU over characters, read-out tied to the embedding",
        (512,),
    ),
    ModelRecord(
        "stacked-lstm",
        stacked_lstm,
        "Zaremba et al. 2014, arXiv 1409.2329",
        "LSTM layers over words, as Selfish-RNN trains them",
        (35,),
    ),
    ModelRecord(
        "rhn",
        rhn,
        "Zilly et al. 2017, arXiv 1607.03474",
        "recurrent highway network over words, coupled gates, tied",
        (35,),
    ),
    ModelRecord(
        "on-lstm",
        on_lstm,
        "Shen et al. 2019, arXiv 1810.09536",
        "LSTM with ordered neurons over words, tied, regularised as the AWD-LSTM",
        (70,),
    ),
    ModelRecord(
        "awd-lstm",
        awd_lstm,
        "Merity et al. 2017, arXiv 1708.02182",
        "regularised LSTM over words, tied; with `experts` a mixture of softmaxes",
        (70,),
    ),
]


def models() -> dict[str, ModelRecord]:
    """Return the built-in networks by name."""
    return {record.name: record for record in _RECORDS}
