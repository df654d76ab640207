"""The core of a partially masked network as a network of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from regrow._torch import BatchNorm, ConvNd
from regrow.arguments import require_example, require_instance, require_model
from regrow.errors import RegrowValueError
from regrow.methods import PartiallyMasked
from regrow.methods.core_pass import give_statistics
from regrow.nn import LowRankLinear
from regrow.tickets.copying import copied
from regrow.weights.views import sparse_weights, unwrapped

NESTED = (nn.Linear, ConvNd, BatchNorm)
"""Modules whose first units compute what a module with these units alone computes."""
CLOSE = 1e-4
"""Largest difference of outputs, relative to the largest output."""


def core_of(method: PartiallyMasked) -> nn.Module:
    """Copy the core that `method` trains as a network of its own, with its own norm statistics.

    A sparse network in evaluation mode; `regrow.compress` stores it compressed, `regrow.compact` takes out units that
    nothing reaches, and low-rank layers have lost their rest. Its outputs are those of the model ``with method.core()``
    in evaluation mode.

    Raises:
        RegrowValueError: a method of another kind.
    """
    require_instance("method", method, PartiallyMasked)
    network = copied(method.model, method)
    if not method.is_split:
        masks = {weight.name: method.core_of(weight) for weight in method.weights}
        for weight in sparse_weights(network):
            if weight.name in masks:
                drop = (~weight.take(masks[weight.name])).nonzero().view(-1)
                weight.update(drop, drop[:0])
        give_statistics(network, method.statistics)
    empty = {id(weight.module) for weight in sparse_weights(network) if not weight.nnz}
    for module in network.modules():
        if isinstance(module, LowRankLinear) and id(module.rest) in empty:
            module.rest = None
    return network


def narrower(model: nn.Module, narrow: nn.Module) -> dict[str, Tensor]:
    """Return the masks of the core that is a narrower network: of each weight the first rows and columns.

    Args:
        model: the wide network, dense or sparse in masked storage.
        narrow: the same network with fewer units, the same inputs and the same outputs; its weights do not matter.

    Returns:
        ``{weight name: boolean mask}`` of all weights of two or more dimensions, for ``PartiallyMasked(core=...)``.

    Raises:
        RegrowValueError: networks of different modules, a network that is wider, or a module whose first units depend
            on the others (layer and group norms, recurrent layers).
    """
    wide = unwrapped(require_model("model", model))
    masks = {}
    for name, parameter, block in _blocks(wide, require_model("narrow", narrow)):
        if parameter.dim() > 1:
            masks[name] = torch.zeros(parameter.shape, dtype=torch.bool, device=parameter.device)
            masks[name][block] = True
    return masks


def narrow_core(method: PartiallyMasked, narrow: nn.Module, example: Any) -> nn.Module:
    """Copy the core that `method` trains into a narrower network.

    Args:
        method: its core is that of `narrower` with such a network.
        narrow: the network, whose parameters and statistics are overwritten.
        example: a batch, by which the outputs of both are compared in evaluation mode.

    Returns:
        `narrow`, in evaluation mode.

    Raises:
        RegrowValueError: a network that has not the core's shape, or does not compute what the core computes; it is
            left as it was.
    """
    core, narrow = core_of(method), require_model("narrow", narrow)
    args, kwargs, _ = require_example("example", example)
    state = {name: tensor.clone() for name, tensor in narrow.state_dict().items()}
    for name, parameter, block in _blocks(core, narrow):
        narrow.get_parameter(name).detach().copy_(parameter.detach()[block])
    buffers = dict(core.named_buffers())
    for name, buffer in narrow.named_buffers():
        if name in buffers:
            buffer.copy_(buffers[name][tuple(slice(size) for size in buffer.shape)])
    training = narrow.training
    with torch.no_grad():
        wanted, found = core(*args, **kwargs), narrow.eval()(*args, **kwargs)
    if wanted.shape != found.shape or float((wanted - found).abs().max()) > CLOSE * float(wanted.abs().max()):
        narrow.load_state_dict(state)
        narrow.train(training)
        raise RegrowValueError(
            "`narrow` does not compute what the core computes: its units are not the first of each layer.\nGive the "
            "network that `narrower` was given, or use core_of(method) and regrow.compact."
        )
    return narrow


def _blocks(wide: nn.Module, narrow: nn.Module) -> list[tuple[str, nn.Parameter, tuple[slice, ...]]]:
    """List the parameters of `wide` by name, each with the block that `narrow` has."""
    sizes = {name: tuple(parameter.shape) for name, parameter in narrow.named_parameters()}
    found = dict(wide.named_parameters())
    if sizes.keys() != found.keys():
        raise RegrowValueError(
            f"`narrow` must have the parameters of `model`, these are in one of them: {sorted(sizes.keys() ^ found)}"
        )
    blocks = []
    for name, parameter in found.items():
        own, size = tuple(parameter.shape), sizes[name]
        module = wide.get_submodule(name.rpartition(".")[0])
        if len(own) != len(size) or any(a < b for a, b in zip(own, size, strict=True)):
            raise RegrowValueError(f"`narrow` has `{name}` of shape {size}, allowed is at most {own}")
        if own != size and not isinstance(module, NESTED):
            raise RegrowValueError(
                f"`narrow` has a narrower `{name}`, whose module {type(module).__name__} is no linear layer, "
                "convolution or batch norm: its first units depend on the others.\nUse masks of your own as `core`."
            )
        blocks.append((name, parameter, tuple(slice(n) for n in size)))
    return blocks
