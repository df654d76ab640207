"""Optimizers are tried, not listed: what one does to small weights says whether it fits sparse ones."""

from __future__ import annotations

import contextlib
import inspect
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow._torch import dynamo_is_loaded, hook_attributes
from regrow.errors import RegrowError, RegrowValueError
from regrow.methods.optimizers import TWICE
from regrow.methods.state import PLAIN, own, refuse_kept_elsewhere, unmovable
from regrow.weights import SparseWeight

LARGE = 1 << 16
BEFORE, AFTER = 8, 25  # steps of the small trial, before and after its connections move

ALLOWED = (
    "Allowed is any element-wise optimizer whose fresh state is zero: SGD, Adam, AdamW, Adagrad (from 0), RMSprop, "
    "NAdam, RAdam, ASGD, Adadelta, ..."
)


@dataclass(frozen=True)
class Found:
    """What a trial has shown of an optimizer."""

    stateful: bool = False
    """Whether it holds state for each parameter."""
    copies: frozenset[str] = frozenset()
    """Keys of state that is a copy of the values (slow weights): a new connection's starts at its value."""

    def __or__(self, other: Found) -> Found:
        return Found(self.stateful or other.stateful, self.copies | other.copies)


def probe(optimizer: Optimizer, weights: list[SparseWeight], *, skips: bool = False) -> Found:
    """Try the optimizer, with each group's settings, on weights with inactive entries.

    It fits if a zero weight with a zero gradient stays exactly zero beside others that move, in value and in state,
    also where it was another weight before, and if its state can move. Weights of the shapes that it is for (cut to
    some ten thousand entries) show what depends on size, a small one is trained for longer.

    Args:
        optimizer: the optimizer; it is not touched.
        weights: the sparse weights that it trains.
        skips: whether it must bear a step without any gradient.

    Raises:
        RegrowValueError: naming what does not fit.
    """
    name = type(optimizer).__name__
    refuse_kept_elsewhere(
        optimizer, [shape for w in weights for shape in (tuple(w.parameter.shape), w.shape)], name
    )
    parameters = {id(w.parameter): w.parameter for w in weights}
    found = Found()
    for group in optimizer.param_groups:
        held = [parameters[id(p)] for p in group["params"] if id(p) in parameters]
        if held:
            with _eager():
                _try_shapes(optimizer, group, held, skips)
                found |= _try_small(optimizer, group, held[0])
    return found


def _try_shapes(optimizer: Optimizer, group: dict[str, Any], held: list[nn.Parameter], skips: bool) -> None:
    """Try two steps, one of them without gradients, and another, on a weight of each shape."""
    shapes = {(_cut(p.shape), p.dtype, p.device) for p in held if p.numel()}
    masks = [(torch.arange(shape.numel(), device=device) % 3 != 1).view(shape) for shape, _, device in shapes]
    weights = [nn.Parameter(m.to(dtype)) for m, (_, dtype, _) in zip(masks, shapes, strict=True)]
    trial = Trial(optimizer, group, weights)
    for _ in range(2):
        trial.step(masks)
    trial.check(masks)
    if skips:
        trial.skip()
        trial.step(masks)
        trial.check(masks)


def _try_small(optimizer: Optimizer, group: dict[str, Any], like: Tensor) -> Found:
    """Try many steps on a matrix some of whose connections move, some of them without gradients."""
    mask = torch.ones(4, 6, dtype=torch.bool, device=like.device).tril()
    loud = mask.clone()
    loud[2] = False  # connections without a gradient
    weight = nn.Parameter(mask.to(like.dtype))
    trial = Trial(optimizer, group, [weight])
    copies: dict[str, bool] = {}
    for _ in range(BEFORE):
        trial.step([loud])
        for key, tensor, _ in own(trial.state(weight)):
            if tensor.shape == weight.shape and type(tensor) in PLAIN:
                quiet = weight.detach()[2, :3]
                close = bool(((tensor[2, :3] - quiet).abs() <= 0.2 * quiet.abs()).all())
                copies[key] = copies.get(key, True) and close
    trial.check([mask])
    moved = torch.zeros_like(mask)
    moved[:3, 2:] = True
    for tensor in (weight.detach(), *(tensor for _, tensor, _ in own(trial.state(weight)))):
        if tensor.shape == weight.shape:
            tensor.masked_fill_(~(mask & moved), 0)
    loud = moved.clone()
    loud[1] = False
    for _ in range(AFTER):
        trial.step([loud])
    trial.check([moved & (mask | loud)], "it brings back connections that are gone")
    return Found(bool(trial.state(weight)), frozenset(key for key, close in copies.items() if close))


