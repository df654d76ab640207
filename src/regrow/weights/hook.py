"""The tensor hook on a sparse parameter: gradients stay sparse, and update steps see the dense one."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from regrow._torch import accumulation_hooks, gradient_hooks, running_backward, when_backward_ends
from regrow.errors import warn

if TYPE_CHECKING:
    from regrow.weights.base import SparseWeight

NO_PASS = -1
"""The number that torch gives where no backward pass runs."""


@dataclass
class Pass:
    """What one backward pass has brought for one weight, until its gradient is accumulated."""

    left: list[Any] = field(default_factory=list)
    """What its operations have handed over: operands (`regrow.ops.listener`), or what was cut from a gradient."""
    gradient: Any = None
    """The dense gradient in the storage's own form, once autograd has computed the parameter's."""
    continues: bool = False
    """Whether that is a further micro-batch of the step, to be added to the stash."""
    times: int = 0
    """Gradients that had been accumulated before."""


class Driver(Protocol):
    """What a hook asks of the method that drives its parameter."""

    def wants_dense_gradient(self) -> bool:
        """Return whether the coming step needs the dense gradient."""


class GradientHook:
    """Sees each gradient of one sparse parameter before and after it is accumulated into ``.grad``.

    It belongs to the parameter (`attach`) and is found there again by `hook_of`. A step that wants the dense gradient
    gets it in two stages::

        operations of a backward pass --leave--> Pass.left --`__call__`--> Pass.gradient --`accumulated`--> stash

    A pass keeps its own until ``.grad`` has the sparse gradient: one that accumulates nothing (`torch.autograd.grad`)
    or never reaches the parameter (attacks) leaves no trace, and several may run in threads. The stash is the step's.

    Args:
        weight: the view of the parameter that the hook is for.
        mask: what restricts gradients once the module is gone (`SparseWeight.mask_alone`).
    """

    __torch_unserializable__ = True  # what is sent to another process gets its hooks there (`ensure_hooks`)

    def __init__(self, weight: SparseWeight, mask: Tensor | None) -> None:
        self._view = type(weight)
        self._module = weakref.ref(weight.module)  # the module owns the parameter that owns the hook
        self._parameter_name = weight.parameter_name
        self._mask = mask
        self._left = (0, 0)  # address and version of .grad as the last pass left it
        self._times = 0  # gradients accumulated
        self._passed = False  # a gradient has been computed, accumulated or not
        self.driver: weakref.ref[Driver] | None = None
        """Set by the method that drives the parameter; `driving` says whether it is still there."""
        self._told = False
        self.paused = False
        """Gradients stay dense and are not stashed (see the function `paused`)."""
        self.ran = False
        """A gradient has been accumulated since a method last counted a step."""
        self.passes: dict[int, Pass] = {}
        """The backward passes that run now, by torch's number."""
        self.unclaimed: Pass | None = None
        """The last pass if it has accumulated nothing: its gradient may be put into ``.grad`` by hand."""
        self.stash: Any = None
        """The dense gradient of the step so far, in the storage's own form."""
        self.overwritten: tuple[Tensor, bool] | None = None
        """Where a state dict has been loaded: the connections before, and whether there was a gradient of theirs."""
        self.reach: Tensor | None = None
        """Positions whose gradient is kept, connections among them, where the driver trains more than those."""

    @property
    def weight(self) -> SparseWeight | None:
        """The view of the parameter, or None where the module is gone."""
        module = self._module()
        return None if module is None else self._view(module, self._parameter_name)

    @property
    def driving(self) -> Driver | None:
        """The method that drives the parameter now, or None."""
        return None if self.driver is None else self.driver()

    @property
    def recording(self) -> bool:
        """Whether a backward pass that runs now is to be stashed."""
        driver = self.driving
        return driver is not None and not self.paused and driver.wants_dense_gradient()

    def attach(self, parameter: Tensor) -> None:
        """Put the hook on `parameter`."""
        parameter.register_hook(self)
        parameter.register_post_accumulate_grad_hook(self.accumulated)

    def reset(self) -> None:
        """Forget the step so far."""
        self.ran, self._passed, self.stash, self.unclaimed = False, False, None, None
        self.passes.clear()

    def leave(self, found: Any) -> None:
        """Keep what the backward pass that runs now has `found`, until its gradient is accumulated or it ends."""
        self._running().left.append(found)

    def _running(self) -> Pass:
        """Find the backward pass that runs now."""
        number = running_backward()
        found = self.passes.get(number)
        if found is None:
            found = self.passes[number] = Pass()
            if number != NO_PASS:
                when_backward_ends(partial(self._end, number))
        return found

    def _end(self, number: int) -> None:
        """Forget a pass that ends, but for a gradient that it has computed and not accumulated."""
        found = self.passes.pop(number, None)
        if found is not None and found.gradient is not None:
            self.unclaimed = found

    def take_up(self, parameter: Tensor) -> None:
        """Count a gradient that `torch.autograd.grad` has computed and somebody has put into ``parameter.grad``."""
        if self._passed and not self.ran:
            self.accumulated(parameter)

    def consume(self) -> None:
        """Begin the step that the gradient was for; the stash stays until it ends."""
        self.ran = self._passed = False

    def before_load(self, weight: SparseWeight) -> None:
        """Keep the connections of a weight that is loaded now, for whoever holds state of theirs."""
        if self.driving is not None and self.overwritten is None:
            self.overwritten = weight.positions(), self.ran

    def __call__(self, gradient: Tensor) -> Tensor | None:
        module = self._module()
        if self.paused:
            return None
        if module is None:
            return self._restrict_alone(gradient)
        weight = self._view(module, self._parameter_name)
        self._mask = weight.mask_alone
        self._passed = True
        self.unclaimed = None
        if self.recording:
            running = self._running()
            running.times = (
                self._times
            )  # first: what a thread accumulates from here on shows in `accumulated`
            running.continues = self.stash is not None and self._is_under_way(weight.parameter.grad)
            running.gradient = weight.note(gradient, running.left)
        return self.restrict(weight, gradient)

    def restrict(self, weight: SparseWeight, gradient: Tensor) -> Tensor:
        """Return `gradient` with zeros where it is not kept."""
        if self.reach is None or self.driving is None:
            return weight.restrict(gradient)
        return gradient.where(self.reach.to(gradient.device), 0)

    def _restrict_alone(self, gradient: Tensor) -> Tensor | None:
        """Restrict a gradient whose module is gone: a layer that `prepare_qat` made has the parameter, say."""
        if self._mask is None:
            return None
        if not self._told:
            self._told = True
            warn(
                f"a sparse weight of shape {tuple(gradient.shape)} is trained outside of the layer that sparsify saw: "
                "its mask still holds for gradients, but regrow.summary, masks, save and methods do not see it.\n"
                "Call regrow.sparsify after whatever replaces layers (prepare_qat), with init='magnitude'."
            )
        return gradient.where(self._mask.to(gradient.device), 0)

    def accumulated(self, parameter: Tensor) -> None:
        """Take in that the gradient of the backward pass is in ``parameter.grad``."""
        module = self._module()
        if module is None or self.paused or parameter.grad is None:
            return
        self.ran = True
        number = running_backward()
        found = self.passes.pop(number, None)
        if number == NO_PASS:
            found, self.unclaimed = found or self.unclaimed, None
        if found is not None and found.gradient is not None:
            between = self.stash is not None and found.times < self._times  # another thread was
            weight = self._view(module, self._parameter_name)
            self.stash = (
                weight.add(self.stash, found.gradient) if found.continues or between else found.gradient
            )
        self._times += 1
        self._left = (parameter.grad.data_ptr(), parameter.grad._version)

    def was_edited(self, gradient: Tensor) -> bool:
        """Return whether `gradient`, which is in ``.grad`` now, is another than the last backward pass has left
        there.
        """
        return (gradient.data_ptr(), gradient._version) != self._left

    def _is_under_way(self, accumulated: Tensor | None) -> bool:
        """Return whether ``.grad`` holds earlier micro-batches of this step: untouched, or not set to zero."""
        if accumulated is None:
            return False
        return not self.was_edited(accumulated) or bool(accumulated.any())


