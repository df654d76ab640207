"""`Method`: what every method has in common. It hooks an optimizer; it never wraps it.

The optimizer's hooks make a step of Algorithm 1 (RigL, arXiv 1911.11134) out of each ``optimizer.step()``.
All numbers that a method must remember are entries of ``optimizer.param_groups[0]``, all tensors entries of
``optimizer.state[p]``, and the topology is in the model's buffers: whoever saves model and optimizer has it all.
Tickets, which are networks besides, have a state of their own.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from regrow._random import generator
from regrow.arguments import (
    require_count,
    require_flag,
    require_function,
    require_group,
    require_model,
    require_seed,
)
from regrow.errors import RegrowRuntimeError, RegrowValueError, warn
from regrow.methods import gradients, optimizers, processes
from regrow.methods.attached import STEP, Attached
from regrow.methods.state import SLOW, companions, own
from regrow.weights import NonFiniteGradientError, SparseWeight, hook_of, sparse_weights
from regrow.weights.copies import followers
from regrow.weights.gates import is_gate
from regrow.weights.views import settle

# where a gradient comes from: a backward pass has left it, or somebody has put it there
PASSED, BY_HAND = 2, 1
UpdateRecord = dict[str, Any]
"""Plain numbers about one topology update."""


class Method(Attached):
    """Base of all methods: counts steps, sees gradients, and calls `update` at update steps.

    Args:
        model: a model that `sparsify` has made sparse, or any wrapper of one (DDP, compiled).
        optimizer: the torch optimizer that trains it, made after `sparsify`.
        total_steps: optimizer steps of the whole run; None where the method has no schedule.
        skip_step: whether the weights rest at an update step; None is the method's own default.
        seed: of random choices, which are a pure function of (seed, step, layer name).
        process_group: processes that train one model together; None is all, where torch.distributed runs.

    Raises:
        RegrowValueError: an argument that is not allowed, an optimizer that does not fit sparse weights.
        RegrowRuntimeError: a model that is not sparse, an optimizer that does not hold its parameters, a second
            method on one model, processes that disagree about the topology.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        total_steps: int | None = None,
        skip_step: bool | None = None,
        seed: int = 0,
        process_group: Any = None,
    ) -> None:
        require_model("model", model)
        self.total_steps = None if total_steps is None else require_count("total_steps", total_steps)
        self.seed = require_seed("seed", seed)
        self._followers: list[weakref.ref[nn.Module]] = []
        self._update_hooks: OrderedDict[int, Callable[[UpdateRecord], None]] = OrderedDict()
        self._open = False  # inside a step that counts
        self._ran: list[int] = []  # of each weight: has it a gradient in this step, and where from?
        self._due: UpdateRecord | None = None  # for the update hooks, once the step is counted
        self._hidden: list[tuple[nn.Parameter, Tensor]] = []
        self._told_of_zeros = False
        skip = self.skips_step if skip_step is None else require_flag("skip_step", skip_step)
        super().__init__(model, optimizer, skip, require_group("process_group", process_group))

    # --- where it stands

    @property
    def next_update(self) -> int | None:
        """The step of the next topology update, or None."""
        return None

    @property
    def last_update(self) -> int | None:
        """The step of the last topology update there will be, or None."""
        return None

    def __repr__(self) -> str:
        name = type(self).__name__
        if self._ended is not None:
            return f"{name}(detached at step {self._ended})"
        if self._replacement() is not None:
            return f"{name}(replaced by another method at step {self.step})"
        level = sum(w.nnz for w in self.weights) / sum(w.numel for w in self.weights)
        total = "" if self.total_steps is None else f" of {self.total_steps}"
        return f"{name}({self.step}{total} steps made; {self._updates()}; sparsity now {1 - level:.4f})"

    def _updates(self) -> str:
        """Say which updates are to come."""
        coming, last = self.next_update, self.last_update
        if coming is None:
            return "no update to come" + ("" if last is None else f", the last was due at step {last}")
        return f"updates to come: the next at step {coming}, " + (
            f"the last at {last}" if last is not None else "no last"
        )

    @property
    def steered(self) -> bool:
        """Whether updates have been asked for beside the schedule: the run may then go on past `total_steps`."""
        return False

    @property
    def keeps_gates(self) -> bool:
        return type(self).update is Method.update

    def is_update(self, step: int) -> bool:
        """Return whether the topology is updated at this step."""
        return False

    def wants_dense_gradient(self) -> bool:
        """Return whether the coming step needs the dense gradient."""
        return self.needs_gradient == "always" or (
            self.needs_gradient == "update" and self.is_update(self.step)
        )

    # --- what happens at a step

    def update(self, step: int, weights: list[SparseWeight]) -> UpdateRecord | None:
        """Choose and make the moves of one topology update; see `Dynamic`.

        Args:
            step: the optimizer step, counted from 0.
            weights: the sparse weights that have a gradient in this step.

        Returns:
            A record of plain numbers for the update hooks, or None where nothing was updated.
        """
        return None

    def observe(self, weight: SparseWeight, gradient: Tensor) -> None:
        """See the dense gradient of every step, where the method needs it ``always``, once the weights have moved."""

    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Step pre-hook. A closure computes the gradients after this: the method then acts behind it."""
        return optimizers.after_gradients(optimizer, args, kwargs, self._begin)

    def _begin(self) -> None:
        """Act when the gradients are there and the weights have not moved yet."""
        late: set[int] = set()
        if not self._open:
            late = self._adopt_late()
            self._settle_loads()
        hooks = [hook_of(weight.parameter) for weight in self.weights]
        for hook, weight in zip(hooks, self.weights, strict=True):
            if hook is not None:
                hook.take_up(weight.parameter)
        ran = [hook is not None and hook.ran for hook in hooks]
        by_hand = [
            not self._open and not passed and gradients.is_put_by_hand(w.parameter.grad)
            for w, passed in zip(self.weights, ran, strict=True)
        ]
        if not any(ran + by_hand) and (self._open or not (self.distributed and self._reached_elsewhere())):
            return  # no step, or the inner one of two nested calls (an optimizer whose step calls super().step())
        self._restore()
        self._settle_parameters()
        self._told_of_zeros = self._told_of_zeros or gradients.warn_where_emptied(
            self.weights, hooks, self.model.parameters()
        )
        for weight, hook, put in zip(self.weights, hooks, by_hand, strict=True):
            if put and hook is not None and self.wants_dense_gradient():
                gradients.note_put_by_hand(weight, hook)
            gradients.clean(weight, hook)
        gradients.note_counted(self.weights)
        found_inf = getattr(self.optimizer, "found_inf", None)  # GradScaler tells a fused optimizer so
        for hook in hooks:
            if hook is not None:
                hook.consume()
        self._ran = [
            0 if id(p) in late else PASSED if passed else BY_HAND if put else 0
            for passed, put, p in zip(ran, by_hand, self._parameters, strict=True)
        ]
        self._open = not (found_inf is not None and bool(found_inf))
        if self._open and self.skip_step and self._update():
            self._hidden = [
                (p, p.grad)
                for group in self.optimizer.param_groups
                for p in group["params"]
                if p.grad is not None
            ]
            for parameter, _ in self._hidden:
                parameter.grad = None

    def _reached_elsewhere(self) -> bool:
        """Return whether another process has reached a sparse weight: its gradient, averaged, is here too."""
        return any(p.grad is not None and bool(p.grad.any()) for p in self._parameters)

    def _restore(self) -> None:
        """Put the gradients back that an update step hid from the optimizer: loops log them afterwards."""
        for parameter, gradient in self._hidden:
            if parameter.grad is None:
                parameter.grad = gradient
        self._hidden = []

    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Step post-hook."""
        if not self._open:
            return
        self._restore()
        if self.needs_gradient == "always":
            for weight in self._with_gradients(self._reached()):
                self.observe(weight, weight.stashed)
        if not self.skip_step:
            self._update()
        self._open = False
        for hook in self._hooks():
            hook.reset()
        step, ahead = self.step, self.next_update
        # few steps between two updates, the last just before: between two of an average's writes, however far apart
        is_time = ahead is not None and ((left := ahead - step) & (left - 1)) == 0
        for weight in self.weights:
            if weight.record.due or (is_time and weight.record.unsure):
                weight.part(companions(self.optimizer, weight).values())
        gradients.note_counted(self.weights)
        self._group[STEP] = step + 1
        record, self._due = self._due, None
        if record is not None:
            self._agree(
                {"step": step + 1, "next update": -1 if self.next_update is None else self.next_update}
            )
            for call in list(self._update_hooks.values()):
                call(record)
        if self.total_steps is not None and step == self.total_steps and not self.steered:
            warn(f"{type(self).__name__}: past total_steps={self.total_steps} the topology rests")

    def _update(self) -> bool:
        """Update the topology if this step is due. Returns whether it was."""
        step = self.step
        if not self.is_update(step):
            return False
        for weight in self.weights:
            if not weight.parameter.is_cpu:  # where a look at each pass would wait for the device
                weight.settle(thorough=True)
        self._agree(self._plan())
        weights = self._with_gradients(self._reached(self._goes_by))
        if not weights:
            warn(f"the dense gradient at step {step} is zero: the topology stays")
            return False
        try:
            self._due = self.update(step, weights)
        except NonFiniteGradientError:
            warn(f"the dense gradient at step {step} is not finite: the topology stays")
            return False
        return True

    def _agree(self, plan: dict[str, float]) -> None:
        """See that the processes have not parted: before an update, in which they exchange more, and after it."""
        if self.distributed:
            processes.check_step(plan, self.weights, self._device, self.process_group)

    def _plan(self) -> dict[str, float]:
        """Say what the update at this step depends on, in numbers that are the same in each process."""
        return {"step": self.step}

    def _goes_by(self, weight: SparseWeight) -> bool:
        """Return whether the dense gradient of a weight says anything: one that is zero moves nothing."""
        return self.needs_gradient == "never" or not weight.is_zero(weight.stashed)

    def _reached(self, counts: Callable[[SparseWeight], bool] = lambda weight: True) -> list[int]:
        """Ask all processes where the gradient of each weight comes from in this step; 0 where it has none.

        DistributedDataParallel puts the gradient of other processes into ``.grad``, as a hand would.

        Args:
            counts: whether a weight that a backward pass has reached counts.
        """
        counted = [
            0 if ran == PASSED and not counts(weight) else ran
            for ran, weight in zip(self._ran, self.weights, strict=True)
        ]
        ran = torch.tensor(counted, dtype=torch.float32, device=self._parameters[0].device)
        if self.distributed:
            dist.all_reduce(ran, dist.ReduceOp.MAX, group=self.process_group)
        return [int(flag) for flag in ran.tolist()]

    def _with_gradients(self, reached: list[int]) -> list[SparseWeight]:
        """Choose the weights that are `reached`; the dense gradient of those reached elsewhere is zero."""
        for weight, here, anywhere in zip(self.weights, self._ran, reached, strict=True):
            hook = hook_of(weight.parameter)
            if here < anywhere and hook is not None:
                hook.stash = weight.nothing()
        return [weight for weight, anywhere in zip(self.weights, reached, strict=True) if anywhere]

    # --- what methods use

    def average(self, tensor: Tensor) -> Tensor:
        """Average `tensor` over the processes, in place; every process gets the same bits."""
        if self.distributed:
            dist.all_reduce(tensor, group=self.process_group)
            tensor /= dist.get_world_size(self.process_group)
        return tensor

    def random(self, step: int, weight: SparseWeight, *words: str) -> torch.Generator:
        """Return the generator of one layer's random choices at one step, the same in every process."""
        return generator(self.seed, step, weight.name, *words)

    def move(self, weight: SparseWeight, drop: Tensor, grow: Tensor) -> int:
        """Swap connections with all that goes with them: gradient, optimizer state, followers.

        Args:
            weight: the weight.
            drop: which of its active connections go, as for `SparseWeight.update`.
            grow: positions that come.

        Returns:
            The number of truly new connections.
        """
        for copy in self._copies(weight):
            if copy.fingerprint() != weight.fingerprint():
                raise RegrowRuntimeError(
                    f"a copy that follows has another topology in `{weight.name}` by now (the model was loaded?).\n"
                    "Load the copy too, or make it again and call follow."
                )
            copy.update(drop.to(copy.parameter.device), grow.to(copy.parameter.device))
        return weight.update(drop, grow, list(companions(self.optimizer, weight).values()))

    def copies_of(self, weight: SparseWeight) -> list[Tensor]:
        """Return the state of the optimizer that is a copy of a weight's values: slow weights, schedule-free's z."""
        state = own(self.optimizer.state.get(weight.parameter, {}))
        return [tensor for key, tensor, _ in state if key in self._found.copies or key == SLOW]

    def _copies(self, weight: SparseWeight) -> list[SparseWeight]:
        """Return the weights that make the moves of `weight`: those that follow by themselves, and those of
        `follow`.
        """
        models = [model for follower in self._followers if (model := follower()) is not None]
        asked = [copy for model in models for copy in sparse_weights(model) if copy.name == weight.name]
        for copy in asked:
            copy.settle(thorough=True)
        return asked + followers(weight, {copy.module for copy in asked})

    def remembered(self, weight: SparseWeight, key: str) -> Tensor | None:
        """Return what `remember` has kept under `key` for a weight, or None."""
        kept: Tensor | None = self.optimizer.state.get(weight.parameter, {}).get(key)
        return kept

    def remember(self, weight: SparseWeight, key: str, tensor: Tensor) -> None:
        """Keep a tensor of the method's own with the optimizer's state of a weight; `key` starts with ``regrow_``."""
        if is_gate(weight):
            raise RegrowRuntimeError(
                f"`{weight.name}` is a gate that is apart, and state is of whole weights.\nRemember it in `observe`, "
                "or use gates='together'."
            )
        state = self.optimizer.state
        # Adam takes a state that is not empty for one that is complete: its own comes first
        if not self._found.stateful or state.get(weight.parameter):
            state[weight.parameter][key] = tensor

    def follow(self, copy: nn.Module) -> None:
        """Make the same moves in `copy`: dropped connections go, new ones start at 0.

        For copies of the model that are averaged with it parameter by parameter (EMA, SWA, `AveragedModel`).
        Call it right after the copy is made.

        Raises:
            RegrowValueError: a copy whose topology is not the model's.
        """
        require_model("copy", copy)
        settle(copy)  # which it may be without moves that were made in it for averages
        theirs = {weight.name: weight.fingerprint() for weight in sparse_weights(copy)}
        if theirs != {weight.name: weight.fingerprint() for weight in self.weights}:
            raise RegrowValueError("`copy` must have the topology of the model that the method drives")
        self._followers.append(weakref.ref(copy))

    def register_update_hook(self, hook: Callable[[UpdateRecord], None]) -> RemovableHandle:
        """Call `hook` with a record of plain numbers after each topology update.

        Returns:
            A handle whose ``remove()`` ends it.
        """
        require_function("hook", hook, "record")
        handle = RemovableHandle(self._update_hooks)
        self._update_hooks[handle.id] = hook
        return handle
