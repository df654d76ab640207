"""The order in which a model applies its layers, where that is one chain; seen by torch.fx."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from regrow.errors import RegrowValueError

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
# what acts on each element alone
ELEMENTWISE = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Sigmoid,
    nn.LogSigmoid,
    nn.Tanh,
    nn.Tanhshrink,
    nn.Softplus,
    nn.Softsign,
    nn.Softshrink,
    nn.Hardshrink,
    nn.Hardtanh,
    nn.Hardswish,
    nn.Hardsigmoid,
)
# what a constant channel passes unchanged, in evaluation mode
UNCHANGED = (
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
)
FUNCTIONS = {
    "relu": "elementwise",
    "relu_": "elementwise",
    "relu6": "elementwise",
    "leaky_relu": "elementwise",
    "elu": "elementwise",
    "celu": "elementwise",
    "selu": "elementwise",
    "gelu": "elementwise",
    "silu": "elementwise",
    "mish": "elementwise",
    "sigmoid": "elementwise",
    "tanh": "elementwise",
    "softplus": "elementwise",
    "hardtanh": "elementwise",
    "hardswish": "elementwise",
    "hardsigmoid": "elementwise",
    "dropout": "unchanged",
    "max_pool1d": "unchanged",
    "max_pool2d": "unchanged",
    "avg_pool1d": "unchanged",
    "avg_pool2d": "unchanged",
    "adaptive_avg_pool1d": "unchanged",
    "adaptive_avg_pool2d": "unchanged",
    "adaptive_max_pool2d": "unchanged",
    "flatten": "flatten",
}


@dataclass(frozen=True)
class Step:
    """One operation of the chain."""

    kind: str
    """``layer``, ``norm``, ``elementwise``, ``unchanged`` or ``flatten``."""
    name: str
    """Of the module, or of the function."""
    apply: Callable[[Tensor], Tensor] | None = None
    """What an element-wise step does."""

    def on_constants(self, values: Tensor, module: nn.Module | None) -> Tensor:
        """Return what becomes of channels [C] that are constant over images and pixels, in evaluation mode."""
        if self.kind == "norm":
            assert isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
            return F.batch_norm(
                values[None],
                module.running_mean,
                module.running_var,
                module.weight,
                module.bias,
                False,
                0.0,
                module.eps,
            )[0]
        return self.apply(values) if self.apply is not None else values


def chain(model: nn.Module) -> list[Step]:
    """Return the steps of `model`, a plain dense module in evaluation mode, from its first layer to its last.

    Raises:
        RegrowValueError: naming the module or function that makes it no chain of what can be followed.
    """
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:  # whatever a user's forward does with a value that is not there
        raise RegrowValueError(
            f"`model`: torch.fx cannot follow the forward of {type(model).__name__}: {error}\n"
            "Write it as a chain without branches that depend on values, or as nn.Sequential."
        ) from error
    nodes = [node for node in graph.nodes if node.op == "call_module"]
    places = [node for node in nodes if isinstance(model.get_submodule(str(node.target)), LAYERS)]
    if not places:
        raise RegrowValueError(
            "`model` has no linear layer or convolution, so there is nothing to make smaller"
        )
    steps = []
    node = places[0]
    while True:
        steps.append(_step(model, node))
        if node is places[-1]:
            break
        if len(node.users) != 1:
            raise _no_chain(node, f"is read by {len(node.users)} others, so its units cannot be cut")
        node = next(iter(node.users))
        if len(node.all_input_nodes) != 1:
            raise _no_chain(node, f"joins {len(node.all_input_nodes)} branches, whose units cannot be cut")
    names = [step.name for step in steps if step.kind in ("layer", "norm")]
    for name in names:
        if names.count(name) > 1:
            raise RegrowValueError(f"`model`: `{name}` is used twice, so its units cannot be cut")
    return steps


def _step(model: nn.Module, node: fx.Node) -> Step:
    if node.op == "call_module":
        name = str(node.target)
        module = model.get_submodule(name)
        if isinstance(module, nn.Conv1d | nn.Conv2d) and (
            module.groups > 1 or module.padding_mode != "zeros"
        ):
            raise _no_chain(node, "is a grouped convolution, or pads with other values than zeros")
        if isinstance(module, LAYERS):
            return Step("layer", name)
        if isinstance(module, NORMS) and module.running_mean is not None:
            return Step("norm", name)
        if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
            return Step("flatten", name)
        if isinstance(module, ELEMENTWISE) or (isinstance(module, nn.PReLU) and module.num_parameters == 1):
            return Step("elementwise", name, module)
        if isinstance(module, UNCHANGED) and _no_padding(getattr(module, "padding", 0)):
            return Step("unchanged", name)
    elif node.op in ("call_function", "call_method"):
        word = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        kind = FUNCTIONS.get(str(word), "")
        if kind == "flatten" and (*node.args[1:], *node.kwargs.values()) in ((1,), (1, -1)):
            return Step(kind, str(word))
        if kind == "unchanged" and _no_padding(node.kwargs.get("padding", 0)):
            return Step(kind, str(word))
        if kind == "elementwise":
            return Step(kind, str(word), _call(node))
    raise _no_chain(
        node,
        "is nothing that can be followed: linear layers, convolutions, element-wise activations, batch norm, pooling "
        "without padding, dropout and flatten(1) can",
    )


def _call(node: fx.Node) -> Callable[[Tensor], Tensor]:
    """Return what the function or method of `node` does to a tensor."""
    target: Any = node.target if node.op == "call_function" else getattr(torch.Tensor, str(node.target))
    rest: Any = node.args[1:]
    options: dict[str, Any] = {**node.kwargs, **({"inplace": False} if "inplace" in node.kwargs else {})}
    return lambda values: target(values.clone(), *rest, **options)


def _no_padding(padding: Any) -> bool:
    return padding in (0, (0,), (0, 0), [0, 0])


def _no_chain(node: fx.Node, what: str) -> RegrowValueError:
    name = (
        str(node.target)
        if isinstance(node.target, str)
        else getattr(node.target, "__name__", str(node.target))
    )
    return RegrowValueError(
        f"`model`: `{name}` {what}\nA model to be compacted is one chain of layers from input to output."
    )