class Trial:
    """An optimizer of the same kind and settings, for weights of the trial's own.

    Args:
        optimizer: the one that it is like.
        group: the parameter group whose settings it has.
        weights: what it trains.
    """

    def __init__(self, optimizer: Optimizer, group: dict[str, Any], weights: list[nn.Parameter]) -> None:
        self.name = type(optimizer).__name__
        self.weights = weights
        self.made = self._tried(lambda: _made(optimizer, group, weights))
        train = getattr(self.made, "train", None)
        if callable(train):  # schedule-free: steps are made in train mode
            self._tried(train)
        parameters = inspect.signature(self.made.step).parameters.values()
        self.takes_closure = any(p.name == "closure" or p.kind is p.VAR_POSITIONAL for p in parameters)

    def state(self, weight: nn.Parameter) -> dict[str, Any]:
        return dict(self.made.state.get(weight, {}))

    def step(self, masks: list[Tensor]) -> None:
        """Take one step, with gradients where `masks` say so."""
        calls = 0

        def closure() -> Tensor:
            nonlocal calls
            calls += 1
            backward()
            return torch.stack([weight.detach().sum().cpu() for weight in self.weights]).sum()

        def backward() -> None:
            for weight, mask in zip(self.weights, masks, strict=True):
                weight.grad = mask * (1 + weight.detach().cos())

        backward()  # not all that take a closure call it
        if self.takes_closure:
            self._tried(lambda: self.made.step(closure))
        else:
            self._tried(self.made.step)
        if calls > 1:
            raise RegrowValueError(f"`optimizer`: {self.name} {TWICE}")

    def skip(self) -> None:
        """Take a step for which all gradients are hidden."""
        for weight in self.weights:
            weight.grad = None
        try:
            self.made.step()
        except Exception as error:
            raise RegrowValueError(
                f"`optimizer`: {self.name} cannot make a step without gradients ({_line(error)}), which is how the "
                "weights rest at an update step.\nGive the method skip_step=False: the weights then move at an update."
            ) from error

    def check(self, masks: list[Tensor], moved: str = "it moves weights whose gradient is zero") -> None:
        """Refuse what does not fit where `masks` say that nothing is.

        Raises:
            RegrowValueError: naming it.
        """
        for weight, mask in zip(self.weights, masks, strict=True):
            reason = moved if weight.detach()[~mask].any() else None
            for key, tensor, inside in own(self.state(weight)):
                if reason is not None:
                    break
                obstacle = unmovable(tensor, inside, weight.shape)
                if obstacle is not None:
                    reason = f"its state `{key}` {obstacle}"
                elif tensor.shape == weight.shape and bool((tensor[~mask] != 0).any()):
                    reason = f"its state `{key}` is not zero for a fresh weight"
            if reason is not None:
                raise RegrowValueError(
                    f"`optimizer`: {self.name} cannot train sparse weights: {reason}.\n{ALLOWED}"
                )
        refuse_kept_elsewhere(self.made, [w.shape for w in self.weights], self.name)

    def _tried(self, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except RegrowError:
            raise
        except Exception as error:
            raise RegrowValueError(
                f"`optimizer`: {self.name} could not be tried on a small sparse weight ({_line(error)})"
            ) from error


def _made(optimizer: Optimizer, group: dict[str, Any], weights: list[nn.Parameter]) -> Optimizer:
    cls = type(optimizer)
    names = list(inspect.signature(cls).parameters)[1:]
    # what is not a setting of a group is an attribute, often of the same name
    known = {**vars(optimizer), **group}
    settings = {name: known[name] for name in names if name in group or _is_plain(known.get(name))}
    if "lr" in settings:  # a schedule may begin at 0, where nothing shows
        settings["lr"] = torch.full_like(group["lr"], 0.1) if isinstance(group["lr"], Tensor) else 0.1
    try:
        trial = cls(weights, **settings)
    except TypeError:  # the constructor wants what the group does not tell: as pickle does it, then
        trial = object.__new__(cls)
        plain = {key: value for key, value in vars(optimizer).items() if _is_plain(value)}
        groups = [{**group, **settings, "params": weights}]
        hooks: dict[str, Any] = {name: OrderedDict() for name in hook_attributes(optimizer)}
        trial.__setstate__(
            {
                **plain,
                **hooks,
                "defaults": dict(optimizer.defaults),
                "state": defaultdict(dict),
                "param_groups": groups,
            }
        )
    for key, value in group.items():
        # flags that the constructor takes as **kwargs, or that one group alone has
        if key in optimizer.defaults or isinstance(value, bool):
            trial.param_groups[0].setdefault(key, value)
    return trial


def _is_plain(value: object) -> bool:
    return isinstance(value, bool | int | float | str) or (
        isinstance(value, tuple) and all(isinstance(each, bool | int | float | str) for each in value)
    )


def _cut(shape: torch.Size) -> torch.Size:
    """Return `shape` with fewer rows if it is large, the same remainder for any power of two up to some thousand."""
    row = max(1, shape[1:].numel())
    block = 1 << max(0, (LARGE // row).bit_length() - 1)
    return torch.Size([min(shape[0], shape[0] % block + block), *shape[1:]])


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def _eager() -> contextlib.AbstractContextManager[Any]:
    """Keep optimizers that compile their step from doing so for a trial."""
    if not dynamo_is_loaded():
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance
