"""`regrow.explain`: times of real layers, and each place where a layout changes."""

import json

import pytest
import torch
from torch import Tensor, nn

import regrow
from regrow.errors import RegrowValueError
from regrow.measure.explain import Explanation
from regrow.ops import native

pytestmark = pytest.mark.skipif(not native.available(), reason="no kernels here")


class Net(nn.Module):
    """The norm, and a softmax of the user's own, break the chain of layouts."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(300, 256), nn.Linear(256, 256), nn.Linear(256, 256)
        self.norm, self.head = nn.LayerNorm(256), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.b(torch.relu(self.a(x))))
        x = torch.softmax(x, 1)  # the line of user code
        return self.head(self.c(self.norm(x)))


def explained(model: nn.Module, example: Tensor) -> Explanation:
    return regrow.explain(regrow.sparsify(model, 0.9), example, seconds=0.001)


def test_each_layer_has_its_times_and_its_reason() -> None:
    model = Net()
    found = explained(model, torch.randn(32, 300))
    assert [row.name for row in found.layers] == ["a", "b", "c", "head"]
    assert [row.storage for row in found.layers] == ["compressed"] * 3 + ["masked"]
    assert all(row.milliseconds > 0 and row.dense_milliseconds > 0 for row in found.layers)
    rows = {row.name: row for row in regrow.summary(model).rows}
    assert all(row.density == rows[f"{row.name}.weight"].density for row in found.layers)
    assert "too small" in str(found)
    assert json.loads(json.dumps(found.to_dict()))["layers"][0]["speedup"] == found.layers[0].speedup


def test_each_conversion_is_named_with_the_user_s_line() -> None:
    found = explained(Net(), torch.randn(32, 300))
    assert [row.place for row in found.conversions] == ["a (its input)", "softmax", "c (its input)"]
    first, softmax, last = found.conversions
    assert (first.shape, softmax.shape, last.shape) == ((32, 300), (32, 256), (32, 256))
    assert softmax.line.endswith("x = torch.softmax(x, 1)  # the line of user code")
    assert "test_explain.py" in softmax.line
    assert "conversions of layout" in str(found)


def test_an_unbroken_chain_converts_at_its_first_layer_only() -> None:
    layers = [nn.Linear(300, 256), nn.ReLU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 256)]
    found = explained(nn.Sequential(*layers), torch.randn(64, 300))
    assert [row.place for row in found.conversions] == ["0 (its input)"]


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(300, 256), nn.BatchNorm1d(256), nn.Dropout(), nn.Linear(256, 256))
    regrow.sparsify(model, 0.9)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    random = torch.get_rng_state()
    regrow.explain(model, torch.randn(32, 300, generator=torch.Generator().manual_seed(0)), seconds=0.001)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert [len(module._forward_pre_hooks) for module in model.modules()] == hooks


def test_a_layer_that_is_never_called_has_no_row() -> None:
    model = Net()
    model.idle = nn.Linear(256, 256)
    found = explained(model, torch.randn(32, 300))
    assert "idle" not in [row.name for row in found.layers]
    assert found.untimed == ("idle",)
    assert "not timed: idle" in str(found)


def test_bad_input() -> None:
    with pytest.raises(RegrowValueError, match="`model` is not sparse"):
        regrow.explain(nn.Linear(3, 3), torch.randn(2, 3))
    with pytest.raises(RegrowValueError, match="`example` does not go through"):
        explained(Net(), torch.randn(32, 7))
