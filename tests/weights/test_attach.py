"""What a sparse weight attaches to, and that all of it goes again."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

import regrow
from regrow.weights import sparse_weights
from regrow.weights.attach import attach, detach
from regrow.weights.record import module_records


def network() -> nn.Module:
    """Layers of both storages, a reader of its children's weights, and modules with several weights."""
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "stack": nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8)),
            "attention": nn.MultiheadAttention(8, 2, batch_first=True),
            "cell": nn.LSTM(8, 8, batch_first=True),
            "head": nn.Linear(8, 4),
        }
    )


def loss(model: Any) -> Tensor:
    x = model["stack"](torch.randn(6, 5, 12))
    x = model["cell"](model["attention"](x, x, x)[0])[0]
    return model["head"](x).square().mean()


def sparsified(model: nn.Module, storage: str) -> nn.Module:
    layers = ["stack.*", "head"] + (["attention*", "cell"] if storage == "masked" else [])
    return regrow.sparsify(model, 0.5, "uniform", include=layers, storage=storage)


def train(model: nn.Module, optimizer: Optimizer, method: type[regrow.Method] | None) -> None:
    driver = None if method is None else method(model, optimizer, total_steps=8, update_every=2)
    for _ in range(4):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
    if driver is not None:
        driver.detach()
    optimizer.zero_grad()


def described(value: Any) -> Any:
    """What an object is, as far as two networks that do the same agree in it."""
    if isinstance(value, Tensor):
        return tuple(value.shape), described(vars(value)), hooks(value)
    if isinstance(value, nn.Module):
        return type(value), described({k: v for k, v in vars(value).items() if k != "_compiled_call_impl"})
    if isinstance(value, dict):
        return {key: described(each) for key, each in value.items()}
    return value if isinstance(value, str | int | float | bool | None) else type(value)


def hooks(parameter: Tensor) -> list[Any]:
    return [*(parameter._backward_hooks or ()), *(getattr(parameter, "_post_accumulate_grad_hooks", 0) or ())]


def about(optimizer: Optimizer) -> Any:
    own = {key: described(value) for key, value in vars(optimizer).items() if key != "state"}
    groups = [sorted(group) for group in optimizer.param_groups]
    return own, groups, [sorted(map(str, state)) for state in optimizer.state.values()]


def masked(model: nn.Module) -> None:
    sparsified(model, "masked")


def compressed(model: nn.Module) -> None:
    sparsified(model, "compressed")


def masked_then_compressed(model: nn.Module) -> None:
    regrow.compress(sparsified(model, "masked"))


def twice(model: nn.Module) -> None:
    sparsified(regrow.densify(sparsified(model, "compressed")), "masked")


def in_parts(model: nn.Module) -> None:
    regrow.sparsify(model, 0.5, "uniform", include=["stack.0"], storage="compressed")
    regrow.sparsify(model, 0.5, "uniform", include=["cell"], storage="masked")
    regrow.sparsify(model["head"], 0.5, "uniform", include=["*"], storage="masked")  # type: ignore[index]


@pytest.mark.parametrize("method", [None, regrow.RigL, regrow.SET], ids=["none", "RigL", "SET"])
@pytest.mark.parametrize("make", [masked, compressed, masked_then_compressed, twice, in_parts])
def test_a_dense_model_is_as_if_it_had_never_been_sparse(
    make: Callable[[nn.Module], None], method: type[regrow.Method] | None
) -> None:
    model, twin = network(), network()
    make(model)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer, method)
    regrow.densify(model)
    plain = SGD(twin.parameters(), lr=0.1, momentum=0.9)
    train(twin, plain, None)
    assert described(model) == described(twin)
    assert about(optimizer) == about(plain)
    assert model.state_dict().keys() == twin.state_dict().keys()


@pytest.mark.parametrize("make", [masked, compressed])
@pytest.mark.parametrize("way", ["copied", "loaded", "substituted"])
def test_nothing_is_left_where_a_model_was_copied_loaded_or_called_with_other_tensors(
    make: Callable[[nn.Module], None], way: str
) -> None:
    model = network()
    make(model)
    if way == "copied":
        model = copy.deepcopy(model)
    elif way == "loaded":
        model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    else:
        given = {"head.bias": torch.ones(4)}
        if make is masked:
            given["head.weight"] = torch.ones(4, 8) * regrow.masks(model)["head.weight"]
        torch.func.functional_call(model["head"], {k[5:]: v for k, v in given.items()}, torch.randn(2, 8))  # type: ignore[index]
    loss(model).backward()
    model.zero_grad()
    assert described(regrow.densify(model)) == described(network())


def test_attaching_twice_puts_nothing_on_twice() -> None:
    model = sparsified(network(), "masked")
    layer = model["head"]  # type: ignore[index]
    once = described(layer)
    attach(layer, "weight", module_records(layer)["weight"])
    assert described(layer) == once
    assert len(layer.weight._backward_hooks) == 1


def test_detach_leaves_hooks_of_others() -> None:
    model = sparsified(network(), "masked")
    layer, seen = model["head"], []  # type: ignore[index]
    layer.register_forward_hook(lambda *_: seen.append("forward"))
    layer.weight.register_hook(lambda _: seen.append("gradient"))
    layer.register_load_state_dict_post_hook(lambda *_: seen.append("load"))
    assert len(sparse_weights(layer)) == 1
    detach(layer)
    assert sparse_weights(layer) == []
    layer(torch.randn(2, 8)).sum().backward()
    layer.load_state_dict(layer.state_dict())
    assert seen == ["forward", "gradient", "load"]
