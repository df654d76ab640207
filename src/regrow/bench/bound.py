"""How fast a step can become where its sparse layers cost their connections alone: Amdahl's bound."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from regrow.timing import interleaved


def layer_seconds(
    model: nn.Module, run: Callable[[], object], names: set[str], seconds: float
) -> dict[str, float]:
    """Time of a training step of each of some layers of a dense network, alone, on the input that it gets.

    Args:
        model: the dense network.
        run: a forward pass of it.
        names: of the layers.
        seconds: how long each is measured; layers that are alike on inputs of one shape are measured once.
    """
    inputs: dict[nn.Module, Tensor] = {}
    layers = {name: module for name, module in model.named_modules() if name in names}

    def note(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        inputs[module] = given[0]

    handles = [module.register_forward_pre_hook(note) for module in layers.values()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    known: dict[tuple[object, ...], float] = {}
    found = {}
    for name, layer in layers.items():
        if layer not in inputs:
            continue
        given = inputs[layer]
        kind = (repr(layer), given.shape, given.stride(), given.requires_grad)
        if kind not in known:
            known[kind] = interleaved({"": _step(layer, given)}, seconds=seconds)[""].median
        found[name] = known[kind]
    return found


def _step(layer: nn.Module, given: Tensor) -> Callable[[], None]:
    """A training step of a copy of `layer` alone."""
    layer = copy.deepcopy(layer)
    leaf = given.detach().requires_grad_(given.requires_grad)
    gradient = torch.ones_like(layer(leaf))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0, momentum=0.9, fused=True)

    def one() -> None:
        optimizer.zero_grad()
        leaf.grad = None
        layer(leaf).backward(gradient)
        optimizer.step()

    return one


def fastest(step: float, layers: Mapping[str, float], densities: Mapping[str, float]) -> float:
    """Seconds of a step in which each layer takes its density of the time that it takes dense, and all else the same.

    Args:
        step: seconds of the dense step.
        layers: seconds of its layers.
        densities: of those that are sparse.
    """
    saved = sum(time * (1 - densities.get(name, 1.0)) for name, time in layers.items())
    kept = sum(time * densities.get(name, 1.0) for name, time in layers.items())
    return max(step - saved, kept)
