"""Ten networks that others have written, by their names in timm."""

from __future__ import annotations

import pytest
import torch
from inference.torchvision_names import timm
from inference.traced import check, ops, stir
from torch import nn

import regrow

SIZE = {"vit_tiny_patch16_224": 224, "mixer_s32_224": 224}
"""Of images, where the network does not take small ones."""


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("resnet18", set()),
        ("resnext50_32x4d", set()),
        ("mobilenetv3_large_100", {"aten.mul.Tensor"}),
        ("efficientnet_b0", {"aten.mul.Tensor"}),
        ("convnext_tiny", {"aten.layer_norm.default", "aten.permute.default", "aten.add.Tensor"}),
        ("vit_tiny_patch16_224", {"aten.layer_norm.default", "aten.scaled_dot_product_attention.default"}),
        ("densenet121", {"regrow.affine", "aten.cat.default", "aten.avg_pool2d.default"}),
        ("regnety_002", {"aten.mul.Tensor"}),
        ("mixer_s32_224", {"aten.layer_norm.default", "aten.transpose.int", "aten.add.Tensor"}),
        ("vgg16", set()),
    ],
)
def test_a_network_of_timm(name: str, left: set[str]) -> None:
    torch.manual_seed(0)
    model = timm().create_model(name, num_classes=10)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.normal_(0, layer.in_features**-0.5)  # timm starts some of them at zero
    stir(model)
    regrow.sparsify(model, sparsity=0.8, distribution="uniform", init="magnitude", storage="masked")
    size = SIZE.get(name, 64)
    simple = check(model, torch.randn(1, 3, size, size), batches=(1, 2))
    pooled = {"aten.sym_size.int", "aten.view.default", "aten.mean.dim"}
    pooled |= {"aten.max_pool2d.default", "aten.adaptive_avg_pool2d.default"}
    kinds = set(ops(simple)) - pooled - {"regrow.conv2d", "regrow.linear"}
    assert kinds >= left
    if name not in ("vit_tiny_patch16_224", "mixer_s32_224"):
        assert kinds == left
