"""How fast a step can become where its sparse layers cost their connections alone: Amdahl's bound."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from regrow.measure.example import first_tensor
from regrow.measure.timing import interleaved


def layer_shares(
    model: nn.Module, run: Callable[[], object], step: Callable[[], object], names: set[str], seconds: float
) -> dict[str, float]:
    """Return the time that a step of each of some layers of a dense network takes, alone, over that of the
    network's step.

    Args:
        model: the dense network.
        run: a forward pass of it.
        step: a training step of it, measured in turns with the layers.
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
    kinds: dict[str, str] = {}
    steps: dict[str, Callable[[], object]] = {"": step}
    for name, layer in layers.items():
        if layer in inputs:
            given = inputs[layer]
            kinds[name] = repr((layer, given.shape, given.stride(), given.requires_grad))
            if kinds[name] not in steps:
                steps[kinds[name]] = _step(layer, given)
    took = interleaved(steps, seconds=seconds * len(steps))
    return {name: took[kind].median / took[""].median for name, kind in kinds.items()}


def _step(layer: nn.Module, given: Tensor) -> Callable[[], None]:
    """Return a training step of a copy of `layer` alone."""
    layer = copy.deepcopy(layer)
    leaf = given.detach().requires_grad_(given.requires_grad)
    gradient = torch.ones_like(first_tensor(layer(leaf)))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0, momentum=0.9, fused=True)

    def one() -> None:
        optimizer.zero_grad()
        leaf.grad = None
        first_tensor(layer(leaf)).backward(gradient)
        optimizer.step()

    return one


def bound(shares: Mapping[str, float], densities: Mapping[str, float]) -> float:
    """Return how many times faster a step is in which layers take their density of their time, and all else takes
    the same.

    Args:
        shares: of the step's time, of its layers; alone they may take longer than all together.
        densities: of those that are sparse.
    """
    saved = sum(share * (1 - densities.get(name, 1.0)) for name, share in shares.items())
    kept = sum(share * densities.get(name, 1.0) for name, share in shares.items())
    return 1 / max(1 - saved, kept)
