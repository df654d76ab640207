"""Every private name of torch that regrow uses; nothing else uses one (`tests/test_torch_names.py`).

Each says what it is for and what happens with a torch that lacks it. All are in torch 2.10, the oldest that is
supported, and in 2.13. "Required" means that `import regrow` fails and names it, since nothing could stand in for it.

Some are used directly wherever they are needed, because torch can hardly change them:

- the dictionaries of `nn.Module` (`_parameters`, `_buffers`, `_modules`, `_forward_hooks` and all others that
  ``vars(nn.Module())`` shows): every module that was ever pickled holds them by these names;
- ``Tensor._version`` and ``Tensor._make_wrapper_subclass``, of which torch's documentation speaks.

What is called in each step is torch's own function by another name, which costs no call more.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any, TypeVar

import torch
from torch import Tensor, _jit_internal, nn
from torch._C import (  # type: ignore[attr-defined]
    DisableTorchFunctionSubclass,
    _are_functorch_transforms_active,
    _current_graph_task_id,
    _functorch,
    _get_tracing_state,
    _len_torch_dispatch_stack,
    _set_tracing_state,
)
from torch._ops import OpOverload
from torch._subclasses import fake_tensor
from torch.autograd import Function, Variable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.module import _has_any_global_hook
from torch.optim import Optimizer
from torch.utils import _python_dispatch, _pytree

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

# Operators and functions, and what watches or transforms them

transforms_active: Callable[[], bool] = _are_functorch_transforms_active
"""Return whether a transform of torch.func is at work: vmap, grad, jvp. Required."""

dispatch_modes: Callable[[], int] = _len_torch_dispatch_stack
"""Return how many modes see each operator: FakeTensorMode, FLOP counters, make_fx. Required."""

without_modes = _python_dispatch._disable_current_modes
"""Suspend those modes: for what is computed once and kept, and for what a mode does itself. Required."""

TorchDispatchMode = _python_dispatch.TorchDispatchMode
"""Base class of a mode; `regrow.explain` has one that looks for changes of layout. Required."""

FakeTensor = fake_tensor.FakeTensor
"""Class of tensors without data, in which compilers and exporters run a model. Required."""

without_torch_function = DisableTorchFunctionSubclass
"""Call torch on a subclass of Tensor without its ``__torch_function__``. Required."""

schema_of: Callable[[Any], Any] = attrgetter("_schema")
"""Return the schema of an operator: its arguments, and which of them it writes to.

If it is missing, AttributeError at the first such operator on batch tiles.
"""

Operator = OpOverload
"""Class of operators with a schema of their own, ``torch.ops.aten.add.Tensor``. Required."""

nn_functions: Any = getattr(torch._C, "_nn", torch)
"""Hold some functions of torch.nn.functional; if it is missing, those are known by their public names alone."""


def memory_of(tensor: Tensor) -> int:
    """Return a number that tensors share if they share memory, also those without data.

    Needs ``UntypedStorage._cdata``; without it, those without data are taken to share theirs.
    """
    storage = tensor.untyped_storage()
    number: int = storage._cdata if hasattr(storage, "_cdata") else storage.data_ptr()
    return number


def is_under_vmap(tensor: Tensor) -> bool:
    """Return whether `torch.vmap` runs over a dimension of `tensor`. Needs torch._C._functorch: required."""
    while _functorch.is_functorch_wrapped_tensor(tensor):
        if _functorch.is_batchedtensor(tensor):
            return True
        tensor = _functorch.get_unwrapped(tensor)
    return False


def guards_of(program: Any) -> list[str]:
    """Return the conditions on the inputs' shapes, as text, under which an exported program computes the model.

    Needs `_guards_code` of `ExportedProgram`; if it is missing, one that no shape meets: programs hold for one batch.
    """
    guards: list[str] = getattr(program, "_guards_code", ["False"])
    return guards


# Trees of arguments

tree_leaves = _pytree.tree_leaves
"""List what lies in nested containers. Required."""

tree_map = _pytree.tree_map
"""Apply a function to what lies in nested containers. Required."""

tree_map_only = _pytree.tree_map_only
"""Apply a function to what lies in nested containers and is of one type. Required."""


# torch.jit and torch.compile

is_scripting = _jit_internal.is_scripting
"""Return False, but True in code that torch.jit.script has compiled; `torch.jit.is_scripting` has no type. Required."""

tracing_state: Callable[[], Any] = _get_tracing_state
"""Return the state of the torch.jit.trace that runs; None if none does. Required."""


@contextmanager
def untraced() -> Iterator[None]:
    """Hide from torch.jit.trace what runs inside. Needs torch._C._set_tracing_state: required."""
    state = tracing_state()
    _set_tracing_state(None)
    try:
        yield
    finally:
        _set_tracing_state(state)


def constant_in_graphs(function: Decorated) -> Decorated:
    """Let torch.compile run `function` while it traces, on the real arguments, and keep nothing of it in the graph.

    As `torch.compiler.assume_constant_result`, without its import of all of torch._dynamo. If dynamo no longer reads
    the attribute, it traces into `function`: more graphs, or an error where ``fullgraph=True``.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def not_compiled_alone(function: Decorated) -> Decorated:
    """Let torch.compile leave calls of `function` alone, and all that it calls, where they are not part of a graph.

    Behind a break of the graph, as `nn.GRU` makes one, dynamo would compile each function that runs. As
    `torch.compiler.disable`, but without its break inside of graphs, and its import of all of torch._dynamo. If
    ``set_code_exec_strategy`` is missing, dynamo traces into `function`, and warns of what it finds there.
    """
    try:
        from torch._C._dynamo import eval_frame

        leave = eval_frame._FrameExecStrategy(eval_frame._FrameAction.SKIP, eval_frame._FrameAction.SKIP)
        eval_frame.set_code_exec_strategy(function.__code__, leave)
    except (ImportError, AttributeError):
        pass
    return function


