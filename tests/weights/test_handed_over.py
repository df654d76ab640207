"""The operands of a backward pass reach the weight that asked through the autograd context, not by a table."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

import regrow
from regrow.ops import listener, native
from regrow.weights import hook_of, sparse_weights

KERNELS = pytest.mark.skipif(not native.available(), reason="the kernels are not built")


def made(kind: str) -> tuple[nn.Module, torch.optim.Optimizer, Tensor]:
    """A model that RigL updates at every step."""
    torch.manual_seed(0)
    layers = {
        "linear": [nn.Linear(20, 30), nn.GELU(), nn.Linear(30, 10)],
        "convolution": [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)],
    }
    model = regrow.sparsify(nn.Sequential(*layers[kind]), 0.6, storage="compressed", seed=0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    regrow.RigL(model, optimizer, total_steps=100, update_every=1, drop_fraction=0.5)
    return model, optimizer, torch.randn(16, 20) if kind == "linear" else torch.randn(4, 3, 8, 8)


@KERNELS
@pytest.mark.parametrize("kind", ["linear", "convolution"])
@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")
def test_no_table_is_asked(kind: str, twice: bool) -> None:
    """Nor by a pass that can be differentiated again."""
    runs = [made(kind), made(kind)]
    for disturbed, (model, optimizer, x) in enumerate(runs):
        for _ in range(4):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            if disturbed:
                listener._owners.clear()
            loss.backward(create_graph=twice)
            optimizer.step()
            del loss
    for one, other in zip(*(sparse_weights(model) for model, *_ in runs), strict=True):
        assert torch.equal(one.positions(), other.positions())
        assert torch.equal(one.values(), other.values())


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_a_copy_hands_nothing_to_the_model(kind: str) -> None:
    model, _, x = made(kind)
    copied = copy.deepcopy(model)
    assert all(weight.record.listener is None for weight in sparse_weights(copied))
    copied(x).square().mean().backward()
    for weight, other in zip(sparse_weights(model), sparse_weights(copied), strict=True):
        hook, its = hook_of(weight.parameter), hook_of(other.parameter)
        assert hook is not None
        assert hook.stash is None
        assert not hook.passes
        assert other.record.listener is its


def test_a_graph_that_is_kept_keeps_no_model() -> None:
    model, optimizer, x = made("linear")
    output, gone = model(x), weakref.ref(model[0])
    del model, optimizer
    gc.collect()
    assert gone() is None
    assert output.grad_fn is not None
