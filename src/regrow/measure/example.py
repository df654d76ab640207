"""One batch through a model, for whoever wants to watch it: `run_once`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from regrow.arguments import require_example
from regrow.errors import RegrowValueError

Example = Tensor | Sequence[Any] | Mapping[str, Any]
"""One batch: what the model takes, the arguments of its forward pass, or the keyword arguments."""


def run_once(model: nn.Module, example: Example) -> int:
    """Run the forward pass of `model` on `example`, in evaluation mode and without gradients; it is left as it was.

    Returns:
        The number of examples in the batch, by the first dimension of its first tensor.

    Raises:
        RegrowValueError: an example that the model does not take.
    """
    args, kwargs, batch = require_example("example", example)
    try:
        with _resting(model):
            model(*args, **kwargs)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        raise RegrowValueError(
            f"`example` does not go through `model`: {_shapes(example)}: {error}"
        ) from error
    return batch


def first_tensor(value: Any) -> Tensor:
    """Return the first tensor of what a module takes or gives: a recurrent layer gives its output and its states."""
    while not isinstance(value, Tensor):
        value = value[0]
    return value


def _shapes(example: Any) -> str:
    values = example.values() if isinstance(example, Mapping) else example
    values = [example] if isinstance(example, Tensor) else values
    return ", ".join(f"shape {tuple(v.shape)}" if isinstance(v, Tensor) else repr(v) for v in values)


@contextmanager
def _resting(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode, no gradients, no fused operators that bypass modules; restore all of it afterwards."""
    training = {module: module.training for module in model.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    state = torch.get_rng_state()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch.set_rng_state(state)
        for module, mode in training.items():
            module.training = mode
