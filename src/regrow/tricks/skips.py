"""Ghost skip connections: a shortcut over each convolution in the first part of training."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

from torch import Tensor, fx, nn
from torch.nn import functional as F

from regrow._torch import BatchNorm, ConvNd, ConvTransposeNd
from regrow.errors import RegrowValueError
from regrow.tricks import forwards
from regrow.tricks.ghosts import CHILD, Ghost, Ghosts, Strength, named_ghosts
from regrow.weights.storages import dense_class_of

INITIAL = 1e-4
"""What all weights of a skip start with, as in ToST's code."""
KINDS: dict[int, tuple[type[nn.Module], type[nn.Module]]] = {
    1: (nn.Conv1d, nn.BatchNorm1d),
    2: (nn.Conv2d, nn.BatchNorm2d),
    3: (nn.Conv3d, nn.BatchNorm3d),
}
"""By the dimensions of an image: convolution and norm of a skip."""


class GhostSkip(Ghost):
    """The skip over one convolution: ``strength * norm(conv1x1(x))``.

    Args:
        layer: the convolution, in any storage.
        strength: of all skips of the network.
    """

    def __init__(self, layer: Any, strength: Strength) -> None:
        super().__init__()
        self.strength = strength
        sizes = layer.kernel_size
        conv, norm = KINDS[len(sizes)]
        own = next(layer.parameters())
        where: dict[str, Any] = {"device": own.device, "dtype": own.dtype}
        channels, outputs = layer.in_channels, layer.out_channels
        # whose initial weights are drawn by nobody, and take nothing from the user's generator
        self.conv = nn.utils.skip_init(
            conv, channels, outputs, 1, stride=layer.stride, groups=layer.groups, bias=False, **where
        )
        nn.init.constant_(self.conv.weight, INITIAL)
        self.norm = norm(outputs, **where)
        self.padding = _centred(layer)
        self.train(layer.training)
        self.register_load_state_dict_pre_hook(_require_ghost)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor | None:
        """Return what is added to the layer's output for its input `x` [N, C, ...]; None at strength 0."""
        strength = self.strength.value
        if strength == 0:
            return None
        x = F.pad(x, self.padding) if any(self.padding) else x
        branch: Tensor = self.norm(self.conv(x))
        return branch if strength == 1 else strength * branch


def _centred(layer: Any) -> list[int]:
    """Return the padding, negative where it cuts, that puts a 1x1 kernel on the middle of each of the layer's windows.

    In the order of `torch.nn.functional.pad`: the last dimension first.
    """
    found: list[int] = []
    for dim, (size, dilation) in enumerate(zip(layer.kernel_size, layer.dilation, strict=True)):
        span = dilation * (size - 1)
        if isinstance(layer.padding, str):
            both = span if layer.padding == "same" else 0
        else:
            both = 2 * layer.padding[dim]
        before = both // 2 - span // 2
        found[:0] = [before, both - span - before]
    return found


def _require_ghost(
    ghost: nn.Module,
    state: dict[str, Any],
    prefix: str,
    metadata: Any,
    strict: bool,
    missing: Any,
    extra: Any,
    errors: list[str],
) -> None:
    """Say what is wrong where a state without ghosts is loaded: the names that are missing say little."""
    if not any(name.startswith(prefix) for name in state):
        errors.append(
            f"`{prefix.removesuffix('.')}` is a ghost, and the state was saved without ghosts: after their end, or of "
            "another network. Load the optimizer's state first, which ends them where they had ended, or call "
            "regrow.tricks.remove_ghosts(model)."
        )


def joined(output: Tensor, branch: Tensor | None) -> Tensor:
    """Return `output` with what a skip adds to it."""
    return output if branch is None else output + branch