def hook_of(parameter: Tensor) -> GradientHook | None:
    """Find the `GradientHook` attached to `parameter`, if there is one."""
    for hook in (gradient_hooks(parameter) or {}).values():
        if isinstance(hook, GradientHook):
            return hook
    return None


def weight_of(parameter: Tensor) -> SparseWeight | None:
    """Find the sparse weight whose parameter this is, or None."""
    hook = hook_of(parameter)
    return None if hook is None else hook.weight


def driver_of(parameter: Tensor) -> Driver | None:
    """Find the method that drives `parameter`, or None."""
    hook = hook_of(parameter)
    return None if hook is None else hook.driving


def is_trained(parameter: Tensor) -> bool:
    """Return whether a method drives `parameter`, or gradients have reached it: its values are its own affair."""
    hook = hook_of(parameter)
    return hook is not None and (hook.ran or hook.driving is not None)


def remove_hook(parameter: Tensor) -> None:
    """Take the `GradientHook` off `parameter`, if there is one."""
    for hooks in (gradient_hooks(parameter) or {}, accumulation_hooks(parameter) or {}):
        for key, hook in list(hooks.items()):
            if isinstance(getattr(hook, "__self__", hook), GradientHook):
                del hooks[key]


@contextmanager
def paused(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Leave gradients of `parameters` computed inside dense and do not stash them: for scoring passes (SNIP, GraSP).

    Other weights are as they always are: another thread may train a model of its own meanwhile.
    """
    hooks = [(hook, hook.paused) for hook in map(hook_of, parameters) if hook is not None]
    for hook, _ in hooks:
        hook.paused = True
    try:
        yield
    finally:
        for hook, before in hooks:
            hook.paused = before
