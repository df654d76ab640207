"""What a method hooks, from the moment it is attached to the one it is detached, whatever others change meanwhile."""

from __future__ import annotations

import logging
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from regrow._formats import OPTIMIZER, require_format
from regrow.errors import RegrowRuntimeError, warn
from regrow.methods import checks, gradients, moments, optimizers, processes
from regrow.methods.probe import Found, probe
from regrow.methods.state import PREFIX, companions
from regrow.methods.wrappers import unwrap
from regrow.weights import GradientHook, SparseWeight, hook_of, sparse_weights
from regrow.weights.forward import ensure_hooks
from regrow.weights.hook import driver_of
from regrow.weights.patterns import Pattern
from regrow.weights.views import unwrapped

STEP = f"{PREFIX}step"
FORMAT = f"{PREFIX}format"


class Attached(ABC):
    """The part of a `Method` that is attached to a model and an optimizer: see there.

    Args:
        model, optimizer, skip_step, process_group: those of the method, whose own arguments are known by then.
    """

    needs_gradient: ClassVar[str] = "never"
    """When the dense gradient is needed: ``never``, at each ``update``, or ``always``."""
    skips_step: ClassVar[bool] = False
    """Whether the weights rest at an update step, as in RigL's Algorithm 1."""
    initial_sparsity: ClassVar[float | None] = None
    """Where the published method starts, if it prunes from there to an argument `final_sparsity`."""
    storages: ClassVar[tuple[str, ...] | None] = None
    """Storages that the method runs on; None is all, but masks alone where `needs_gradient` is ``always``."""
    storages_because: ClassVar[str] = ""
    """Why it runs on those alone, for the message where another is refused: `it ...`."""
    backward_ratio: float = 1.0
    """Positions whose weights are trained, for each connection."""
    pattern: ClassVar[str | None] = None
    """The pattern of `regrow.sparsify` that its weights must have; None is any, or none."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, skip_step: bool, process_group: Any) -> None:
        self.model = unwrapped(model)
        """The model itself, without the wrappers of torch."""
        self._optimizer = weakref.ref(unwrap(optimizer))  # which has this method
        self.skip_step = skip_step
        self.process_group = process_group
        checks.check_whole(model)
        self.weights = self._drivable(model)
        self._check(model)
        self._aim()
        self._found = Found()
        self._take_up(self.weights)
        self._loaded_state = False  # the optimizer's state was loaded since the last step
        self._ended: int | None = None  # the step at which it was detached
        self._require_format(self._group)
        self._attach()
        self._group.setdefault(STEP, 0)
        self._group[FORMAT] = OPTIMIZER
        self._note_start()
        if self.step:
            logging.getLogger("regrow").info("continuing at step %d", self.step)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        if id(self._optimizer()) in memo:
            warn(
                f"{type(self).__name__} was copied with its optimizer: the copied optimizer trains a model whose "
                f"topology rests.\nAttach a method to it: regrow.{type(self).__name__}(model, optimizer, ...)"
            )
        return self  # it drives this model, wherever it is referred to (a LightningModule that is averaged)

    def __reduce__(self) -> Any:
        raise RegrowRuntimeError(
            f"{type(self).__name__} cannot be pickled: it is attached to a model and an optimizer.\nSave their state "
            f"dicts, and attach regrow.{type(self).__name__}(model, optimizer, ...) where they are loaded: it goes on "
            "at the optimizer's step."
        )

    @abstractmethod
    def wants_dense_gradient(self) -> bool:
        """Return whether the coming step needs the dense gradient."""

    @property
    @abstractmethod
    def keeps_gates(self) -> bool:
        """Whether its moves keep the connections of gates that are apart (`regrow.weights.gates`)."""

    def cannot_keep(self, pattern: Pattern) -> str | None:
        """Say why its moves would not keep a pattern of `regrow.sparsify`, or return None.

        A view of each weight sees to it that they do (`regrow.weights.patterned`), as long as the method chooses what
        grows by it, and as many in each weight as go where the pattern keeps their number.
        """
        if pattern.keeps_counts and self.initial_sparsity is not None:
            return "its connections become fewer"
        return None if self.keeps_gates else "it moves weights as a whole"

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer that the method is attached to, without wrappers; it keeps the method, not the other way round.

        Raises:
            RegrowRuntimeError: it is gone.
        """
        optimizer = self._optimizer()
        if optimizer is None:
            raise RegrowRuntimeError(
                f"the optimizer of {type(self).__name__} is gone.\nKeep it as long as the method is used."
            )
        return optimizer

    @property
    def _group(self) -> dict[str, Any]:
        """The optimizer's first group, where counts are kept; as last seen where the optimizer is gone."""
        optimizer = self._optimizer()
        if optimizer is not None:
            self._last_group: dict[str, Any] = optimizer.param_groups[0]
        return self._last_group

    @property
    def step(self) -> int:
        """Optimizer steps counted so far."""
        return int(self._group.get(STEP, 0))

    @property
    def distributed(self) -> bool:
        """Whether several processes train the model together."""
        return dist.is_available() and dist.is_initialized() and dist.get_world_size(self.process_group) > 1

    @property
    def _device(self) -> torch.device:
        """Where the model is, and its processes gather."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

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

    def _adopt_late(self) -> set[int]:
        """Drive what is trained since the method was attached: unfrozen, added to the optimizer or to the model.

        Returns:
            Addresses of the parameters that are new, whose backward pass nobody has seen yet.
        """
        held = self._count_held()
        if held == self._held and not any(w.parameter.requires_grad for w in self._others):
            return set()
        trained = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        self._give_up(trained)
        driven = {id(p) for p in self._parameters}
        candidates = [w for w in sparse_weights(self.model) if id(w.parameter) in trained - driven]
        late = [w for w in candidates if checks.living_driver(w) is None]
        if not late:  # it is held that makes a weight trained, and that is counted
            self._others = [w for w in self._others if not w.parameter.requires_grad]
            self._held = held
            return set()
        names = [weight.name for weight in late]
        checks.check_weights(self.model, late, self)
        ids = driven | {id(w.parameter) for w in late}
        before, self.weights = self.weights, [w for w in sparse_weights(self.model) if id(w.parameter) in ids]
        try:
            checks.check_names(self.weights)
            self._aim()
            self._take_up(late)
            self._note_start()
        except Exception:
            self.weights = before
            raise
        self._hooks()
        logging.getLogger("regrow").info("%s drives %s too from step %d on", self, names, self.step)
        return ids - driven

    def _give_up(self, trained: set[int]) -> None:
        """Drive no longer what the optimizer has been rid of: its connections would move and never be trained."""
        gone = [w for w, p in zip(self.weights, self._parameters, strict=True) if id(p) not in trained]
        if not gone or len(gone) == len(self.weights):
            return
        for weight in gone:
            hook = hook_of(weight.parameter)
            if hook is not None and hook.driving is self:
                hook.driver = None
                hook.reset()
        names = {weight.name for weight in gone}
        self.weights = [weight for weight in self.weights if weight.name not in names]
        self._take_up([])
        logging.getLogger("regrow").info("%s rests %s from step %d on", self, sorted(names), self.step)

    def _drivable(self, model: nn.Module) -> list[SparseWeight]:
        """Return the sparse weights that are trained now, or that the optimizer holds for later."""
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        weights = sparse_weights(model)
        if not any(weight.parameter.requires_grad for weight in weights):
            return []
        return [w for w in weights if w.parameter.requires_grad or id(w.parameter) in held]

    def _aim(self) -> None:  # noqa: B027  (most methods have no aim)
        """Work out what follows from `weights`, before anything is attached, and again where some come later."""

    def _note_start(self) -> None:  # noqa: B027
        """Keep with the optimizer what the weights start with, once all is attached."""

    def _check(self, model: nn.Module) -> None:
        plain = {key: value for key, value in vars(self).items() if _is_plain(value)}
        self.settings: dict[str, Any] = {"method": type(self).__name__, "step": self.step, **plain}
        """What the processes that train one model must agree on: the plain attributes that are set by now."""
        if self.distributed:  # first, by all: parameters that were broadcast do not fit another topology
            processes.check_agreement(self.settings, self.weights, self._device, self.process_group)
        checks.check_weights(model, self.weights, self)
        optimizers.check_holds(self.optimizer, self.weights)
        self._check_state()

    def _check_state(self) -> None:
        for weight in self.weights:
            companions(self.optimizer, weight)

    @staticmethod
    def _require_format(group: Mapping[str, Any]) -> None:
        require_format("the optimizer's state", group, FORMAT, OPTIMIZER)

    def _before_load(self, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
        """Refuse state that a newer regrow has written, before anything of it is loaded."""
        for group in state["param_groups"]:
            self._require_format(group)

    def _loaded(self, *_: Any) -> None:
        """Forget what was seen of the present step: the state of another one has been loaded."""
        self._group[FORMAT] = OPTIMIZER  # the state may be from before there were numbers
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
            self.optimizer.register_load_state_dict_pre_hook(self._before_load),
            self.optimizer.register_load_state_dict_post_hook(self._loaded),
        ]

    def _hooks(self) -> list[GradientHook]:
        """Return the hooks of the weights that are trained, each told who drives it; again where a copy or a move
        lost them.
        """
        hooks = []
        for weight in self.weights:
            ensure_hooks(weight.module)
            hook = hook_of(weight.parameter)
            if hook is not None:
                hook.driver = weakref.ref(self)
                hook.reach = None
                hooks.append(hook)
        return hooks

    @abstractmethod
    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Step pre-hook."""

    @abstractmethod
    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Step post-hook."""

    def _settle_loads(self) -> None:
        """Drop the state of connections that a loaded model has changed, unless the optimizer was loaded as well."""
        changed = moments.carry_over(self.optimizer, self.weights, loaded=self._loaded_state)
        self._loaded_state = False
        if changed:
            warn(
                f"the model was loaded in another topology and the optimizer was not: connections of {changed} that "
                "are new start without its state.\nLoad what was saved with the model too: "
                "optimizer.load_state_dict(...)"
            )

    def _replacement(self) -> Any:
        """Return the method that has taken over a weight that this one drives, or None."""
        for parameter in self._parameters:
            driver = driver_of(parameter)
            if driver is not None and driver is not self:
                return driver
        return None

    def _settle_parameters(self) -> None:
        if (other := self._replacement()) is not None:
            raise RegrowRuntimeError(
                f"`optimizer` makes a step with weights that another method drives by now: {other!r}\n"
                "Use the optimizer that was made with that one, or call its detach() first."
            )
        for weight, parameter in zip(self.weights, self._parameters, strict=True):
            weight.settle()
            if weight.parameter is not parameter:
                checks.check_whole(self.model)
                raise RegrowRuntimeError(
                    f"`{weight.name}` is another parameter now than the one that `optimizer` holds "
                    "(load_state_dict(assign=True), or a conversion).\nMake optimizer and method again."
                )
        shapes = [parameter.shape for parameter in self._parameters]
        if shapes != self._shapes:
            self._check_state()
            self._shapes = shapes

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
        optimizer = self._optimizer()
        if optimizer is None:
            return
        optimizer.__dict__.pop(checks.DRIVER, None)
        for entries in (*optimizer.param_groups, *optimizer.state.values()):
            for key in [key for key in entries if isinstance(key, str) and key.startswith(PREFIX)]:
                del entries[key]


def _is_plain(value: object) -> bool:
    """Tell whether `value` is a number, a word, or a tuple of such."""
    return isinstance(value, int | float | str) or (
        isinstance(value, tuple) and all(_is_plain(each) for each in value)
    )
