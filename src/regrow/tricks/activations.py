"""Ghost soft activations: a smooth function in the place of each ReLU in the first part of training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from regrow.arguments import require_choice, require_positive
from regrow.errors import RegrowValueError
from regrow.rewrite.calls import Calls
from regrow.tricks import forwards
from regrow.tricks.ghosts import Ghosts, Strength

SOFT: dict[str, tuple[float, Callable[[Tensor, float], Tensor]]] = {
    "swish": (2.0, lambda x, beta: x * torch.sigmoid(beta * x)),
    "mish": (1.0, lambda x, beta: x * torch.tanh(F.softplus(beta * x))),
    "softplus": (1.0, lambda x, beta: F.softplus(x, beta)),
}
"""By name: its published beta, and the function of x and beta. All are f(beta x) / beta, and ReLU where beta is
large."""
ENDS = ("sharpen", "swap")


def soft(x: Tensor, activation: str = "swish", beta: float | None = None) -> Tensor:
    """Return a smooth ReLU of `x`, of the same shape; the larger beta is, the nearer it is to ReLU.

    ``swish`` is ``x sigmoid(beta x)``, parametric Swish; ``mish`` is ``x tanh(log(1 + exp(beta x)))``; ``softplus`` is
    ``log(1 + exp(beta x)) / beta``.

    Args:
        x: a tensor of any shape.
        activation: its name.
        beta: None is that of ToST's code for Swish, 2, and 1 for the others, which is what they are defined with.

    Raises:
        RegrowValueError: an unknown name, or a beta that is not above 0.
    """
    usual, function = SOFT[require_choice("activation", activation, SOFT)]
    return function(x, usual if beta is None else require_positive("beta", beta))


class SoftReLU:
    """What is called in the place of a ReLU; ReLU itself at strength 0.

    Args:
        activation, beta, end: see `GhostActivations`.
        strength: of all of the network.
    """

    __name__ = "soft_relu"  # torch.fx writes it into the forward

    def __init__(self, activation: str, beta: float, end: str, strength: Strength) -> None:
        self.function = SOFT[activation][1]
        self.beta, self.end, self.strength = beta, end, strength

    def __call__(self, x: Tensor) -> Tensor:
        """Return the activation of `x`, of its shape."""
        strength = self.strength.value
        if strength == 0:
            return F.relu(x)
        if self.end == "sharpen":
            return self.function(x, self.beta / strength)
        smooth = self.function(x, self.beta)
        return smooth if strength == 1 else strength * smooth + (1 - strength) * F.relu(x)


class GhostActivations(Ghosts):
    """Ghost soft neurons (ToST, arXiv 2206.12755): each ReLU is a smooth function at first, and ReLU in the end.

    ToST's code trains the whole run with the smooth function and has no way back to ReLU; the ways here are the
    paper's ideas: beta grows to infinity as beta / s, or ``s soft(x) + (1 - s) relu(x)``, s being the strength.

    A ReLU is `torch.nn.ReLU` without hooks, or torch's function or method of that name, in any forward that is not
    torch's own (`nn.TransformerEncoderLayer` keeps its).

    Args:
        model: any module.
        activation: ``"swish"``, ``"mish"`` or ``"softplus"``, see `soft`.
        beta: at the start, see `soft`.
        end: ``"sharpen"``, beta grows, or ``"swap"``, the sum of both.
        total_steps, start_fraction, stop_fraction, shape, exclude: see `Ghosts`.

    Raises:
        RegrowValueError: see `Ghosts`.
    """

    kind: ClassVar[str] = "ghost activations"

    def __init__(
        self,
        model: nn.Module,
        activation: str = "swish",
        *,
        beta: float | None = None,
        end: str = "sharpen",
        total_steps: int,
        start_fraction: float = 0.0,
        stop_fraction: float = 0.5,
        shape: str = "linear",
        exclude: str | Sequence[str] = (),
    ) -> None:
        usual, _ = SOFT[require_choice("activation", activation, SOFT)]
        self.activation, self.end = activation, require_choice("end", end, ENDS)
        self.beta = usual if beta is None else require_positive("beta", beta)
        super().__init__(
            model,
            total_steps=total_steps,
            start_fraction=start_fraction,
            stop_fraction=stop_fraction,
            shape=shape,
            exclude=exclude,
        )

    def _find(self) -> dict[str, nn.Module]:
        self._called = SoftReLU(self.activation, self.beta, self.end, self.strength)
        found = [(name, module) for name, module in self._modules() if forwards.has_forward(module)]
        for _, module in found:
            there = vars(module).get("forward")
            edits = there.edits if isinstance(there, forwards.Rewritten) else []
            if any(isinstance(edit, GhostActivations) for edit in edits):
                raise RegrowValueError("`model` has ghost activations already\nCall remove() of those first.")
        graphs = forwards.trace_all(found, "activations")
        owners = {
            name: module
            for name, module in found
            if any(_relus(graph, module, name) for graph in graphs[name].values())
        }
        if not owners:
            raise RegrowValueError(
                "`model` has no ReLU in any forward, so that nothing can be soft\nLeave ghost activations out."
            )
        return owners

    def edit(self, graph: fx.Graph, module: nn.Module) -> None:
        for node in _relus(graph, module, ""):
            with graph.inserting_before(node):
                ghost = graph.call_function(self._called, (_input(node),))
            node.replace_all_uses_with(ghost)
            graph.erase_node(node)


def _relus(graph: fx.Graph, module: nn.Module, name: str) -> list[fx.Node]:
    """Return the calls of ReLU in a forward.

    Raises:
        RegrowValueError: one writes into what others read too, which nothing else can do in its place.
    """
    calls = Calls(module, list(graph.nodes))
    found = [node for node in graph.nodes if node.op.startswith("call_") and calls.is_relu(node)]
    for node in found:
        if len(_input(node).users) > 1 and _in_place(node, module):
            raise RegrowValueError(
                f"`model`: a ReLU of `{name or forwards.ROOT}` writes into its input, which others read too\n"
                f"Make it inplace=False, or leave it out with exclude={name or forwards.ROOT!r}."
            )
    return found


def _input(node: fx.Node) -> Any:
    return node.args[0] if node.args else node.kwargs["input"]


def _in_place(node: fx.Node, module: nn.Module) -> bool:
    """Return whether a ReLU writes into its input."""
    if node.op == "call_module":
        return bool(getattr(module.get_submodule(str(node.target)), "inplace", False))
    flag = node.kwargs.get("inplace", node.args[1] if len(node.args) > 1 else False)
    return bool(flag) or node.target in (torch.relu_, "relu_")