def dynamo_is_loaded() -> bool:
    """Return whether anything can have been compiled in this process.

    Importing torch._dynamo to ask would take long. If it has moved, an optimizer that compiles its step does so for a
    trial too.
    """
    return "torch._dynamo" in sys.modules


def compiled_from(model: nn.Module) -> Any:
    """Return the module that `torch.compile` made `model` of; None for any other.

    If the attribute is missing, a compiled model is taken as it is: its weights' names begin with torch's prefix.
    """
    return getattr(model, "_orig_mod", None)


# Autograd

running_backward: Callable[[], int] = _current_graph_task_id
"""Return the number of the backward pass that runs in this thread; -1 if none does. Required."""

when_backward_ends: Callable[[Callable[[], None]], None] = Variable._execution_engine.queue_callback
"""Have a function called when the backward pass that runs now has ended. Required."""

will_run: Callable[[Any], bool] = getattr(torch._C, "_will_engine_execute_node", lambda node: False)
"""Return whether the running backward pass will reach a node; if it is missing, False: autograd adds up by itself."""

gradient_hooks: Callable[[Tensor], dict[int, Any] | None] = attrgetter("_backward_hooks")
"""Return the hooks of `Tensor.register_hook` by number: where regrow's own is found, and taken off again.

If it is missing, AttributeError when a model is made sparse.
"""

accumulation_hooks: Callable[[Tensor], dict[int, Any] | None] = attrgetter("_post_accumulate_grad_hooks")
"""Return the hooks of `Tensor.register_post_accumulate_grad_hook` by number; see `gradient_hooks`."""


def apply(function: type[Function], *args: Any) -> Any:
    """Return ``function.apply(*args)``, in half the time if no transform of torch.func is at work.

    `Function.apply` looks for transforms and default arguments before it calls the class above it, in C++, which this
    does at once. Needs a class above `Function` with `apply`; if it is missing, AttributeError in the first layer.
    """
    if transforms_active():
        return function.apply(*args)
    return super(Function, function).apply(*args)  # type: ignore[misc]


def is_flat(tensor: object) -> bool:
    """Return whether `tensor` is a view of the one parameter that FSDP1 puts in the place of all.

    Needs `Tensor._base`, and `_is_flat_param` of FSDP; without the latter, hooks that see no gradient of such a weight
    would be put on it.
    """
    base = tensor._base if isinstance(tensor, Tensor) else None
    return bool(getattr(base, "_is_flat_param", False))


# Modules

has_global_hooks: Callable[[], Any] = _has_any_global_hook
"""Tell whether hooks see each module's calls (`register_module_forward_hook` and the like). Required."""

ConvNd = _ConvNd
"""Base of all convolutions. Required."""

ConvTransposeNd = _ConvTransposeNd
"""Base of the transposed ones. Required."""

BatchNorm = _BatchNorm
"""Base of all batch norms. Required."""

COMPUTES = ("forward", "_conv_forward")
"""Methods in which a layer of torch computes. A class that overrides one computes by other code; the second is that of
convolutions, and if it is missing, `forward` tells alone."""


def recurrent_weights(module: nn.Module) -> Collection[str]:
    """Return the names of the weights and biases that a recurrent layer or cell reads.

    Needs `_flat_weights_names` of `nn.RNNBase`; if it is missing, layers stay dense, cells do not.
    """
    names: Collection[str] = getattr(module, "_flat_weights_names", ("weight_ih", "weight_hh"))
    return names


def computed_by_hook(hook: object) -> str | None:
    """Return the name of the weight that a hook of torch.nn.utils computes: prune, weight_norm, spectral_norm.

    Needs `_tensor_name` of `prune`; if it is missing, a pruned weight is told by its mask alone.
    """
    name: str | None = getattr(hook, "name", getattr(hook, "_tensor_name", None))
    return name


def is_weight_norm(parametrization: object) -> bool:
    """Return whether it is that of `torch.nn.utils.parametrizations.weight_norm`.

    Needs the name of its class; if it has another one, the norm's magnitudes count as weights.
    """
    return type(parametrization).__name__ == "_WeightNorm"


# Optimizers


def hook_attributes(optimizer: Optimizer) -> list[str]:
    """Return the names of the attributes that hold hooks of `optimizer`; without such names, none."""
    return [name for name in vars(optimizer) if name.startswith("_optimizer_")]


def register_first_step_hook(optimizer: Optimizer, hook: Callable[..., None]) -> Any:
    """Register a step pre-hook that runs before all that are there, and return its handle.

    `register_step_pre_hook` puts it last. Needs `_optimizer_step_pre_hooks`; if it is missing, AttributeError here.
    """
    handle = optimizer.register_step_pre_hook(hook)
    hooks = optimizer._optimizer_step_pre_hooks
    for key in [key for key in hooks if key != handle.id]:
        hooks[key] = hooks.pop(key)
    return handle
