import pytest
import torch
from torch import nn

import regrow
from regrow.app.training.groups import parameter_groups
from regrow.errors import RegrowValueError


def network() -> nn.Module:
    model = nn.Sequential()
    model.add_module("conv", nn.Conv2d(3, 4, 3))
    model.add_module("depthwise", nn.Conv2d(4, 4, 3, groups=4))
    model.add_module("norm", nn.BatchNorm2d(4))
    model.add_module("fc", nn.Linear(4, 2))
    model.add_module("tokens", nn.Embedding(5, 4))
    model.register_parameter("positions", nn.Parameter(torch.zeros(3, 4)))
    return model


def free(model: nn.Module, *words: str) -> set[str]:
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, words)
    assert sorted(names[id(p)] for group in groups for p in group["params"]) == sorted(names.values())
    return {names[id(p)] for group in groups if group.get("weight_decay") == 0 for p in group["params"]}


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ([], set()),
        (["norms"], {"norm.weight", "norm.bias"}),
        (["biases"], {"conv.bias", "depthwise.bias", "fc.bias"}),
        (["depthwise"], {"depthwise.weight"}),
        (["embeddings", "positions"], {"tokens.weight", "positions"}),
        (["*.weight"], {"conv.weight", "depthwise.weight", "norm.weight", "fc.weight", "tokens.weight"}),
    ],
)
def test_what_weight_decay_leaves_alone(words, names):
    assert free(network(), *words) == names


def test_compressed_weights_decay():
    model = regrow.sparsify(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), 0.5, storage="compressed")
    assert free(model, "biases", "norms") == {"0.bias", "1.bias"}


def test_a_word_for_nothing():
    with pytest.raises(
        RegrowValueError, match=r"`no_decay` must hold norms, .* 'norm' fits none, did you mean `norms`"
    ):
        parameter_groups(network(), ["norm"])
    assert free(nn.Sequential(nn.Linear(2, 2)), "norms") == set()  # a recipe may serve networks without them


def test_only_the_groups_with_decay_shrink():
    model = network()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(parameter_groups(model, ["norms", "depthwise"]), lr=1.0, weight_decay=0.5)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        kept = name.startswith("norm") or name == "depthwise.weight"
        torch.testing.assert_close(p.detach(), before[name] * (1.0 if kept else 0.5))
