"""In what order a module calls its children, as torch.fx sees it."""

from __future__ import annotations

import operator
from collections import Counter
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from regrow.errors import warn

RELU = (F.relu, torch.relu, torch.relu_)
PASSED = (F.max_pool2d, torch.max_pool2d, F.dropout)
SUM = (operator.add, torch.add, "add")
SUM_IN_PLACE = (operator.iadd, "add_")


class _Tracer(fx.Tracer):
    """Follows one module's own `forward`; its children are leaves."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


class Calls:
    """The calls that a module makes in one forward pass: of its children, and of functions."""

    def __init__(self, module: nn.Module, nodes: list[fx.Node]) -> None:
        self._module = module
        self._nodes = nodes
        self._times = Counter(node.target for node in nodes if node.op == "call_module")

    @classmethod
    def of(cls, module: nn.Module, name: str) -> Calls:
        """Return the calls of `module`; none, with a warning that tells its `name`, where it cannot be traced."""
        tracer = _Tracer()
        try:
            if "forward" in vars(module):  # torch.fx would follow that of the class
                raise TypeError("another function has been put in its place")
            nodes = list(tracer.trace(module).nodes)
        except Exception as error:  # whatever the user's code raises on a proxy
            reason = (str(error).splitlines() or [""])[0]
            warn(
                f"`{name or type(module).__name__}` is left as it is, since its forward cannot be traced: {reason}",
                RuntimeWarning,
            )
            nodes = []
        finally:
            vars(tracer).clear()  # torch leaves it in a cycle of references, and the model with it
        return cls(module, nodes)

    @classmethod
    def in_both_modes(cls, module: nn.Module, name: str) -> list[Calls]:
        """Return the calls in training and in evaluation, which `forward` may ask for; warns as `of` does."""
        training, found = module.training, []
        try:
            for module.training in (True, False):
                found.append(cls.of(module, name))
        finally:
            module.training = training
        return found

    def node(self, child: str) -> fx.Node | None:
        """Return the call of the child with this name, if there is one and only one."""
        found = [node for node in self._nodes if node.op == "call_module" and node.target == child]
        return found[0] if len(found) == 1 else None

    def is_relu(self, node: fx.Node) -> bool:
        """Return whether a call is a ReLU: a function, a method, or a child without hooks."""
        if node.op == "call_module":
            child = self._child(node)  # whose hooks, if it has some, are to see what torch's ReLU is given
            return type(child) is nn.ReLU and not child._forward_pre_hooks and not child._forward_hooks
        return node.target in RELU or (node.op == "call_method" and node.target in ("relu", "relu_"))

    def input_child(self, child: str) -> nn.Module | None:
        """Return the child whose output is the input of `child`, and goes nowhere else."""
        node = self.node(child)
        before: Any = node.args[0] if node is not None and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            return None
        return self._child(before) if self._times[before.target] == 1 else None

    def only_relu_follows(self, child: str) -> bool:
        """Return whether the output of `child` goes into a ReLU and nowhere else."""
        return self._goes_into_relu(self.node(child))

    def only_sum_follows(self, child: str, relu: bool = False) -> bool:
        """Return whether the output of `child` is added to another at once, and goes nowhere else; then into a
        ReLU alone.
        """
        node = self.node(child)
        total = node.next if node is not None else None
        if (
            node is None
            or total is None
            or list(node.users) != [total]
            or total.op == "call_module"  # one that is called `add`
            or total.kwargs
            or len(total.args) != 2
        ):
            return False
        one, other = total.args
        if total.target not in SUM and not (total.target in SUM_IN_PLACE and one is node):
            return False
        another = isinstance(one, fx.Node) and isinstance(other, fx.Node) and one is not other
        return another and (not relu or self._goes_into_relu(total))

    def readers(self, child: str, relu: bool = False) -> list[nn.Module]:
        """Return the children that read the output of `child`, or of the ReLU behind it, max-pooled or not.

        None of them where others read it too.
        """
        node = self.node(child)
        if node is None or (relu and not self._goes_into_relu(node)):
            return []
        found, rest = [], list((next(iter(node.users)) if relu else node).users)
        while rest:
            reader = rest.pop()
            module = self._child(reader) if reader.op == "call_module" else None
            if reader.target in PASSED or isinstance(module, nn.MaxPool2d | nn.Dropout | nn.Identity):
                rest.extend(reader.users)
            elif module is None:
                return []
            else:
                found.append(module)
        return found

    def _goes_into_relu(self, node: fx.Node | None) -> bool:
        return node is not None and len(node.users) == 1 and self.is_relu(next(iter(node.users)))

    def _child(self, node: fx.Node) -> nn.Module:
        return self._module.get_submodule(str(node.target))


def is_shared(model: nn.Module) -> Any:
    """Return a function that says whether `model` has a module under two names."""
    times = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    return lambda module: times[id(module)] > 1
