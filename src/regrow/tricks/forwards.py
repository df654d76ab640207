"""Put calls into the forward of a model's modules, as torch.fx sees it, and take them out again.

While they are in, a module has an attribute `forward` of its own beside that of its class; without it, the class's is
there as it ever was. So nothing of the calls can be left, and names of parameters stay as they are.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, Protocol

from torch import Tensor, fx, nn

from regrow.errors import RegrowRuntimeError, RegrowValueError

LEAVES = ("torch.nn.", "torch.ao.nn.", "regrow.nn.", "regrow.tricks.")
"""Modules of these packages are called, never looked into; containers of torch are."""
ROOT = "."
"""What `exclude` calls the model itself, whose name is empty."""
FIXED = (type(None), bool, int, float, str)
"""Types of default values that a forward is taken to be called with."""


class Edit(Protocol):
    """Something that puts calls into forwards."""

    def edit(self, graph: fx.Graph, module: nn.Module) -> None:
        """Put the calls into the `graph` of `module`'s forward."""


class _Tracer(fx.Tracer):
    """Follows one module's own `forward`; its children are leaves."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor) and not isinstance(a, nn.Parameter):
            held = any(a is buffer for buffer in self.root.buffers()) or a in self.tensor_attrs
            if not held:  # torch.fx would keep this very tensor: a mask drawn at random would stay for ever
                raise TypeError("it makes a tensor that does not depend on its inputs")
        return super().create_arg(a)


def has_forward(module: nn.Module) -> bool:
    """Return whether the forward of `module` is looked into: neither a leaf nor a mere list of modules."""
    kind = type(module)
    inside = issubclass(kind, nn.Sequential) or not f"{kind.__module__}.".startswith(LEAVES)
    return inside and not _is_list(module)


def _is_list(module: nn.Module) -> bool:
    """Return whether `module` only holds others, as nn.ModuleList does."""
    return type(module).forward is nn.Module.forward


def called_by(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that the forward of `module` can call, with their names there: children, and those in lists."""
    for name, child in module.named_children():
        yield f"{prefix}{name}", child
        if _is_list(child):
            yield from called_by(child, f"{prefix}{name}.")


def trace(module: nn.Module) -> dict[bool, fx.Graph]:
    """Return the graph of `module`'s own forward in training (True) and in evaluation (False).

    Arguments with a default are taken to have it.

    Raises:
        TypeError, or whatever the forward raises on a proxy: it cannot be traced.
    """
    if "forward" in vars(module) and not isinstance(module.forward, Rewritten):
        raise TypeError("another function has been put in its place")
    parameters = _parameters(module)
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values()):
        raise TypeError("it takes any number of arguments")
    fixed = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    strange = [name for name, default in fixed.items() if not isinstance(default, FIXED)]
    if strange:
        raise TypeError(f"the default of its argument `{strange[0]}` is a {type(fixed[strange[0]]).__name__}")
    training, graphs = module.training, {}
    try:
        for module.training in (True, False):
            tracer = _Tracer()
            try:
                graphs[module.training] = tracer.trace(module, fixed or None)
            finally:
                vars(tracer).clear()  # torch leaves it in a cycle of references, and the model with it
    finally:
        module.training = training
    return graphs


def trace_all(found: Sequence[tuple[str, nn.Module]], what: str) -> dict[str, dict[bool, fx.Graph]]:
    """Return the graphs of modules, by their names.

    Args:
        found: names and modules.
        what: what is looked for in them, for the message.

    Raises:
        RegrowValueError: naming all those that torch.fx cannot trace, with each reason.
    """
    graphs, reasons = {}, {}
    for name, module in found:
        try:
            graphs[name] = trace(module)
        except Exception as error:  # whatever the user's code raises on a proxy
            reasons[name or ROOT] = f"`{name or ROOT}` ({type(module).__name__}): " + _line(error)
    if reasons:
        raise RegrowValueError(
            f"`model`: torch.fx cannot trace the forward of {'; '.join(reasons.values())}\n"
            f"Leave {what} there out with exclude={list(reasons)}, or write these without branches on values."
        )
    return graphs


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _parameters(module: nn.Module) -> dict[str, inspect.Parameter]:
    """Return the arguments of the forward of `module`'s class, but for the module itself."""
    return dict(list(inspect.signature(type(module).forward).parameters.items())[1:])


class Rewritten:
    """The forward of one module with calls in it: a code for training and one for evaluation.

    Args:
        module: whose forward it is.
        name: of the module, for messages.
        edits: what puts the calls in.
    """

    def __init__(self, module: nn.Module, name: str, edits: Sequence[Edit]) -> None:
        self.module, self.name, self.edits = module, name or ROOT, list(edits)
        self.parameters = _parameters(module)
        self.codes = {mode: self._compiled(graph) for mode, graph in trace(module).items()}

    def _compiled(self, graph: fx.Graph) -> Callable[..., Any]:
        for edit in self.edits:
            edit.edit(graph, self.module)
        written = graph.python_code("self")
        exec(written.src, written.globals)
        code: Callable[..., Any] = written.globals["forward"]
        return code

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the forward as its class has it, with the calls in it."""
        given = inspect.Signature(list(self.parameters.values())).bind(*args, **kwargs).arguments
        for name, value in given.items():
            default = self.parameters[name].default
            if default is not inspect.Parameter.empty and value is not default and not _equal(value, default):
                raise RegrowRuntimeError(
                    f"`{self.name}` was called with `{name}`, and its forward was traced with the default {default!r}\n"
                    "Leave the module out with `exclude` where ghosts are put in."
                )
        needed = {n: v for n, v in given.items() if self.parameters[n].default is inspect.Parameter.empty}
        return self.codes[self.module.training](self.module, **needed)

    def __deepcopy__(self, memo: dict[int, Any]) -> Rewritten:
        other = Rewritten.__new__(Rewritten)
        other.__dict__.update(self.__dict__, module=copy.deepcopy(self.module, memo))
        return other

    def __reduce__(self) -> NoReturn:
        raise RegrowRuntimeError(
            "a model with ghosts in it cannot be pickled\n"
            "Save its state_dict(), or call regrow.tricks.remove_ghosts(model) first."
        )


def _equal(value: Any, default: Any) -> bool:
    return type(value) is type(default) and bool(value == default)


def put_in(module: nn.Module, name: str, edit: Edit) -> None:
    """Put the calls of `edit` into the forward of `module`, beside those that are there."""
    there = vars(module).get("forward")
    edits = there.edits if isinstance(there, Rewritten) else []
    module.forward = Rewritten(module, name, [*edits, edit])


def take_out(module: nn.Module, edit: Edit) -> None:
    """Take the calls of `edit` out of the forward of `module`; without others, it is that of its class again."""
    there = vars(module).get("forward")
    if not isinstance(there, Rewritten):
        return
    left = [other for other in there.edits if other is not edit]
    if left:
        module.forward = Rewritten(module, there.name, left)
    else:
        del module.__dict__["forward"]
