"""How often each weight of a model works on one example: found by running it once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from regrow._torch import ConvNd, ConvTransposeNd
from regrow.accounting.units import PUBLISHED, Unit
from regrow.measure.example import Example, first_tensor, run_once
from regrow.weights.storages import dense_class_of


@dataclass
class Work:
    """What one weight does for one example."""

    places: float = 0.0
    """How often each of its connections multiplies: output pixels of a convolution, tokens of a linear layer."""
    outputs: float = 0.0
    """Numbers it puts out."""
    counted: bool = False
    """Whether it was reached by an operation with a rule here."""


def trace(model: nn.Module, example: Example, found: Sequence[Unit], convention: str) -> list[Work]:
    """Return the work of each of the weights `found` for one example; the model is left as it was.

    The forward pass runs once, in evaluation mode and without gradients, on the device where the model is.

    Args:
        model: any module; one on the meta device is traced without computing anything.
        example: a batch of it; its first dimension counts the examples.
        found: the model's weights.
        convention: ``clean`` takes the sizes that come out. ``rigl`` takes for a convolution what the published
            counter computes from the size that goes in, ``ceil((size - k + 1 + 2 (k // 2)) / stride)``: it pads by half
            a kernel whatever the layer does. Where a padding layer of its own comes before, as in Keras's
            ResNet-50 and MobileNet-v1, the padding is so counted twice (115 x 115 outputs, not 112 x 112).

    Raises:
        RegrowValueError: an example that the model does not take.
    """
    work = [Work() for _ in found]
    owners: dict[nn.Module, list[tuple[Unit, Work]]] = {}
    for unit, done in zip(found, work, strict=True):
        owners.setdefault(unit.module, []).append((unit, done))

    def hook(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        for unit, done in owners.get(module, ()):
            _add(unit, done, module, inputs, named, output, convention)
        if isinstance(module, nn.MultiheadAttention):  # reads the weight of its projection and never calls it
            for unit, done in owners.get(module.out_proj, ()):
                tokens = first_tensor(output).numel() / unit.shape[1]
                done.places += tokens
                done.outputs += tokens * unit.shape[0]
                done.counted = True

    handles = [
        module.register_forward_hook(hook, with_kwargs=True)
        for module in model.modules()
        if module in owners or isinstance(module, nn.MultiheadAttention)
    ]
    try:
        batch = run_once(model, example)
    finally:
        for handle in handles:
            handle.remove()
    for done in work:
        done.places /= batch
        done.outputs /= batch
    return work


def _add(
    unit: Unit,
    done: Work,
    module: Any,
    inputs: tuple[Any, ...],
    named: Mapping[str, Any],
    output: Any,
    convention: str,
) -> None:
    """Add one call of `module` to the work `done` by a weight of its own; it counts as what it stands for."""
    kind = dense_class_of(module)
    if issubclass(kind, ConvTransposeNd):
        given = first_tensor(inputs or tuple(named.values()))
        places, outputs = given.numel() / module.in_channels, float(first_tensor(output).numel())
    elif issubclass(kind, ConvNd):
        outputs = float(output.numel())
        if convention == PUBLISHED:
            given = first_tensor(inputs or tuple(named.values()))
            spatial = len(module.kernel_size)
            outputs /= math.prod(output.shape[-spatial:])
            outputs *= _counter_sizes(module, given.shape[-spatial:])
        places = outputs / module.out_channels
        outputs = places * unit.outputs(convention)
    elif issubclass(kind, nn.MultiheadAttention):
        places = _attention_places(unit, module, inputs, named)
        outputs = places * unit.shape[0]
    elif issubclass(kind, nn.RNNBase):
        data = first_tensor(inputs or named["input"])  # the data of a packed sequence, too
        places = data.numel() / data.shape[-1]
        outputs = places * unit.shape[0]
    elif issubclass(kind, nn.RNNCellBase):
        places = first_tensor(output).numel() / module.hidden_size
        outputs = places * unit.shape[0]
    elif issubclass(kind, nn.Embedding | nn.EmbeddingBag):
        places = outputs = 0.0  # looks up, multiplies nothing
    elif unit.outputs(convention):
        outputs = float(first_tensor(output).numel())
        places = outputs / unit.outputs(convention)
    else:
        return
    done.places += places
    done.outputs += outputs
    done.counted = True


def _counter_sizes(module: Any, sizes: Sequence[int]) -> int:
    """Return the output positions as the published counter computes them."""
    result = 1
    for size, kernel, stride in zip(sizes, module.kernel_size, module.stride, strict=True):
        result *= math.ceil((size - kernel + 1 + 2 * (kernel // 2)) / stride)
    return result


def _attention_places(
    unit: Unit, module: nn.MultiheadAttention, inputs: tuple[Any, ...], named: Mapping[str, Any]
) -> float:
    """Return the tokens of query, key and value; their mean for the three projections in one weight."""
    given = dict(zip(("query", "key", "value"), inputs, strict=False)) | dict(named)
    tokens = {name: float(given[name].numel() / given[name].shape[-1]) for name in ("query", "key", "value")}
    own = {"q_proj_weight": "query", "k_proj_weight": "key", "v_proj_weight": "value"}.get(
        unit.parameter_name
    )
    return tokens[own] if own else sum(tokens.values()) / 3
