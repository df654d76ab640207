"""The networks that recipes name: plain torch modules, one record each."""

from __future__ import annotations

from regrow.models.allconv import AllConv, allconv
from regrow.models.language import LanguageModel
from regrow.models.lenet import LeNet, lenet
from regrow.models.mlp import MLP, mlp
from regrow.models.mobilenet import MobileNetV1, mobilenet_v1
from regrow.models.onlstm import on_lstm
from regrow.models.recurrent import awd_lstm, char_gru, stacked_lstm
from regrow.models.registry import ModelRecord, models
from regrow.models.resnet import ResNet, resnet18, resnet18_cifar, resnet50, resnet50_cifar
from regrow.models.rhn import rhn
from regrow.models.small import scales, small_dense
from regrow.models.sparse_dropouts import (
    SparseWeightDropLSTM as SparseWeightDropLSTM,
)  # compressed storage knows it
from regrow.models.transformer import GPT, ViT, gpt, vit
from regrow.models.vgg import VGG, vgg16, vgg19
from regrow.models.wrn import WRN, wrn, wrn_22_2

__all__ = [
    "GPT",
    "MLP",
    "VGG",
    "WRN",
    "AllConv",
    "LanguageModel",
    "LeNet",
    "MobileNetV1",
    "ModelRecord",
    "ResNet",
    "ViT",
    "allconv",
    "awd_lstm",
    "char_gru",
    "gpt",
    "lenet",
    "mlp",
    "mobilenet_v1",
    "models",
    "on_lstm",
    "resnet18",
    "resnet18_cifar",
    "resnet50",
    "resnet50_cifar",
    "rhn",
    "scales",
    "small_dense",
    "stacked_lstm",
    "vgg16",
    "vgg19",
    "vit",
    "wrn",
    "wrn_22_2",
]
