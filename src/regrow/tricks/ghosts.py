"""What ghosts have in common: they are in a network for the first part of its training, fade, and leave nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import torch
from torch import fx, nn
from torch.optim import Optimizer

from regrow.arguments import require_model, require_patterns
from regrow.errors import RegrowRuntimeError, RegrowValueError, closest
from regrow.methods.wrappers import unwrap
from regrow.nn import FusedBatchNorm2d, SparseConv2d, TiledConv2d
from regrow.nn.fused import Fused
from regrow.tricks import forwards
from regrow.tricks.fade import Fade
from regrow.weights.views import unwrapped

CHILD = "ghost"
"""Under this name a layer has the parameters of a ghost."""


class Strength:
    """The strength of the ghosts of one kind now: 1 is all of it, at 0 they are not computed."""

    value = 1.0

    def __deepcopy__(self, memo: dict[int, Any]) -> Strength:
        return self  # a copy of the network is as far in the training as the network is


class Ghosts(ABC):
    """Base of ghosts. They are put in where one is made, follow an optimizer's steps (`drive`), and end by themselves.

    Make them after `sparsify` and before the optimizer; load a checkpoint's state afterwards, as it was saved::

        ghosts = regrow.tricks.GhostSkips(model, total_steps=10_000)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        ghosts.drive(optimizer)
        ...  # the loop stays as it is

    How far they are is counted in ``optimizer.param_groups[0]``: whoever saves model and optimizer has it all. Where
    they had ended, load the optimizer first, which takes them out. Compile the model, or wrap it in
    DistributedDataParallel, once they have ended: both keep what they have seen of it.

    Args:
        model: any module.
        total_steps: optimizer steps of the whole run.
        start_fraction, stop_fraction, shape: of their strength, see `Fade`; they end before the run does.
        exclude: globs of the names of modules in which nothing is changed.

    Raises:
        RegrowValueError: an argument that is not allowed, a model that torch.fx cannot trace, or with nothing in it
            that a ghost could be put to; before anything is changed.
    """

    kind: ClassVar[str]
    """What they are called in messages, and where their steps are counted."""

    def __init__(
        self,
        model: nn.Module,
        *,
        total_steps: int,
        start_fraction: float = 0.0,
        stop_fraction: float = 0.5,
        shape: str = "linear",
        exclude: str | Sequence[str] = (),
    ) -> None:
        self.model = require_model("model", model)
        if unwrapped(model) is not model:
            raise RegrowValueError(
                "`model` is wrapped (torch.compile, DistributedDataParallel), which keeps what it has seen of it\n"
                "Give the network itself, and wrap it once the ghosts have ended."
            )
        self.fade = Fade(total_steps, start_fraction=start_fraction, stop_fraction=stop_fraction, shape=shape)
        if self.fade.stop >= total_steps:
            raise RegrowValueError(
                f"`stop_fraction` must be below 1, got {stop_fraction}: the network trains on without its ghosts"
            )
        self.exclude = require_patterns("exclude", exclude)
        self._refuse_unmatched()
        _refuse_fused(model)
        self._optimizer: Optimizer | None = None
        self._inside_step = False
        self.strength = Strength()
        self.owners = self._find()
        """The modules whose forward has ghosts in it, by name."""
        self._make()
        for name, owner in self.owners.items():
            forwards.put_in(owner, name, self)
        self._are_in = True

    @abstractmethod
    def _find(self) -> dict[str, nn.Module]:
        """Return the modules whose forward is to have ghosts in it, by name; raise where there are none."""

    def _make(self) -> None:  # noqa: B027  (ghosts without parameters are in the calls themselves)
        """Make what has parameters."""

    @abstractmethod
    def edit(self, graph: fx.Graph, module: nn.Module) -> None:
        """Put the calls into the graph of one forward."""

    def _modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the modules of the network that are not excluded, with their names."""
        for name, module in self.model.named_modules():
            if not self._is_excluded(name):
                yield name, module

    def _is_excluded(self, name: str) -> bool:
        return any(fnmatchcase(name or forwards.ROOT, glob) for glob in self.exclude)

    def _refuse_unmatched(self) -> None:
        """Refuse a glob that excludes nothing."""
        names = [name or forwards.ROOT for name, _ in self.model.named_modules()]
        for glob in self.exclude:
            if not any(fnmatchcase(name, glob) for name in names):
                raise RegrowValueError(
                    f"`exclude` {glob!r} matches no module of the model{closest(glob, names)}"
                )

    @property
    def are_in(self) -> bool:
        """Whether the network has the ghosts now."""
        return self._are_in

    @property
    def step(self) -> int:
        """Optimizer steps counted so far, up to the end of the ghosts."""
        return 0 if self._optimizer is None else int(self._optimizer.param_groups[0].get(self._key, 0))

    @property
    def _key(self) -> str:
        return f"{self.kind.replace(' ', '_')}_step"

    def __repr__(self) -> str:
        where = f"strength {self.strength.value:.3g}" if self._are_in else "ended"
        return f"{type(self).__name__}({self.step} steps made of {self.fade.stop}; {where})"

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the ghosts of this kind."""
        return []

    def drive(self, optimizer: Optimizer) -> None:
        """Let the strength follow the steps of `optimizer`, and the ghosts end with them.

        Args:
            optimizer: the torch optimizer that trains the model, made after the ghosts.

        Raises:
            RegrowRuntimeError: an optimizer that does not hold the parameters of the ghosts, or a second one.
        """
        inner = unwrap(optimizer)
        if self._optimizer is not None:
            raise RegrowRuntimeError(
                f"{self!r} follows an optimizer already\nMake other ghosts for another one."
            )
        held = {id(p) for group in inner.param_groups for p in group["params"]}
        if not all(id(p) in held for p in self.parameters()):
            raise RegrowRuntimeError(
                f"`optimizer` does not hold the parameters of the {self.kind}: it was made before them\n"
                "Make it after them, of model.parameters()."
            )
        self._optimizer = inner
        inner.param_groups[0].setdefault(self._key, 0)
        # a compiled optimizer.step would otherwise trace the hooks
        inner.register_step_pre_hook(torch.compiler.disable(self._before_step))
        inner.register_step_post_hook(torch.compiler.disable(self._after_step))
        inner.register_load_state_dict_pre_hook(self._before_load)
        inner.register_load_state_dict_post_hook(self._after_load)
        self._follow()

    def remove(self) -> None:
        """Take the ghosts out of the network and of the optimizer, at once; at strength 0, no output changes a bit."""
        if not self._are_in:
            return
        self._are_in = False
        self.strength.value = 0.0
        gone = {id(p) for p in self.parameters()}
        for owner in self.owners.values():
            forwards.take_out(owner, self)
        self._unmake()
        optimizer = self._optimizer
        for group in optimizer.param_groups if optimizer is not None else ():
            for parameter in [p for p in group["params"] if id(p) in gone]:
                optimizer.state.pop(parameter, None)  # type: ignore[union-attr]
            group["params"] = [p for p in group["params"] if id(p) not in gone]

    def _unmake(self) -> None:  # noqa: B027
        """Take away what has parameters."""

    def _before_step(self, *_: Any) -> None:
        self._inside_step = True

    def _after_step(self, *_: Any) -> None:
        """Count a step, once where an optimizer's step calls that of the class above it."""
        if self._inside_step and self._are_in and self._optimizer is not None:
            self._optimizer.param_groups[0][self._key] = self.step + 1
            self._follow()
        self._inside_step = False

    def _before_load(self, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
        """End first if the state that is to be loaded was saved after the end, and has no parameters of ghosts."""
        if int(state["param_groups"][0].get(self._key, 0)) >= self.fade.stop:
            self.remove()

    def _after_load(self, optimizer: Optimizer) -> None:
        optimizer.param_groups[0].setdefault(self._key, 0)
        self._follow()

    def _follow(self) -> None:
        """Have the strength of the coming step."""
        self.strength.value = self.fade(self.step)
        if self.step >= self.fade.stop:
            self.remove()


def _refuse_fused(model: nn.Module) -> None:
    """Refuse layers that do what follows them, where a ghost would stand in between."""
    for name, module in model.named_modules():
        summed = isinstance(module, SparseConv2d) and module.summed
        if summed or isinstance(module, FusedBatchNorm2d | TiledConv2d | Fused):
            raise RegrowValueError(
                f"`model` is fused: `{name}` does what follows it, where a ghost would stand in between\n"
                "Call regrow.unfuse(model) first, and regrow.fuse(model) once the ghosts have ended."
            )


def named_ghosts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers of `model` that have a ghost with parameters: the layer's name, and the ghost."""
    for name, module in model.named_modules():
        ghost = module._modules.get(CHILD)
        if isinstance(ghost, Ghost):
            yield name, ghost


class Ghost(nn.Module):
    """Base of ghosts with parameters, which are children of the layer that they belong to."""


def has_ghosts(model: nn.Module) -> bool:
    """Return whether `model` has ghosts in it: skips or activations."""
    found = require_model("model", model).modules()
    return any(isinstance(vars(module).get("forward"), forwards.Rewritten) for module in found)


def remove_ghosts(model: nn.Module) -> nn.Module:
    """Take all ghosts out of a network that no optimizer trains: a copy, or one whose state is to be loaded.

    In training, `Ghosts.remove` also takes their parameters out of the optimizer.

    Returns:
        `model`.
    """
    for module in list(require_model("model", model).modules()):
        if isinstance(vars(module).get("forward"), forwards.Rewritten):
            del module.__dict__["forward"]
        if isinstance(module._modules.get(CHILD), Ghost):
            del module._modules[CHILD]
    return model
