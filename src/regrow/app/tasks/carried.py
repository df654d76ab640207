"""The state of a recurrent network, carried from one batch of streams to the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from regrow._torch import tree_leaves, tree_map_only
from regrow.errors import RegrowValueError

State = Any
"""Tensors, in containers of any kind; None before the first batch."""


class Carried:
    """Calls a network on the batches of streams one after another, each with the state that the last one left.

    Gradients go back to the beginning of a batch and no further: truncated back-propagation through time.

    Args:
        network: has ``with_state(tokens, state)``, which returns outputs and state; it may have ``regularization()``.
        function: what to call in the place of ``network.with_state``: the same, compiled.
    """

    def __init__(
        self, network: nn.Module, function: Callable[[Tensor, State], tuple[Tensor, State]] | None = None
    ) -> None:
        self.network = network
        self.function: Any = function or network.with_state
        self.state: State = None

    def __call__(self, inputs: Tensor) -> Tensor:
        found = self.function(inputs, self.state)
        if not isinstance(found, tuple) or len(found) != 2:
            name = type(self.network).__name__
            raise RegrowValueError(
                f"`with_state` of {name} must return outputs and state, got {type(found).__name__}"
            )
        outputs: Tensor = found[0]
        self.state = tree_map_only(Tensor, Tensor.detach, found[1])
        return outputs

    def saved(self) -> State:
        """Return the state as a checkpoint holds it: a copy, without what else its tensors are views of."""
        return tree_map_only(Tensor, Tensor.clone, self.state)


def carries(network: nn.Module) -> bool:
    """Return whether `network` has a state to carry."""
    return callable(getattr(network, "with_state", None))


def require_state(network: nn.Module, state: State, inputs: Tensor) -> State:
    """Return `state` on the device of `inputs`, once it is known to be one that `network` makes of them.

    Args:
        network: has ``with_state``.
        state: from a checkpoint.
        inputs: int64 [B, T]; nothing is drawn from torch's generator for them.

    Raises:
        RegrowValueError: the state of another network or batch size.
    """
    if state is None:
        return None
    with_state: Any = network.with_state
    training, random = network.training, torch.get_rng_state()
    try:
        with torch.no_grad():
            network.eval()
            _, fresh = with_state(inputs[:, :1], None)
    finally:
        network.train(training)
        torch.set_rng_state(random)
    given, needed = ([list(one.shape) for one in tree_leaves(tree)] for tree in (state, fresh))
    if given != needed:
        raise RegrowValueError(
            f"the state has tensors of shape {_shapes(given)}, and those of {type(network).__name__} with "
            f"{len(inputs)} streams are {_shapes(needed)}: the network or `batch_size` is another one"
        )
    return tree_map_only(Tensor, lambda tensor: tensor.to(inputs.device), state)


def _shapes(shapes: list[list[int]]) -> str:
    return " and ".join(map(str, shapes)) or "none"
