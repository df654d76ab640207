"""Deployed networks and the size of the batch: what code does with one example, and what belongs to the caller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from machine import ISAS, using
from torch import Tensor, nn

import regrow
from regrow.errors import RegrowRuntimeError, RegrowValueError

EVERYWHERE = pytest.mark.parametrize("implementation", ["reference", *ISAS])


class Does(nn.Module):
    """Calls a function with a linear layer and the inputs."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4)
        self.register_buffer("constant", torch.arange(4.0))
        self.function = function
        self.eval()

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


ONE_IS_DIFFERENT = {
    "another value": lambda self, x: 2 * self.layer(x) if x.shape[0] == 1 else self.layer(x),
    "another shape": lambda self, x: self.layer(x)[0] if x.shape[0] == 1 else self.layer(x),
}


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("kind", ONE_IS_DIFFERENT)
def test_code_that_treats_one_example_otherwise_is_for_the_batch_of_the_example(kind: str, size: int) -> None:
    model, x = Does(ONE_IS_DIFFERENT[kind]), torch.rand(size, 4)
    deployed = regrow.deploy(model, x)
    assert deployed.reason is None
    torch.testing.assert_close(deployed(x), model(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(RegrowValueError, match=rf"must be float32 of shape \({size}, 4\)"):
        deployed(torch.rand(4 - size, 4))


def test_code_that_fails_for_one_example_is_for_the_batch_of_the_example() -> None:
    def last_of_two(self: Any, x: Tensor) -> Tensor:
        if x.shape[0] == 1:
            raise ValueError("one alone")
        return self.layer(x)

    deployed = regrow.deploy(Does(last_of_two), torch.rand(2, 4))
    assert deployed(torch.rand(2, 4)).shape == (2, 4)
    with pytest.raises(RegrowValueError, match=r"must be float32 of shape \(2, 4\)"):
        deployed(torch.rand(1, 4))


def test_inputs_of_different_sizes() -> None:
    model = Does(lambda self, x, y: self.layer(x) + self.layer(y).sum(0))
    x, y = torch.rand(2, 4), torch.rand(5, 4)
    deployed = regrow.deploy(model, (x, y))
    torch.testing.assert_close(deployed(x, y), model(x, y), rtol=1e-5, atol=1e-5)


MIXED: dict[str, Callable[..., Any]] = {
    "mean": lambda self, x: self.layer(x) - self.layer(x).mean(0),
    "flip": lambda self, x: x - self.layer(x).flip(0),
    "softmax": lambda self, x: self.layer(x).softmax(0),
    "next": lambda self, x: self.layer(x) + torch.roll(x, 1, 0),
    "among": lambda self, x: self.layer(x) @ x.t() @ x,
    "squeeze": lambda self, x: self.layer(x).squeeze(),
}


@pytest.mark.parametrize("kind", MIXED)
def test_examples_of_a_batch_may_be_mixed(kind: str) -> None:
    model = Does(MIXED[kind])
    deployed = regrow.deploy(model, torch.rand(2, 4))
    for size in (1, 2, 5, 17):
        x = torch.rand(size, 4)
        torch.testing.assert_close(deployed(x), model(x), rtol=1e-5, atol=1e-5)


@EVERYWHERE
def test_outputs_belong_to_the_caller(implementation: str) -> None:
    def outputs(self: Any, x: Tensor, number: Tensor) -> list[Tensor]:
        y = self.layer(x)
        return [x, x.t(), y, y, self.constant, self.constant.expand(3, 4), number, number.view(-1, 1)]

    model = Does(outputs)
    with using(implementation), torch.no_grad():
        x, number = torch.rand(3, 4), torch.arange(3)
        wanted = [each.clone() for each in model(x, number)]
        deployed = regrow.deploy(model, (x, number))
        for _ in range(2):
            found = deployed(x, number)
            for each, value in zip(found, wanted, strict=True):
                torch.testing.assert_close(each, value, rtol=1e-5, atol=1e-5)
                each += 1


def test_transforms_of_torch_are_refused() -> None:
    deployed = regrow.deploy(Does(lambda self, x: self.layer(x)), torch.rand(2, 4))
    x = torch.rand(3, 4)
    with pytest.raises(RegrowRuntimeError, match=r"cannot be called under a transform of torch\.func"):
        torch.vmap(deployed)(x[:, None])
    with pytest.raises(RegrowRuntimeError, match="transform the network that it was made of"):
        torch.func.grad(lambda given: deployed(given).sum())(x)
    with pytest.raises(RegrowValueError, match=r"takes dense tensors: \.to_dense\(\)"):
        deployed(x.to_sparse())


def test_masked_tokens_of_torchs_encoder_are_computed_as_in_training() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 1).eval()
    x, mask = torch.rand(2, 5, 8), torch.tensor([[False] * 3 + [True] * 2, [False] * 4 + [True]])
    with pytest.warns(RuntimeWarning, match="computes masked tokens as `model` does with gradients"):
        deployed = regrow.deploy(model, {"src": x, "src_key_padding_mask": mask})
    wanted = model(x, src_key_padding_mask=mask)  # gradients are recorded: no fused operator
    found = deployed(src=x, src_key_padding_mask=mask)
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-5, atol=1e-5)
    assert torch.backends.mha.get_fastpath_enabled()


def test_einsum() -> None:
    model = Does(lambda self, x: torch.einsum("nij,jk->nik", x, self.layer.weight))
    deployed = regrow.deploy(model, torch.rand(2, 3, 4))
    assert deployed.reason is None
    x = torch.rand(5, 3, 4)
    torch.testing.assert_close(deployed(x), model(x).detach(), rtol=1e-5, atol=1e-5)


SELECT: dict[str, Callable[..., Any]] = {
    "columns": lambda self, x: self.layer(x)[:, [3, 1]],
    "from the end": lambda self, x: self.layer(x)[:, torch.tensor([[-1, 0], [2, -4]])],
    "both": lambda self, x: ((x > 0) & (x < 0.5) | (x == 0)) ^ (self.layer(x) > 0),
}


@pytest.mark.parametrize("kind", SELECT)
def test_indices_and_masks(kind: str) -> None:
    model, x = Does(SELECT[kind]), torch.rand(5, 4)
    deployed = regrow.deploy(model, torch.rand(2, 4))
    assert deployed.reason is None
    torch.testing.assert_close(deployed(x), model(x).detach(), rtol=1e-5, atol=1e-5)


def test_selecting_by_a_mask_is_not_followed() -> None:
    model, x = Does(lambda self, x: self.layer(x[x[:, 0] > 0.5])), torch.tensor([[0.0] * 4, [1.0] * 4])
    with pytest.warns(RuntimeWarning, match="runs at dense cost"):
        deployed = regrow.deploy(model, x)
    torch.testing.assert_close(deployed(x), model(x).detach(), rtol=1e-5, atol=1e-5)


def test_infinite_factors_stay_behind_the_layer() -> None:
    for function in (lambda self, x: self.layer(x) / 0, lambda self, x: self.layer(x) * float("inf")):
        model, x = Does(function), torch.rand(3, 4)
        torch.testing.assert_close(regrow.deploy(model, x)(x), model(x).detach(), equal_nan=True)


def test_the_example_stays_as_it_is() -> None:
    model, x = Does(lambda self, x: self.layer(x.mul_(2).add_(1))), torch.rand(2, 4)
    before = x.clone()
    with pytest.warns(RuntimeWarning, match="runs at dense cost"):
        deployed = regrow.deploy(model, x)
    assert torch.equal(x, before)
    torch.testing.assert_close(deployed(x), model(before).detach(), rtol=1e-5, atol=1e-5)
