"""Other tensors in the place of masked weights: torch.func.functional_call, and the transforms of torch.func."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.nn import functional as F
from torch.nn.utils import prune

import regrow
from regrow.errors import RegrowRuntimeError
from regrow.weights.views import sparse_weights

X = torch.randn(6, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def network(storage: str = "masked", seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    return regrow.sparsify(model, 0.6, storage=storage, seed=seed)


def inner(model: nn.Module, params: dict[str, Tensor], steps: int, **options: bool) -> dict[str, Tensor]:
    """The fast weights of MAML."""
    for _ in range(steps):
        loss = functional_call(model, params, (X,)).pow(2).mean()
        found = torch.autograd.grad(loss, list(params.values()), **options)
        params = {k: v - 0.5 * d for (k, v), d in zip(params.items(), found, strict=True)}
    return params


def meta_loss(model: nn.Module, params: dict[str, Tensor], **options: bool) -> Tensor:
    return functional_call(model, inner(model, params, 3, **options), (X.flip(0),)).sin().sum()


def dense_twin(model: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
    """The same function of dense parameters, each multiplied by its mask."""
    return regrow.densify(copy.deepcopy(model)), {
        name: mask.double() for name, mask in regrow.masks(model).items()
    }


@pytest.mark.parametrize("storage", ["masked", "compressed"])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("own", [True, False])
def test_maml_has_the_gradients_of_the_sparse_network(storage: str, first_order: bool, own: bool) -> None:
    model = network(storage)
    twin, masks = dense_twin(model)

    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = twin

        def forward(self, x: Tensor) -> Tensor:
            cut = {name: p * masks[name] if name in masks else p for name, p in self.net.named_parameters()}
            return functional_call(self.net, cut, (x,))

    expected_of = Cut()
    options = {"create_graph": not first_order}
    meta_loss(expected_of, {f"{n}": p for n, p in expected_of.named_parameters()}, **options).backward()
    params = dict(model.named_parameters())
    if not own:
        params = {name: p.detach().clone().requires_grad_() for name, p in params.items()}
    given = dict(params)
    meta_loss(model, params, **options).backward()
    assert all(params[name] is given[name] for name in given)  # left as they were
    for name, parameter in twin.named_parameters():
        expected = parameter.grad
        if storage == "compressed" and name in masks:
            found = params[f"{name}_values"].grad[: int(masks[name].sum()), 0]
            expected = expected[masks[name].bool()]
        else:
            found = params[name].grad
        assert torch.allclose(found, expected, 1e-9, 1e-12), name


@pytest.mark.parametrize("method", [regrow.SET, regrow.RigL])
def test_maml_trains_inside_the_topology(method: Any) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    driver = method(model, optimizer, total_steps=20, update_every=3)
    before = [w.fingerprint() for w in sparse_weights(model)]
    for _ in range(10):
        optimizer.zero_grad()
        meta_loss(model, dict(model.named_parameters()), create_graph=True).backward()
        optimizer.step()
        for weight in sparse_weights(model):
            assert not weight.parameter[~weight.mask()].any()
    assert driver.step == 10
    assert [w.fingerprint() for w in sparse_weights(model)] != before


@pytest.mark.parametrize("storage", ["masked", "compressed"])
def test_rigl_grows_by_the_gradient_of_what_stands_in(storage: str) -> None:
    topologies = []
    for substituted in (False, True):
        model = network(storage)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        regrow.RigL(model, optimizer, total_steps=20, update_every=2)
        for _ in range(5):
            optimizer.zero_grad()
            params = {name: p * 1 for name, p in model.named_parameters()}
            (functional_call(model, params, (X,)) if substituted else model(X)).sin().sum().backward()
            optimizer.step()
        topologies.append([w.fingerprint() for w in sparse_weights(model)])
    assert topologies[0] == topologies[1]


def test_values_outside_the_topology_are_left_out_and_said() -> None:
    model = network()
    with torch.no_grad():
        params = {name: p + 1 for name, p in model.named_parameters()}
        with pytest.warns(UserWarning, match="left out") as said:
            found = functional_call(model, params, (X,))
        assert [str(each.message).partition(" was given values outside")[0] for each in said] == [
            "`0.weight`",
            "`2.weight`",
        ]
        for name, mask in regrow.masks(model).items():
            params[name] = params[name] * mask
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(found, functional_call(model, params, (X,)))


def test_what_a_failing_pass_was_given_is_put_back() -> None:
    model = network()
    params = {name: p * 1 for name, p in model.named_parameters()}
    given = dict(params)
    with pytest.raises(RuntimeError):
        functional_call(model, params, (X[:, :3],))
    assert all(params[name] is given[name] for name in given)
    functional_call(model, params, (X,)).sum().backward()
    assert not model[0].weight.grad[~model[0].weight_mask].any()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own jvp
def test_transforms_see_the_masks() -> None:
    model = network()
    masks = regrow.masks(model)
    params = {name: p.detach() for name, p in model.named_parameters()}

    def loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, params, (x,)).sin().sum()

    model(X).sin().sum().backward()
    found = grad(loss)(params, X)
    samples = vmap(grad(loss), in_dims=(None, 0))(params, X)
    for name, parameter in model.named_parameters():
        assert torch.allclose(found[name], parameter.grad)
        assert torch.allclose(samples[name].sum(0), parameter.grad)
    everywhere = {name: torch.ones_like(p) for name, p in params.items()}
    inside = {name: d * masks[name] if name in masks else d for name, d in everywhere.items()}
    slopes = [jvp(lambda p: loss(p, X), (params,), (d,))[1] for d in (everywhere, inside)]
    assert torch.allclose(*slopes)


@pytest.mark.parametrize("on_meta", [False, True])
def test_an_ensemble_of_masked_networks(on_meta: bool) -> None:
    models = [network(seed=seed) for seed in range(3)]
    expected = torch.stack([model(X) for model in models])
    params, buffers = stack_module_state(models)  # type: ignore[arg-type]
    base = copy.deepcopy(models[0]).to("meta") if on_meta else models[0]

    def call(params: Any, buffers: Any) -> Tensor:
        return functional_call(base, (params, buffers), (X,))

    assert torch.allclose(vmap(call)(params, buffers), expected)
    vmap(call)(params, buffers).sin().sum().backward()
    for place, model in enumerate(models):
        model(X).sin().sum().backward()
        for name, parameter in model.named_parameters():
            assert torch.allclose(params[name].grad[place], parameter.grad)
    own = functional_call(models[0], {k: v.detach() for k, v in models[0].named_parameters()}, (X,))
    assert torch.allclose(own, expected[0])
    with pytest.warns(UserWarning, match="was given values outside its topology"):
        functional_call(models[0], {k: v.detach() for k, v in models[1].named_parameters()}, (X,))


def test_attention_reads_the_masks_of_its_projection() -> None:
    torch.manual_seed(0)
    model = nn.MultiheadAttention(8, 2, batch_first=True).double()
    regrow.sparsify(model, 0.5, storage="masked")
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    params = {name: (p * 1).detach().requires_grad_() for name, p in model.named_parameters()}
    functional_call(model, params, (x, x, x))[0].sin().sum().backward()
    model(x, x, x)[0].sin().sum().backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(params[name].grad, parameter.grad), name


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own jvp
@pytest.mark.parametrize("call", ["grad", "vmap", "jvp", "ensemble"])
def test_compressed_storage_refuses_transforms(call: str) -> None:
    model = network("compressed")
    params = {name: p.detach() for name, p in model.named_parameters()}

    def loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, params, (x,)).sum()

    def ensemble() -> None:
        stacked = stack_module_state([model, network("compressed")])  # type: ignore[arg-type]
        vmap(lambda p, b: functional_call(model, (p, b), (X,)))(*stacked)

    calls = {
        "grad": lambda: grad(loss)(params, X),
        "vmap": lambda: vmap(loss, in_dims=(None, 0))(params, X),
        "jvp": lambda: jvp(lambda p: loss(p, X), (params,), (params,)),
        "ensemble": ensemble,
    }
    with pytest.raises(RegrowRuntimeError, match=r"transforms of torch\.func .*\n.*storage='masked'"):
        calls[call]()


def test_compiled_functional_calls_hold_the_masks() -> None:
    torch._dynamo.reset()
    model = network()
    params = {name: (p * 1).detach().requires_grad_() for name, p in model.named_parameters()}

    def run(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, params, (x,)).sin().sum()

    expected = torch.autograd.grad(run(params, X), list(params.values()))
    found = torch.autograd.grad(torch.compile(run, backend="aot_eager")(params, X), list(params.values()))
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other)


def test_densify_leaves_nothing_of_it() -> None:
    model = network()
    functional_call(model, {name: p * 1 for name, p in model.named_parameters()}, (X,))
    assert model[0]._forward_hooks
    regrow.densify(model)
    assert not model[0]._forward_hooks
    assert not model[0]._forward_hooks_always_called
    assert F.linear(X, model[0].weight, model[0].bias).equal(model[0](X))


def parametrized(model: nn.Module, how: str) -> None:
    functions: dict[str, Callable[[nn.Module], Any]] = {
        "spectral_norm": nn.utils.parametrizations.spectral_norm,
        "weight_norm": nn.utils.parametrizations.weight_norm,
        "orthogonal": nn.utils.parametrizations.orthogonal,
        "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
        "old spectral_norm": nn.utils.spectral_norm,
        "old weight_norm": nn.utils.weight_norm,
    }
    functions[how](model[0])  # type: ignore[index]


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize(
    "how", ["spectral_norm", "weight_norm", "orthogonal", "prune", "old spectral_norm", "old weight_norm"]
)
def test_a_parametrisation_put_on_afterwards_is_an_error_that_names_the_order(how: str) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regrow.SET(model, optimizer, total_steps=20, update_every=2)
    model(X).sum().backward()
    if how == "prune":  # which asks for the very name, and torch refuses
        with pytest.raises(KeyError, match="attribute 'weight_mask' already exists"):
            parametrized(model, how)
        return
    parametrized(model, how)
    for call in (lambda: model(X), optimizer.step, lambda: regrow.summary(model)):
        with pytest.raises(
            RegrowRuntimeError, match=r"`0\.weight` is not a parameter .*\nPut it on first and"
        ):
            call()
