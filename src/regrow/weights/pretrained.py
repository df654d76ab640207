"""`save_pretrained` of other libraries: what it writes of a compressed weight, their `from_pretrained` reads.

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
from regrow.weights.views import sparse_weights

CLASSES = (
    ("transformers.modeling_utils", "PreTrainedModel"),
    ("diffusers.models.modeling_utils", "ModelMixin"),
    ("huggingface_hub.hub_mixin", "ModelHubMixin"),
)
"""Modules and classes whose `save_pretrained` is wrapped, once they are imported."""

METHOD = "save_pretrained"


def wrap_save_pretrained() -> None:
    """Wrap `save_pretrained` of each of `CLASSES` that is imported by now; a dense model sees no difference."""
    for module_name, class_name in CLASSES:
        owner = getattr(sys.modules.get(module_name), class_name, None)
        original = vars(owner).get(METHOD) if owner is not None else None
        if original is not None and not hasattr(original, "_regrow"):
            setattr(owner, METHOD, _wrapped(original))


def _wrapped(original: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> Any:
        weights = sparse_weights(self) if isinstance(self, nn.Module) else []
        if not weights:
            return original(self, *args, **kwargs)
        for weight in weights:
            weight.check_unchanged(thorough=True)
        bound = signature.bind(self, *args, **kwargs)
        given = bound.arguments.get("state_dict")
        if given is not None:
            bound.arguments["state_dict"] = _readable(self, given)
        hook = self._register_state_dict_hook(_after_state_dict)
        try:
            return original(*bound.args, **bound.kwargs)
        finally:
            hook.remove()

    save_pretrained._regrow = True  # type: ignore[attr-defined]
    return save_pretrained


def _after_state_dict(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    in_dense_form(module, state, prefix, topology=True)


def _readable(module: nn.Module, given: dict[str, Any]) -> dict[str, Any]:
    state = dict(given)  # the caller's stays as it is
    in_dense_form(module, state, topology=True)
    return state
