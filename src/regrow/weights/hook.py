"""The tensor hook on a sparse parameter: gradients stay sparse, and update steps see the dense one."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from regrow.weights.base import SparseWeight

_paused = False


class Driver(Protocol):
    """What a hook asks of the method that drives its parameter."""

    def wants_dense_gradient(self) -> bool:
        """Whether the coming step needs the dense gradient."""


class GradientHook:
    """Sees each gradient of one sparse parameter before it is accumulated into ``.grad``.

    It belongs to the parameter (`Tensor.register_hook`) and is found there again by `hook_of`.

    Args:
        weight: the view of the parameter that the hook is for.
    """

    def __init__(self, weight: SparseWeight) -> None:
        self._view = type(weight)
        self._module = weakref.ref(weight.module)  # the module owns the parameter that owns the hook
        self._parameter_name = weight.parameter_name
        self.driver: weakref.ref[Driver] | None = None
        """The method that drives the parameter."""
        self.ran = False
        """A backward pass has reached the parameter since a method last counted a step."""
        self.stash: Any = None
        """The dense gradient of the step so far, in the storage's own form."""
        self.pending: list[tuple[int, Tensor, Tensor]] = []
        """Operands that a backward operator has left for the stash (`regrow.ops.linear.Listener`)."""

    @property
    def recording(self) -> bool:
        """Whether a backward pass that runs now is to be stashed."""
        driver = self.driver() if self.driver is not None else None
        return driver is not None and not _paused and driver.wants_dense_gradient()

    def __call__(self, gradient: Tensor) -> Tensor | None:
        module = self._module()
        if module is None or _paused:
            return None
        weight = self._view(module, self._parameter_name)
        self.ran = True
        if self.recording:
            accumulated = weight.parameter.grad
            afresh = accumulated is None or not accumulated.any()
            self.stash = weight.stash(gradient, None if afresh else self.stash)
        return weight.restrict(gradient)


def hook_of(parameter: Tensor) -> GradientHook | None:
    """The `GradientHook` attached to `parameter`, if there is one."""
    hooks = parameter._backward_hooks or {}
    return next((hook for hook in hooks.values() if isinstance(hook, GradientHook)), None)


def remove_hook(parameter: Tensor) -> None:
    """Take the `GradientHook` off `parameter`, if there is one."""
    hooks = parameter._backward_hooks or {}
    for key in [key for key, hook in hooks.items() if isinstance(hook, GradientHook)]:
        del hooks[key]


@contextmanager
def paused() -> Iterator[None]:
    """Gradients computed inside stay dense and are not stashed: for scoring passes (SNIP, GraSP)."""
    global _paused
    before, _paused = _paused, True
    try:
        yield
    finally:
        _paused = before
