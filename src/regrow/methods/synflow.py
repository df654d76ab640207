"""SynFlow: without data, keeps in many small rounds the connections that carry most of a signal."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from regrow.arguments import require_count, require_tensor, said
from regrow.errors import RegrowValueError
from regrow.methods.registry import register
from regrow.methods.scoring import require_reached
from regrow.ops.select import top

Shapes = Mapping[str, tuple[int, ...]]


@register(
    name="synflow",
    paper="arXiv 2006.05467",
    line="keeps what carries most of a signal, without data",
    drop="none",
    grow="none",
    kind="topology",
)
class SynFlow:
    """Iterative synaptic flow pruning (arXiv 2006.05467): an initial topology, ``sparsify(model, init=SynFlow())``.

    Every parameter and buffer is replaced by its magnitude, the input by ones, and the score of a weight is
    ``w dR/dw``, where R is the sum of the outputs. The network is pruned in `rounds`, after round i to the density
    ``d^(i / rounds)``, and scored again in each. Scores of the layers add up to one number then, so that a layer of few
    connections has high ones: no layer loses all as long as there are connections enough to go through all layers.
    Static training follows.

    Scored in evaluation mode, in float64, on a copy of the model; the best of all layers together are kept, as many as
    the distribution gives in all.

    Args:
        example: one input of the network, or a batch; of a floating-point one only the shape is used. None will do
            where the network's first layer is `nn.Linear`.
        rounds: how many.

    Raises:
        RegrowValueError: an example that is not a tensor; when it scores, an example that is needed, weights that no
            signal reaches, a signal beyond float64.
    """

    per_layer = False
    iterative = True

    def __init__(self, example: Tensor | None = None, *, rounds: int = 100) -> None:
        self.example = None if example is None else require_tensor("example", example)
        self.rounds = require_count("rounds", rounds)

    def __call__(self, model: nn.Module, shapes: Shapes, count: int | None = None) -> dict[str, Tensor]:
        """Return the scores of the weights named in `shapes`, each of its weight's shape, float64.

        Args:
            model: dense.
            shapes: by the weight's name.
            count: connections of all these weights that are to be left; None scores the whole network, once.
        """
        positive = _positive(model)
        weights = {name: positive.get_parameter(name).requires_grad_() for name in shapes}
        inputs = self._inputs(positive)
        scores = _scores(positive, weights, inputs)
        silent = [name for name, own in scores.items() if not own.any()]
        if silent:
            raise RegrowValueError(
                f"`init`: SynFlow cannot score {silent}, through which no signal flows: parameters that are zero, such "
                "as the gain of a norm that starts at 0, cut them off.\nLeave them dense with `exclude`, or start "
                "these parameters at other values."
            )
        flat = _flat(scores)
        alive = torch.ones(len(flat), dtype=torch.bool, device=flat.device)
        for left in self._budgets(len(flat), count)[:-1]:  # the last choice is that of whoever asked
            chosen = top(flat, left)
            alive = torch.zeros_like(alive).index_fill_(0, chosen, True)
            _cut(weights, alive)
            flat = _flat(_scores(positive, weights, inputs)).masked_fill_(~alive, -1.0)
        sizes = [weight.numel() for weight in weights.values()]
        return {n: own.view(shapes[n]) for n, own in zip(shapes, flat.split(sizes), strict=True)}

    def _budgets(self, total: int, count: int | None) -> list[int]:
        """Return how many of `total` connections are left after each round."""
        if count is None:
            return [total]
        return [round(total * (count / total) ** (done / self.rounds)) for done in range(1, self.rounds + 1)]

    def _inputs(self, positive: nn.Module) -> Tensor:
        """Return one example of ones; of whole numbers, the example's own, which stand for symbols."""
        device = next(positive.parameters()).device
        if self.example is not None:
            one = self.example[:1].to(device)
            return torch.ones_like(one, dtype=torch.float64) if one.is_floating_point() else one
        first = next(m for m in positive.modules() if next(m.parameters(recurse=False), None) is not None)
        if not isinstance(first, nn.Linear):
            raise RegrowValueError(
                f"`example` is needed: the first layer is {type(first).__name__}, which does not tell the shape of an "
                "input.\nGive one input of the network: regrow.SynFlow(images[:1])."
            )
        return torch.ones(1, first.in_features, dtype=torch.float64, device=device)


def _positive(model: nn.Module) -> nn.Module:
    """Return a copy of `model` in float64 and evaluation mode, in which everything is its magnitude."""
    positive = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        for tensor in positive.state_dict().values():
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                tensor.abs_()
    return positive


def _scores(positive: nn.Module, weights: Mapping[str, Tensor], inputs: Tensor) -> dict[str, Tensor]:
    """Score `weights` of the network as it is now."""
    with torch.enable_grad():
        output = positive(inputs)
        if not isinstance(output, Tensor):
            raise RegrowValueError(
                f"`init`: SynFlow needs a network that returns a tensor, got {said(output)}\n"
                "Wrap it in a module that returns its prediction."
            )
        signal = output.sum()
        found = dict(
            zip(weights, torch.autograd.grad(signal, list(weights.values()), allow_unused=True), strict=True)
        )
    if not signal.isfinite():
        raise RegrowValueError(
            f"`init`: SynFlow's signal is {float(signal.detach())}, beyond what float64 can hold.\n"
            "Take another criterion, such as init='magnitude'."
        )
    require_reached(
        "SynFlow",
        found,
        "which its output does not depend on in evaluation mode.\nLeave them dense with `exclude`.",
    )
    return {name: (weights[name] * g).detach() for name, g in found.items()}


def _flat(scores: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([own.reshape(-1) for own in scores.values()])


def _cut(weights: Mapping[str, Tensor], alive: Tensor) -> None:
    """Set to zero what is not `alive`."""
    parts = alive.split([weight.numel() for weight in weights.values()])
    with torch.no_grad():
        for weight, own in zip(weights.values(), parts, strict=True):
            weight.mul_(own.view(weight.shape))
