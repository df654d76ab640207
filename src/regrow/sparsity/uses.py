"""What a layer does with its weight: whether a zero in it is a connection that is not there.

A subclass of torch's layers may compute another weight from its own (weight standardisation), in which a zero is
zero no more. Whoever overrides `forward` is run once with tensors of the meta device, on a copy, and the way of the
weight is followed: on the way to a product it may be cast, scaled or reshaped, nothing else. Where that cannot be run,
code that does not name the weight leaves it to the class of torch.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterator
from itertools import chain
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from regrow._torch import COMPUTES, ConvNd, tree_leaves

SETTING_UP = ("__init__", "reset_parameters", "extra_repr", "__repr__")

CARRIERS = {
    "to type float double half bfloat16 contiguous clone detach data alias",
    "t T mT transpose permute swapaxes view reshape flatten unflatten unsqueeze squeeze expand",
    "mul mul_ multiply __mul__ __rmul__ __imul__ div div_ true_divide __truediv__ __itruediv__ neg __neg__",
    "__getitem__ chunk split unbind narrow select",
    "dropout",  # which leaves out some for one pass
}
"""What leaves a zero a zero, in words of torch, of a weight that is the first argument."""
FACTORS = {"mul", "multiply", "__mul__", "__rmul__"}
"""Those that may have it as any argument."""
LIKE = {"to", "type_as", "expand_as", "view_as", "reshape_as"}
"""Those that look at the kind of a tensor, where it is not the first argument."""
PRODUCTS = {
    "linear bilinear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution",
    "matmul __matmul__ __rmatmul__ mm bmm mv addmm baddbmm addbmm addmv einsum tensordot inner",
    "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell multi_head_attention_forward",
}
CARRIES, MULTIPLIES = ({word for words in table for word in words.split()} for table in (CARRIERS, PRODUCTS))


def meta_copies(model: nn.Module) -> dict[int, Any]:
    """Return a memo for `copy.deepcopy` with which modules of `model` are copied without their memory."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        empty = torch.empty_like(parameter.detach(), device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer.detach(), device="meta")
    return memo


def overrides(module: nn.Module) -> bool:
    """Return whether `module` computes by other code than the class of torch that it is made from."""
    base = next((c for c in type(module).__mro__ if c.__module__.startswith("torch.nn.modules.")), nn.Module)
    return any(
        name in vars(module) or getattr(type(module), name, None) is not getattr(base, name, None)
        for name in COMPUTES
    )


def is_replaced(module: nn.Module) -> bool:
    """Return whether other code than its class's has been put into `module` itself."""
    return any(name in vars(module) for name in COMPUTES)


def another_weight(module: nn.Module, parameter_name: str, memo: dict[int, Any]) -> str | None:
    """Return why a zero in the weight of a layer that `overrides` may be no missing connection, or None where it
    is one.

    Args:
        module: a layer.
        parameter_name: of its weight.
        memo: of the model that it is part of, as `meta_copies` gives it.
    """
    name = type(module).__name__
    unclear = f"what {name}.forward does with it cannot be followed"
    for inputs in _inputs(module):
        try:
            with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.no_grad():
                warnings.simplefilter("ignore")
                probe = copy.deepcopy(module, memo)
                with _Follow(getattr(probe, parameter_name)) as found:
                    probe.forward(*inputs)
        except Exception:  # whatever somebody's code does with tensors that hold nothing
            continue
        if found.changed:
            return f"{name}.forward computes another weight from it ({found.changed})"
        return None if found.multiplied else unclear
    # where it does not name it, what happens to it is what the base class does
    return unclear if _speaks_of(module, parameter_name) else None


def _speaks_of(module: nn.Module, parameter_name: str) -> bool:
    """Return whether the code of `module` that is not torch's names the weight, or hides what it names."""
    if any(name in vars(module) for name in COMPUTES):
        return True
    own = [c for c in type(module).__mro__ if not c.__module__.startswith("torch.")]
    for name, value in chain.from_iterable(vars(c).items() for c in own if c is not object):
        function = inspect.unwrap(getattr(value, "fget", None) or getattr(value, "__func__", value))
        code = getattr(function, "__code__", None)
        if code is None and name in COMPUTES:
            return True
        if code is not None and name not in SETTING_UP and parameter_name in _words(code):
            return True
    return False


def _words(code: CodeType) -> Iterator[str]:
    """Yield the attributes and strings of a function and of those inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _words(constant)
        elif isinstance(constant, str):
            yield constant


class _Follow(TorchFunctionMode):
    """Sees what becomes of a weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self._carried = {id(weight): weight}
        self.changed = ""
        """The first operation that may make something else than zero of a zero."""
        self.multiplied = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        carried = [id(leaf) in self._carried for leaf in tree_leaves((args, kwargs))]
        result = func(*args, **kwargs)
        if any(carried):
            made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            self._note(_name(func), carried[0], made, all(carried))
        return result

    def _note(self, name: str, first: bool, made: list[Tensor], itself: bool) -> None:
        if name in MULTIPLIES:
            self.multiplied = True
        elif name in CARRIES and (first or name in FACTORS):
            self._carried.update({id(tensor): tensor for tensor in made})
        elif name.startswith("new_") or name.endswith("_like") or (name in LIKE and not first):
            return
        elif made or (name == "__set__" and not itself):  # weight.data *= mask writes it back
            self.changed = self.changed or name


def _name(func: Any) -> str:
    name: str = getattr(func, "__name__", type(func).__name__)
    if name == "__get__":  # of a property: its own name, T
        return str(getattr(getattr(func, "__self__", None), "__name__", name))
    return name.partition(".")[0]  # sum.default


def _inputs(module: nn.Module) -> Iterator[tuple[Tensor, ...]]:
    """Yield what a layer may be called with."""
    weight = next(p for p in module.parameters(recurse=False) if p.dim() > 1)

    def empty(*shape: int) -> Tensor:
        return torch.empty(*shape, dtype=weight.dtype, device="meta")

    if isinstance(module, ConvNd):
        sides = [d * (k - 1) + 8 for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        yield (empty(2, module.in_channels, *sides),)
    elif isinstance(module, nn.MultiheadAttention):
        yield tuple(empty(2, 2, size) for size in (module.embed_dim, module.kdim or 0, module.vdim or 0))
    elif isinstance(module, nn.RNNBase):
        yield (empty(2, 3, module.input_size),)
    elif isinstance(module, nn.RNNCellBase):
        yield (empty(2, module.input_size),)
    else:  # a linear layer, of torch or of the transformers library
        size = module.in_features if isinstance(module, nn.Linear) else len(weight)
        yield (empty(2, size),)
        yield (empty(2, 2, size),)
