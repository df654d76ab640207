"""`Method`: what every method has in common. It hooks an optimizer; it never wraps it.

The optimizer's hooks make a step of Algorithm 1 (RigL, arXiv 1911.11134) out of each ``optimizer.step()``.
All numbers that a method must remember are entries of ``optimizer.param_groups[0]``, all tensors entries of
``optimizer.state[p]``, and the topology is in the model's buffers: whoever saves model and optimizer has it all.
"""

from __future__ import annotations

import inspect
import logging
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from regrow.errors import RegrowRuntimeError, RegrowValueError, require_count
from regrow.methods import checks, gradients, moments, optimizers, processes
from regrow.methods.probe import Found, probe
from regrow.methods.state import PREFIX, companions, own
from regrow.methods.wrappers import unwrap
from regrow.topology import generator
from regrow.weights import GradientHook, NonFiniteGradientError, SparseWeight, hook_of, sparse_weights
from regrow.weights.hook import driver_of
from regrow.weights.views import ensure_hooks, unwrapped

STEP = f"{PREFIX}step"
UpdateRecord = dict[str, Any]
"""Plain numbers about one topology update."""


class Method:
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

    needs_gradient: ClassVar[str] = "never"
    """When the dense gradient is needed: ``never``, at each ``update``, or ``always``."""
    skips_step: ClassVar[bool] = False
    """Whether the weights rest at an update step, as in RigL's Algorithm 1."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Show all arguments of a constructor that hands ``**options`` on, for help, recipes and checks."""
        super().__init_subclass__(**options)
        if "__init__" in cls.__dict__:
            own = [p for n, p in inspect.signature(cls.__init__).parameters.items() if n != "self"]
            if any(p.kind is p.VAR_KEYWORD for p in own):
                handed_on = inspect.signature(cls.__mro__[1]).parameters.values()
                own = [p for p in own if p.kind is not p.VAR_KEYWORD]
                own += [p for p in handed_on if p.name not in {q.name for q in own}]
            cls.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]

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
        self.model = unwrapped(model)
        """The model itself, without the wrappers of torch."""
        self.optimizer = unwrap(optimizer)
        self.total_steps = None if total_steps is None else require_count("total_steps", total_steps)
        self.skip_step = self.skips_step if skip_step is None else bool(skip_step)
        self.seed = require_count("seed", seed, least=0)
        self.process_group = process_group
        checks.check_whole(model)
        self.weights = self._drivable(model)
        self._check(model)
        self._found = Found()
        self._take_up(self.weights)
        self._followers: list[weakref.ref[nn.Module]] = []
        self._update_hooks: OrderedDict[int, Callable[[UpdateRecord], None]] = OrderedDict()
        self._open = False  # inside a step that counts
        self._loaded_state = False  # the optimizer's state was loaded since the last step
        self._ended: int | None = None  # the step at which it was detached
        self._ran: list[bool] = []  # of each weight: has it a gradient in this step?
        self._due: UpdateRecord | None = None  # for the update hooks, once the step is counted
        self._hidden: list[tuple[nn.Parameter, Tensor]] = []
        self._attach()
        self.optimizer.param_groups[0].setdefault(STEP, 0)
        if self.step:
            logging.getLogger("regrow").info("continuing at step %d", self.step)

    def _take_up(self, weights: list[SparseWeight]) -> None:
        """Make the optimizer known with `weights`, which are among those that are driven."""
        self._found |= probe(self.optimizer, weights, skips=self.skip_step and self.needs_gradient != "never")
        self._parameters = [w.parameter for w in self.weights]
        self._shapes = [p.shape for p in self._parameters]
        driven = {id(p) for p in self._parameters}
        self._others = [w for w in sparse_weights(self.model) if id(w.parameter) not in driven]
        self._held = self._count_held()

    def _count_held(self) -> int:
        return sum(len(group["params"]) for group in self.optimizer.param_groups)

    def _adopt_late(self) -> None:
        """Drive what is trained since the method was attached: unfrozen, added to the optimizer or to the model."""
        held = self._count_held()
        if held == self._held and not any(w.parameter.requires_grad for w in self._others):
            return
        self._held = held
        driven = {id(p) for p in self._parameters}
        trained = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        candidates = [w for w in sparse_weights(self.model) if id(w.parameter) in trained - driven]
        late = [w for w in candidates if checks.living_driver(w) is None]
        if not late:
            return
        names = [weight.name for weight in late]
        checks.check_weights(self.model, late, self)
        ids = driven | {id(w.parameter) for w in late}
        self.weights = [w for w in sparse_weights(self.model) if id(w.parameter) in ids]
        checks.check_names(self.weights)
        self._take_up(late)
        self._hooks()
        logging.getLogger("regrow").info("%s drives %s too from step %d on", self, names, self.step)

    def _drivable(self, model: nn.Module) -> list[SparseWeight]:
        """The sparse weights that are trained now, or that the optimizer holds for later."""
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        weights = sparse_weights(model)
        if not any(weight.parameter.requires_grad for weight in weights):
            return []
        return [w for w in weights if w.parameter.requires_grad or id(w.parameter) in held]

    def _check(self, model: nn.Module) -> None:
        checks.check_weights(model, self.weights, self)
        optimizers.check_holds(self.optimizer, self.weights)
        self._check_state()
        if self.distributed:
            plain = {key: value for key, value in vars(self).items() if isinstance(value, int | float | str)}
            settings = {"method": type(self).__name__, "step": self.step, **plain}
            processes.check_agreement(settings, self.weights, self.process_group)
            processes.warn_of_broadcasts(model)
        checks.cut_inactive(self.weights)

    def _check_state(self) -> None:
        for weight in self.weights:
            companions(self.optimizer, weight)

    def _loaded(self, *_: Any) -> None:
        """State of another step has been loaded: what was seen of the present one is void."""
        self._check_state()
        self._loaded_state = True
        gradients.note_counted(self.weights)
        for weight in self.weights:  # not `_hooks`: the model may be loaded only after this
            if hook := hook_of(weight.parameter):
                hook.reset()

    def _attach(self) -> None:
        checks.claim(self.optimizer, self)
        self._hooks()
        # a compiled optimizer.step would otherwise trace the hooks and recompile at every count
        before, after = torch.compiler.disable(self._before), torch.compiler.disable(self._after)
        self._handles: list[Any] = [
            self.optimizer.register_step_pre_hook(before),
            self.optimizer.register_step_post_hook(after),
            self.optimizer.register_load_state_dict_post_hook(self._loaded),
        ]

    def _hooks(self) -> list[GradientHook]:
        """The hooks of the weights that are trained, each told who drives it; anew where a copy or a move lost them."""
        hooks = []
        for weight in self.weights:
            ensure_hooks(weight.module)
            hook = hook_of(weight.parameter)
            if hook is not None:
                hook.driver = weakref.ref(self)
                hooks.append(hook)
        return hooks

    # --- where it stands

    @property
    def step(self) -> int:
        """Optimizer steps counted so far."""
        return int(self.optimizer.param_groups[0].get(STEP, 0))

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
        return (
            f"{name}(step {self.step} of {self.total_steps}, next update {self.next_update}, "
            f"last update {self.last_update}, sparsity {1 - level:.4f})"
        )

    @property
    def steered(self) -> bool:
        """Whether updates have been asked for beside the schedule: the run may then go on past `total_steps`."""
        return False

    def is_update(self, step: int) -> bool:
        """Whether the topology is updated at this step."""
        return False

    def wants_dense_gradient(self) -> bool:
        """Whether the coming step needs the dense gradient."""
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
        """The gradients are there, the weights have not moved yet."""
        if not self._open:
            self._adopt_late()
            self._settle_loads()
        hooks = [hook_of(weight.parameter) for weight in self.weights]
        ran = [
            hook is not None and hook.has_gradient(w.parameter)
            for hook, w in zip(hooks, self.weights, strict=True)
        ]
        by_hand = [
            not self._open and not passed and gradients.is_put_by_hand(w.parameter.grad)
            for w, passed in zip(self.weights, ran, strict=True)
        ]
        ran = [passed or put for passed, put in zip(ran, by_hand, strict=True)]
        if not any(ran) and (self._open or not (self.distributed and self._reached_elsewhere())):
            return  # no step, or the inner one of two nested calls (an optimizer whose step calls super().step())
        self._restore()
        self._check_parameters()
        for weight, hook, put in zip(self.weights, hooks, by_hand, strict=True):
            if put and hook is not None and self.wants_dense_gradient():
                gradients.note_put_by_hand(weight, hook)
            gradients.clean(weight, hook)
        gradients.note_counted(self.weights)
        found_inf = getattr(self.optimizer, "found_inf", None)  # GradScaler tells a fused optimizer so
        for hook in hooks:
            if hook is not None:
                hook.consume()
        self._ran = ran
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
        """Whether another process has reached a sparse weight: its gradient, averaged, is here too."""
        return any(p.grad is not None and bool(p.grad.any()) for p in self._parameters)

    def _settle_loads(self) -> None:
        """State of connections that a loaded model has changed goes, unless the optimizer was loaded as well."""
        changed = moments.carry_over(self.optimizer, self.weights, loaded=self._loaded_state)
        self._loaded_state = False
        if changed:
            warnings.warn(
                f"the model was loaded in another topology and the optimizer was not: connections of {changed} that "
                "are new start without its state.\nLoad what was saved with the model too: "
                "optimizer.load_state_dict(...)",
                stacklevel=2,
            )

    def _replacement(self) -> Any:
        """The method that has taken over a weight that this one drives, or None."""
        for parameter in self._parameters:
            driver = driver_of(parameter)
            if driver is not None and driver is not self:
                return driver
        return None

    def _check_parameters(self) -> None:
        if (other := self._replacement()) is not None:
            raise RegrowRuntimeError(
                f"`optimizer` makes a step with weights that another method drives by now: {other!r}\n"
                "Use the optimizer that was made with that one, or call its detach() first."
            )
        for weight, parameter in zip(self.weights, self._parameters, strict=True):
            weight.check_unchanged()
            if weight.parameter is not parameter:
                raise RegrowRuntimeError(
                    f"`{weight.name}` is another parameter now than the one that `optimizer` holds "
                    "(load_state_dict(assign=True), or a conversion).\nMake optimizer and method anew."
                )
        shapes = [parameter.shape for parameter in self._parameters]
        if shapes != self._shapes:
            self._check_state()
            self._shapes = shapes

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
            for weight in self._reached():
                self.observe(weight, weight.stashed)
        if not self.skip_step:
            self._update()
        self._open = False
        for hook in self._hooks():
            hook.reset()
        gradients.note_counted(self.weights)
        step = self.step
        self.optimizer.param_groups[0][STEP] = step + 1
        record, self._due = self._due, None
        if record is not None:
            for call in list(self._update_hooks.values()):
                call(record)
        if self.total_steps is not None and step == self.total_steps and not self.steered:
            warnings.warn(
                f"{type(self).__name__}: past total_steps={self.total_steps} the topology rests", stacklevel=2
            )

    def _update(self) -> bool:
        """Update the topology if this step is due. Returns whether it was."""
        step = self.step
        if not self.is_update(step):
            return False
        weights = self._reached(self._goes_by)
        if not weights:
            warnings.warn(f"the dense gradient at step {step} is zero: the topology stays", stacklevel=2)
            return False
        try:
            self._due = self.update(step, weights)
        except NonFiniteGradientError:
            warnings.warn(
                f"the dense gradient at step {step} is not finite: the topology stays", stacklevel=2
            )
            return False
        return True

    def _goes_by(self, weight: SparseWeight) -> bool:
        """Whether the dense gradient of a weight says anything: one that is zero moves nothing."""
        return self.needs_gradient == "never" or not weight.is_zero(weight.stashed)

    def _reached(self, counts: Callable[[SparseWeight], bool] = lambda weight: True) -> list[SparseWeight]:
        """The weights that a backward pass has reached in this step and that count, on any process."""
        own = [ran and counts(weight) for ran, weight in zip(self._ran, self.weights, strict=True)]
        ran = torch.tensor(own, dtype=torch.float32, device=self._parameters[0].device)
        if self.distributed:
            dist.all_reduce(ran, dist.ReduceOp.MAX, group=self.process_group)
        reached = [weight for weight, flag in zip(self.weights, ran, strict=True) if flag]
        for weight, own in zip(self.weights, self._ran, strict=True):
            hook = hook_of(weight.parameter)
            if not own and hook is not None:  # reached on another process only
                hook.stash = weight.nothing()
        return reached

    # --- what methods use

    @property
    def distributed(self) -> bool:
        """Whether several processes train the model together."""
        return dist.is_available() and dist.is_initialized() and dist.get_world_size(self.process_group) > 1

    def average(self, tensor: Tensor) -> Tensor:
        """`tensor` averaged over the processes, in place; every process gets the same bits."""
        if self.distributed:
            dist.all_reduce(tensor, group=self.process_group)
            tensor /= dist.get_world_size(self.process_group)
        return tensor

    def random(self, step: int, weight: SparseWeight, *words: str) -> torch.Generator:
        """The generator of one layer's random choices at one step, the same in every process."""
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
        for copy in self._copies(weight.name):
            if copy.fingerprint() != weight.fingerprint():
                raise RegrowRuntimeError(
                    f"a copy that follows has another topology in `{weight.name}` by now (the model was loaded?).\n"
                    "Load the copy too, or make it anew and call follow."
                )
            copy.update(drop.to(copy.parameter.device), grow.to(copy.parameter.device))
        return weight.update(drop, grow, list(companions(self.optimizer, weight).values()))

    def copies_of(self, weight: SparseWeight) -> list[Tensor]:
        """State of the optimizer that is a copy of a weight's values: slow weights, schedule-free's z."""
        state = own(self.optimizer.state.get(weight.parameter, {}))
        return [tensor for key, tensor, _ in state if key in self._found.copies]

    def _copies(self, name: str) -> list[SparseWeight]:
        models = [model for follower in self._followers if (model := follower()) is not None]
        return [weight for model in models for weight in sparse_weights(model) if weight.name == name]

    def remembered(self, weight: SparseWeight, key: str) -> Tensor | None:
        """What `remember` has kept under `key` for a weight, or None."""
        kept: Tensor | None = self.optimizer.state.get(weight.parameter, {}).get(key)
        return kept

    def remember(self, weight: SparseWeight, key: str, tensor: Tensor) -> None:
        """Keep a tensor of the method's own with the optimizer's state of a weight; `key` starts with ``regrow_``."""
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
        theirs = {weight.name: weight.fingerprint() for weight in sparse_weights(copy)}
        if theirs != {weight.name: weight.fingerprint() for weight in self.weights}:
            raise RegrowValueError("`copy` must have the topology of the model that the method drives")
        self._followers.append(weakref.ref(copy))

    def register_update_hook(self, hook: Callable[[UpdateRecord], None]) -> RemovableHandle:
        """Call `hook` with a record of plain numbers after each topology update.

        Returns:
            A handle whose ``remove()`` ends it.
        """
        handle = RemovableHandle(self._update_hooks)
        self._update_hooks[handle.id] = hook
        return handle

    def detach(self) -> None:
        """End the method: the topology rests from now on, and another method may be attached."""
        if self._ended is not None:
            return
        self._ended = self.step
        for handle in self._handles:
            handle.remove()
        for weight in self.weights:
            hook = hook_of(weight.parameter)
            if hook is not None and hook.driving in (self, None):
                hook.driver = None
                hook.reset()
        self.optimizer.__dict__.pop(checks.DRIVER, None)
        for entries in (*self.optimizer.param_groups, *self.optimizer.state.values()):
            for key in [key for key in entries if isinstance(key, str) and key.startswith(PREFIX)]:
                del entries[key]
