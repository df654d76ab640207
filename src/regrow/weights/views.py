"""From a model to views of its sparse weights, and what regrow puts on a module that owns one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from regrow._torch import compiled_from, constant_in_graphs, is_flat, is_scripting
from regrow.errors import RegrowRuntimeError
from regrow.weights.base import SparseWeight
from regrow.weights.compressed import CompressedWeight, unseen
from regrow.weights.hook import GradientHook, driver_of, hook_of, remove_hook
from regrow.weights.masked import MaskedWeight
from regrow.weights.record import RECORDS, Family, Record, module_records
from regrow.weights.sharded import not_whole

STORAGES: dict[str, type[SparseWeight]] = {view.storage: view for view in (MaskedWeight, CompressedWeight)}


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside the wrappers of torch: DistributedDataParallel, DataParallel, torch.compile."""
    while True:
        inner = compiled_from(model)
        if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def named_weights(model: nn.Module) -> Iterator[tuple[str, SparseWeight]]:
    """Each sparse weight with the name that it has in `model` now, ``layers.0.weight``, wrappers of torch left out."""
    for name, module in unwrapped(model).named_modules():
        for weight in views(module):
            yield f"{name}.{weight.parameter_name}" if name else weight.parameter_name, weight


def named_records(model: nn.Module) -> dict[str, Record]:
    """The records of all weights that `sparsify` has looked at, by the name they have in `model` now."""
    return {
        f"{name}.{parameter_name}" if name else parameter_name: record
        for name, module in unwrapped(model).named_modules()
        for parameter_name, record in module_records(module).items()
    }


def views(module: nn.Module) -> Iterator[SparseWeight]:
    """The sparse weights that `module` itself owns."""
    for parameter_name, record in module_records(module).items():
        if record.storage in STORAGES:
            yield STORAGES[record.storage](module, parameter_name)


def sparse_weights(model: nn.Module) -> list[SparseWeight]:
    """All sparse weights of `model`, in the order of its modules."""
    return [weight for module in model.modules() for weight in views(module)]


def settle(model: nn.Module) -> None:
    """See that values and topology of all sparse weights belong together (`SparseWeight.settle`)."""
    for weight in sparse_weights(unwrapped(model)):
        weight.settle(thorough=True)


def refuse_driven(model: nn.Module) -> None:
    """Refuse a model that a method drives.

    Raises:
        RegrowRuntimeError: naming the method.
    """
    for weight in sparse_weights(model):
        driver = driver_of(weight.parameter)
        if driver is not None:
            raise RegrowRuntimeError(f"`model` is driven by a method: {driver!r}\nCall its detach() first.")


@constant_in_graphs
def ensure_hooks(module: nn.Module) -> None:
    """Attach the gradient hooks that are missing, after checking that nobody has changed a topology."""
    if torch.compiler.is_exporting():
        for weight in views(module):
            if weight.storage == CompressedWeight.storage and torch.onnx.is_in_onnx_export():
                raise unseen(weight.name)
        return
    for weight in views(module):
        parameter = weight.parameter
        weight.prepare()
        if weight.storage == MaskedWeight.storage and _stands_in(parameter):
            if is_flat(parameter):  # which no hook sees
                raise not_whole(weight.name)
            continue  # `cut_substituted` sees to it
        weight.settle()
        if parameter.requires_grad and hook_of(parameter) is None and parameter.is_leaf:
            GradientHook(weight, weight.mask_alone).attach(parameter)
            weight.prepare()


GIVEN = "_regrow_given"
"""Attribute of a module that is called: modules, names and tensors that were cut to their masks for the call."""


def _stands_in(parameter: Tensor) -> bool:
    """Whether a tensor stands in for a parameter for the time of a call."""
    # asking for the very type is faster, and settles it as a rule
    return type(parameter) is not nn.Parameter and not isinstance(parameter, nn.Parameter)


def cut_substituted(module: nn.Module, caller: nn.Module) -> None:
    """Cut what stands in for masked weights (`torch.func.functional_call`) to the masks while `caller` is called.

    Such tensors are any that a user has computed: the hooks of the parameters do not see their gradients.
    """
    for name, record in module_records(module).items():
        given = module._parameters.get(name)
        if type(given) is nn.Parameter:  # as a rule
            continue
        if given is None or record.storage != MaskedWeight.storage or not _stands_in(given):
            continue
        if torch.compiler.is_exporting():  # which has put its own tensors there, and knows no other values
            return
        weight = MaskedWeight(module, name)
        module._parameters[name] = weight.cut_of(given)  # type: ignore[assignment]
        caller.__dict__.setdefault(GIVEN, []).append((module, name, given))
        if after_forward not in caller._forward_hooks.values():
            caller.register_forward_hook(after_forward, always_call=True)


def before_forward(self: nn.Module, args: tuple[Tensor]) -> None:
    """Forward pre-hook of a module with a masked weight: a plain function, so that copies keep it.

    `regrow.nn.base.SparseModule` does the same in its own forward pass: torch takes longer to call a hook.
    """
    if not is_scripting():  # torch.jit.script compiles hooks too, and asks for just these types
        ensure_hooks(self)
        cut_substituted(self, self)


def before_forward_of_reader(module: nn.Module, args: Any) -> None:
    """The same for a module that reads its children's weights and never calls them: `nn.MultiheadAttention`."""
    for child in module.children():
        ensure_hooks(child)
        cut_substituted(child, module)


def after_forward(module: nn.Module, args: Any, output: Any) -> None:
    """Forward hook that puts back what `cut_substituted` has replaced: the tensors are the user's."""
    for owner, name, given in module.__dict__.pop(GIVEN, ()):
        owner._parameters[name] = given


def adopt(module: nn.Module, parameter_name: str, record: Record) -> SparseWeight:
    """Make `module`, which owns the parameter and the buffers of `record.storage`, hold a sparse weight."""
    if RECORDS not in module.__dict__:
        setattr(module, RECORDS, {})
    known = any(hook is before_forward for hook in module._forward_pre_hooks.values())
    if record.storage != CompressedWeight.storage and not known:
        module.register_forward_pre_hook(before_forward)
    module_records(module)[parameter_name] = record
    weight = STORAGES[record.storage](module, parameter_name)
    record.parameter_name, record.view, record.family = parameter_name, type(weight), Family()
    record.belong_to(module)
    weight.remember()
    weight.part()
    ensure_hooks(module)
    return weight


def release(module: nn.Module) -> None:
    """Take off all that `adopt` has put on `module`; its parameters and buffers stay."""
    for weight in views(module):
        remove_hook(weight.parameter)
    remove_own_hooks(module)
    module.__dict__.pop(RECORDS, None)


def remove_own_hooks(module: nn.Module) -> None:
    """Take regrow's forward hooks off `module`."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key, hook in list(hooks.items()):
            if hook in (before_forward, before_forward_of_reader, after_forward):
                del hooks[key]
                module._forward_hooks_always_called.pop(key, None)
