"""One way on, and one way off, for what a sparse weight attaches to.

=====================  ===============================================================================================
a module's dictionary  the weight's `Record`, under `RECORDS`
the parameter          a `GradientHook`
the module             a forward pre-hook (`regrow.weights.forward`), but for the forms of a storage, which do the same
                       themselves; a hook that saves the topology, and those that load it
the model              the hooks that load, which see a whole state dict before anything of it is written
a reader               a forward pre-hook: a parent that reads its children's weights and never calls them
=====================  ===============================================================================================

The topology's tensors belong to the storage; an optimizer's hooks belong to the method that drives it
(`regrow.methods.attached`), which is detached first. What a copy or a conversion loses of a parameter's hooks is put
on again by the next forward pass.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from torch import nn

from regrow.weights.base import SparseWeight
from regrow.weights.forward import after_forward, before_forward, before_forward_of_reader, ensure_hooks
from regrow.weights.hook import remove_hook
from regrow.weights.loading import after_load, before_load, save_topology
from regrow.weights.record import RECORDS, Family, Record, module_records
from regrow.weights.storages import STORAGES
from regrow.weights.views import views

OWN = (before_forward, before_forward_of_reader, after_forward, before_load, after_load, save_topology)


def attach(module: nn.Module, parameter_name: str, record: Record) -> SparseWeight:
    """Make `module`, which owns the parameter and the topology of ``record.storage``, hold a sparse weight.

    A second call changes nothing but the record.

    Args:
        module: the owner.
        parameter_name: the dense name of the parameter, ``weight``.
        record: what is remembered about the weight, used from now on.

    Returns:
        The weight.
    """
    view = STORAGES[record.storage]
    note(module, parameter_name, record)
    record.parameter_name, record.view, record.family = parameter_name, view, Family()
    record.belong_to(module)
    if view.forms is None and not _has(module._forward_pre_hooks, before_forward):
        module.register_forward_pre_hook(before_forward)
    if not _has(module._state_dict_hooks, save_topology):
        module.register_state_dict_post_hook(save_topology)
    attach_loading(module)
    weight = view(module, parameter_name)
    weight.remember()
    weight.part()
    ensure_hooks(module)
    return weight


def note(module: nn.Module, parameter_name: str, record: Record) -> None:
    """Remember `record`; alone for a weight that stays dense, whose reason `summary` tells."""
    if RECORDS not in module.__dict__:
        setattr(module, RECORDS, {})
    module_records(module)[parameter_name] = record


def attach_loading(model: nn.Module) -> None:
    """Let `load_state_dict` of `model` look at all sparse weights in it before anything is written."""
    if not _has(model._load_state_dict_pre_hooks, before_load):
        model.register_load_state_dict_pre_hook(before_load)
        model.register_load_state_dict_post_hook(after_load)


def attach_reader(parent: nn.Module) -> None:
    """Prepare the sparse weights of its children whenever `parent`, which reads them, is called."""
    if not _has(parent._forward_pre_hooks, before_forward_of_reader):
        parent.register_forward_pre_hook(before_forward_of_reader)


def detach(module: nn.Module) -> None:
    """Take all off `module` and its parameters that the functions above put on; parameters and topology stay."""
    for weight in views(module):
        remove_hook(weight.parameter)
    for hooks in (
        module._forward_pre_hooks,
        module._forward_hooks,
        module._state_dict_hooks,
        module._load_state_dict_pre_hooks,
        module._load_state_dict_post_hooks,
    ):
        for key in [key for key, hook in hooks.items() if _function(hook) in OWN]:
            del hooks[key]
            module._forward_hooks_always_called.pop(key, None)
    module.__dict__.pop(RECORDS, None)


def _has(hooks: MutableMapping[int, Any], own: Any) -> bool:
    return any(_function(hook) is own for hook in hooks.values())


def _function(hook: Any) -> Any:
    """Return the function itself, which torch wraps for load pre-hooks."""
    return getattr(hook, "hook", hook)
