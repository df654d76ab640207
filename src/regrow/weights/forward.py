"""What happens to a module's sparse weights before each forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from regrow._torch import constant_in_graphs, is_flat, is_scripting, not_compiled_alone
from regrow.weights.compressed import unseen
from regrow.weights.hook import GradientHook, hook_of
from regrow.weights.record import module_records
from regrow.weights.sharded import not_whole
from regrow.weights.views import views


@constant_in_graphs
@not_compiled_alone
def ensure_hooks(module: nn.Module) -> None:
    """Attach the gradient hooks that are missing, after checking that nobody has changed a topology."""
    if torch.compiler.is_exporting():
        for weight in views(module):
            if not weight.is_dense and torch.onnx.is_in_onnx_export():
                raise unseen(weight.name)
        return
    for weight in views(module):
        parameter = weight.parameter
        weight.prepare()
        if weight.is_dense and _stands_in(parameter):
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
    """Return whether a tensor stands in for a parameter for the time of a call."""
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
        view = record.view
        if given is None or view is None or not view.is_dense or not _stands_in(given):
            continue
        if torch.compiler.is_exporting():  # which has put its own tensors there, and knows no other values
            return
        module._parameters[name] = view(module, name).cut_of(given)  # type: ignore[assignment]
        caller.__dict__.setdefault(GIVEN, []).append((module, name, given))
        if after_forward not in caller._forward_hooks.values():
            caller.register_forward_hook(after_forward, always_call=True)


@not_compiled_alone
def before_forward(self: nn.Module, args: tuple[Tensor]) -> None:
    """Prepare a masked weight; a module's forward pre-hook, and a plain function, so that copies keep it.

    `regrow.nn.base.SparseModule` does the same in its own forward pass: torch takes longer to call a hook.
    """
    if not is_scripting():  # torch.jit.script compiles hooks too, and asks for just these types
        ensure_hooks(self)
        cut_substituted(self, self)


@not_compiled_alone
def before_forward_of_reader(module: nn.Module, args: Any) -> None:
    """Do the same for a module that reads its children's weights and never calls them: `nn.MultiheadAttention`."""
    for child in module.children():
        ensure_hooks(child)
        cut_substituted(child, module)


@not_compiled_alone
def after_forward(module: nn.Module, args: Any, output: Any) -> None:
    """Put back what `cut_substituted` has replaced, since the tensors are the user's; a forward hook."""
    for owner, name, given in module.__dict__.pop(GIVEN, ()):
        owner._parameters[name] = given
