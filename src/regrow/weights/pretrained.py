"""What other libraries write of a compressed weight, so that they read it again: `save_pretrained` and its kin.

`from_pretrained` makes a dense model and goes on where names do not fit, with random weights. So inside
`save_pretrained` a compressed weight is written as a dense one, zeros included, with its row pointers and columns
beside it: a dense model takes the weight, a sparse one (a Trainer that resumes) the very topology. A masked weight is
written so anyway. The method of the library's class is wrapped, not the model's: the model may be a part of another one
by then, a copy, or come from a file.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from regrow.weights.loading import in_dense_form
from regrow.weights.views import settle, sparse_weights, unwrapped

METHODS = (
    ("transformers.modeling_utils", "PreTrainedModel", "save_pretrained", "self"),
    ("diffusers.models.modeling_utils", "ModelMixin", "save_pretrained", "self"),
    ("huggingface_hub.hub_mixin", "ModelHubMixin", "save_pretrained", "self"),
    ("accelerate.accelerator", "Accelerator", "save_model", "model"),
)
"""Module, class, method that writes a model, and its argument that holds the model; wrapped once they are imported."""


def wrap_savers() -> None:
    """Wrap each of `METHODS` whose module is imported by now; a dense model sees no difference."""
    for module_name, class_name, name, argument in METHODS:
        owner = getattr(sys.modules.get(module_name), class_name, None)
        original = vars(owner).get(name) if owner is not None else None
        if original is not None and not hasattr(original, "_regrow"):
            setattr(owner, name, _wrapped(original, argument))


def _wrapped(original: Callable[..., Any], argument: str) -> Callable[..., Any]:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def save(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        model = bound.arguments[argument]
        if not isinstance(model, nn.Module) or not sparse_weights(model):
            return original(*args, **kwargs)
        model = unwrapped(model)
        settle(model)
        given = bound.arguments.get("state_dict")
        if given is not None:
            bound.arguments["state_dict"] = _readable(model, given)
        hook = model.register_state_dict_post_hook(_after_state_dict)
        try:
            return original(*bound.args, **bound.kwargs)
        finally:
            hook.remove()

    save._regrow = True  # type: ignore[attr-defined]
    return save


def _after_state_dict(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    in_dense_form(module, state, prefix, topology=True)


def _readable(module: nn.Module, given: dict[str, Any]) -> dict[str, Any]:
    state = dict(given)  # the caller's stays as it is
    in_dense_form(module, state, topology=True)
    return state
