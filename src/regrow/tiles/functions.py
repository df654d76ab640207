"""What is known of torch's functions by their names: which are element-wise, in place, or only ask about a tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from regrow._torch import nn_functions


def _named(names: str) -> set[Any]:
    """All of torch's functions and methods with these names, in-place forms included."""
    every = {form for name in names.split() for form in (name, f"{name}_")}
    owners: tuple[Any, ...] = (torch, Tensor, F, nn_functions)
    return {vars(owner)[name] for owner in owners for name in every & vars(owner).keys()} | {
        getattr(Tensor, name) for name in every if hasattr(Tensor, name)
    }


ELEMENTWISE = _named(
    "relu neg negative abs add sub subtract mul multiply div divide true_divide leaky_relu elu gelu silu tanh "
    "hardtanh relu6 clone __add__ __radd__ __iadd__ __sub__ __rsub__ __isub__ __mul__ __rmul__ __imul__ "
    "__truediv__ __itruediv__ __neg__ __abs__ positive __pos__ zeros_like copy"
)
_ABOUT = _named(
    "size dim ndimension numel nelement stride is_contiguous storage_offset element_size get_device __len__ __hash__ "
    "is_floating_point is_complex is_signed is_inference is_same_size requires_grad register_hook "
    "register_post_accumulate_grad_hook retain_grad backward detach"
)
PASSED = ELEMENTWISE | _ABOUT | {torch.autograd.backward, torch.autograd.grad}
_VALUES = {"T", "mT", "H", "mH", "real", "imag"}


def is_attribute(func: Any) -> bool:
    """Whether an attribute is read that says something about a tensor, or any is set."""
    name = getattr(func, "__name__", "")
    return name in ("__set__", "__delete__") or (name == "__get__" and func.__self__.__name__ not in _VALUES)


_IN_PLACE = {
    "__setitem__",
    "__iadd__",
    "__isub__",
    "__imul__",
    "__itruediv__",
    "__ifloordiv__",
    "__imod__",
} | {f"__i{name}__" for name in ("pow", "and", "or", "xor", "lshift", "rshift")}


def is_in_place(func: Any) -> bool:
    """Whether a function changes its first argument."""
    name = short_name(func)
    return (name.endswith("_") and not name.endswith("__")) or name in _IN_PLACE


def short_name(func: Any) -> str:
    """The name of a function, or of an operator without its overload."""
    return str(getattr(func, "__name__", func)).partition(".")[0]