class GhostSkips(Ghosts):
    """Ghost skip connections (ToST, arXiv 2206.12755): ``y + s norm(conv1x1(x))`` for each convolution ``y = f(x)``.

    The 1x1 convolution has the stride and the groups of the layer, sees the middle of each of its windows, and starts
    at 1e-4 everywhere; the norm is a batch norm of its own. The sum is taken behind the norm that follows the layer, if
    one does, as in ToST's code for residual networks. s falls to 0 by the schedule; there is none in the code.

    All convolutions have one whose kernel has more than one element and that a forward calls once. A linear layer has
    none: its skip would be a dense layer of its size.

    Args:
        model, total_steps, start_fraction, stop_fraction, shape, exclude: see `Ghosts`; `exclude` may name layers too.

    Raises:
        RegrowValueError: see `Ghosts`.
    """

    kind: ClassVar[str] = "ghost skips"

    def _find(self) -> dict[str, nn.Module]:
        if next(named_ghosts(self.model), None) is not None:
            raise RegrowValueError("`model` has ghost skips already\nCall remove() of those first.")
        names = {module: name for name, module in self.model.named_modules()}
        able = {m for name, m in self._modules() if takes_skip(m)}
        found = [
            (name, module)
            for name, module in self._modules()
            if forwards.has_forward(module) and any(child in able for _, child in forwards.called_by(module))
        ]
        graphs = forwards.trace_all(found, "skips")
        times: Counter[tuple[nn.Module, bool]] = Counter()
        for name, module in found:
            for mode, graph in graphs[name].items():
                for layer in _called(graph, module):
                    times[layer, mode] += 1
        self.layers = [m for m in names if m in able and times[m, True] == times[m, False] == 1]
        """The convolutions that have a ghost."""
        if not self.layers:
            raise RegrowValueError(
                "`model` has no convolution that a ghost skip can be put over: one with a kernel of more than one "
                "element, called once\nLeave ghost skips out: networks of linear layers have none."
            )
        chosen = set(self.layers)
        return {n: m for n, m in found if chosen.intersection(_called(graphs[n][True], m))}

    def _make(self) -> None:
        for layer in self.layers:
            layer.register_module(CHILD, GhostSkip(layer, self.strength))

    def edit(self, graph: fx.Graph, module: nn.Module) -> None:
        for node in [node for node in graph.nodes if node.op == "call_module"]:
            layer = module.get_submodule(str(node.target))
            if not isinstance(layer._modules.get(CHILD), GhostSkip) or not node.args:
                continue
            follower: fx.Node = next(iter(node.users)) if len(node.users) == 1 else node
            end = follower if _is_norm(follower, module) else node
            with graph.inserting_after(node):  # before anything writes to the layer's input
                branch = graph.call_module(f"{node.target}.{CHILD}", (node.args[0],))
            with graph.inserting_after(end if end is not node else branch):
                total = graph.call_function(joined, (end, branch))
            end.replace_all_uses_with(total)  # in the sum itself, too
            total.args = (end, branch)

    def parameters(self) -> list[nn.Parameter]:
        return [p for _, ghost in named_ghosts(self.model) for p in ghost.parameters()]

    def _unmake(self) -> None:
        for layer in self.layers:
            layer._modules.pop(CHILD, None)


def takes_skip(module: nn.Module) -> bool:
    """Return whether `module` is a convolution over which a skip is smaller than itself."""
    kind = dense_class_of(module)
    is_conv = issubclass(kind, ConvNd) and not issubclass(kind, ConvTransposeNd)
    sizes: Any = module.kernel_size if is_conv else ()
    return len(sizes) in KINDS and max(sizes) > 1


def _called(graph: fx.Graph, module: nn.Module) -> list[nn.Module]:
    """Return the modules that a forward calls, each as often as it does."""
    return [module.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"]


def _is_norm(node: fx.Node, module: nn.Module) -> bool:
    """Return whether a call is of a norm over channels, which keeps the shape."""
    if node.op != "call_module":
        return False
    return isinstance(module.get_submodule(str(node.target)), BatchNorm | nn.GroupNorm | nn.Identity)
