"""GradInit: scale each initial weight so that the first step of the optimizer lowers the loss most."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from regrow._torch import BatchNorm, tree_map
from regrow.arguments import (
    require_choice,
    require_count,
    require_example,
    require_flag,
    require_function,
    require_iterable,
    require_model,
    require_positive,
    require_sequence,
)
from regrow.errors import RegrowRuntimeError, RegrowValueError
from regrow.sparsity.core import densify, masks
from regrow.weights.views import named_weights, refuse_driven, unwrapped

WHEN = ("before", "after")
TARGETS = ("sgd", "adam")
BETAS, EPS = (0.9, 0.999), 1e-8
"""Of the Adam that moves the scales: torch's defaults."""
STEP, CONSTRAINT = 12, 9
"""Forward passes that an iteration costs. A backward pass costs twice what it goes back through: f + 2f for the
gradients, 6f to go back through both; before that, a step of the optimizer has its loss, f, and goes back, 2f."""

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Rescaled:
    """What GradInit has done."""

    scales: dict[str, float]
    """By parameter: what it was multiplied by."""
    iterations: int
    constrained: int
    """Iterations in which the gradient was too large, and was made smaller instead."""

    @property
    def passes(self) -> int:
        """What it has cost, in forward passes of a batch."""
        return STEP * (self.iterations - self.constrained) + CONSTRAINT * self.constrained


class GradInit:
    """Layer-wise rescaled initialisation, ToST's (arXiv 2206.12755): GradInit, one scale for each parameter tensor.

    Each iteration takes the gradient g of a batch. If its norm is above `gamma`, the scales go down the norm; else they
    go down ``loss(w - eta g) / eta`` of a batch that has a half of the first and a half of its own. A scale is of the
    whole tensor, so that entries keep their ratios and connections stay what they are. Parameters that are all zero,
    such as fresh biases, have none. Batch norms go by the batch and note nothing; all else is in evaluation mode.

    Only connections count in a sparse network: the scales before and after masking are others. Scales are found on a
    dense copy, and the model is touched once, at the end.

    Args:
        iterations: ToST's README has 180.
        eta: rate of the step that is looked ahead.
        gamma: largest norm of the gradient.
        lr: rate of the scales.
        min_scale: smallest scale of a weight; a bias may go to 0.
        clip: largest gradient of a scale.
        normalize: divide g by its norm in the step, of ``sgd``.
        target: the optimizer that is to train: ``"sgd"``, with the L2 norm, or ``"adam"``, which steps by the sign of
            g, with the L1 norm.
        when: in recipes, whether it comes ``"before"`` the network is made sparse, or ``"after"``; ToST's code has
            both.

    Raises:
        RegrowValueError: an argument that is not allowed.
    """

    def __init__(
        self,
        *,
        iterations: int = 180,
        eta: float = 0.1,
        gamma: float = 1.0,
        lr: float = 0.01,
        min_scale: float = 0.01,
        clip: float = 1.0,
        normalize: bool = True,
        target: str = "sgd",
        when: str = "before",
    ) -> None:
        self.iterations = require_count("iterations", iterations)
        self.eta, self.gamma = require_positive("eta", eta), require_positive("gamma", gamma)
        self.lr, self.clip = require_positive("lr", lr), require_positive("clip", clip)
        self.min_scale = require_positive("min_scale", min_scale, zero=True)
        self.normalize = require_flag("normalize", normalize)
        self.target = require_choice("target", target, TARGETS)
        self.when = require_choice("when", when, WHEN)

    def __call__(
        self, model: nn.Module, loss_fn: Callable[[Any, Any], Tensor], batches: Iterable[Any]
    ) -> Rescaled:
        """Rescale the parameters of `model` in place, before any training.

        Args:
            model: dense or sparse, in any storage; no method drives it yet.
            loss_fn: ``(output, target) -> loss``.
            batches: pairs (input, target) of training data, two examples or more each; gone through again where they
                are too few. An input is what the model takes: a tensor, or a list or dictionary with one.

        Returns:
            The scales, and what finding them has cost.

        Raises:
            RegrowValueError: an argument that is not allowed, or batches of one example.
            RegrowRuntimeError: a method is attached, a loss that is not finite, or operations without a second
                derivative; the model is as it was.
        """
        model = unwrapped(require_model("model", model))
        require_function("loss_fn", loss_fn, "output", "target")
        stream = _endless(require_iterable("batches", batches, "pairs (input, target) of training data"))
        refuse_driven(model)
        search = _Search(self, model, loss_fn)
        constrained = sum(search.iterate(stream, number) for number in range(self.iterations))
        scales = dict(zip(search.names, search.scales.tolist(), strict=True))
        _multiply(model, scales)
        return Rescaled(scales, self.iterations, constrained)


class _Search:
    """The scales of one network, and how they move."""

    def __init__(self, how: GradInit, model: nn.Module, loss_fn: Callable[[Any, Any], Tensor]) -> None:
        self.how, self.loss_fn = how, loss_fn
        self.masks = masks(model)
        self.network = densify(copy.deepcopy(model)).eval()
        for module in self.network.modules():
            if isinstance(module, BatchNorm):
                module.train()  # of the copy, whose running statistics nobody reads
        self.base = {n: p.detach() for n, p in self.network.named_parameters() if p.requires_grad}
        self.names = [n for n, p in self.base.items() if p.is_floating_point() and bool(p.any())]
        if not self.names:
            raise RegrowValueError("`model` has no parameter to rescale: all are zero, or frozen")
        like = self.base[self.names[0]]
        kind: dict[str, Any] = {
            "dtype": torch.promote_types(like.dtype, torch.float32),
            "device": like.device,
        }
        floors = [0.0 if n.rpartition(".")[2].startswith("bias") else how.min_scale for n in self.names]
        self.floors = torch.tensor(floors, **kind)
        self.scales = torch.ones(len(self.names), **kind).requires_grad_()
        self.first = {True: torch.zeros(len(self.names), **kind), False: torch.zeros(len(self.names), **kind)}
        self.second = torch.zeros(len(self.names), **kind)
        self.steps = {True: 0, False: 0}

    def iterate(self, stream: Iterator[Any], number: int) -> bool:
        """Move the scales once. Returns whether the gradient was above `gamma`."""
        batch = next(stream)
        weights = self.weights()
        with _math_attention():
            gradients = self.gradients(self.loss(weights, batch), weights)
            norm = self.norm(gradients)
            constrained = float(norm.detach()) > self.how.gamma
            if constrained:
                aim = norm
            else:
                ahead = self.ahead(weights, gradients, norm)
                aim = self.loss(ahead, _mixed(batch, next(stream))) / self.how.eta
            if not bool(aim.isfinite()):
                raise RegrowRuntimeError(
                    f"GradInit: `loss_fn` or its gradient is not finite at iteration {number}; the model is as it was\n"
                    "Look at the data, or give a smaller `eta` or `lr`."
                )
            self.move(self.derivative(aim), constrained)
        return constrained

    def weights(self) -> dict[str, Tensor]:
        """Return the parameters as they are scaled now; those without a scale too, which the step moves."""
        found = {n: p.clone().requires_grad_() for n, p in self.base.items()}
        return found | {n: self.base[n] * self.scales[i] for i, n in enumerate(self.names)}

    def loss(self, weights: Weights, batch: Any) -> Tensor:
        inputs, targets = require_sequence("batches", batch, "pairs (input, target)", count=2)
        args, kwargs, count = require_example("batches", inputs)
        if count < 2:
            raise RegrowValueError(f"`batches` must hold two examples or more each, got {count}")
        return self.loss_fn(functional_call(self.network, dict(weights), args, kwargs), targets)

    def gradients(self, loss: Tensor, weights: Weights) -> dict[str, Tensor]:
        """Return the gradients of the parameters that the loss reaches, those of connections alone."""
        found: tuple[Tensor | None, ...] = torch.autograd.grad(
            loss, list(weights.values()), create_graph=True, allow_unused=True
        )
        gradients = {n: g for n, g in zip(weights, found, strict=True) if g is not None}
        return {n: g * self.masks[n].to(g.device) if n in self.masks else g for n, g in gradients.items()}

    def norm(self, gradients: Weights) -> Tensor:
        """Return the L2 norm over all gradients for SGD, the sum of their magnitudes for Adam."""
        if self.how.target == "adam":
            return torch.stack([g.abs().sum() for g in gradients.values()]).sum()
        return torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt()

    def ahead(self, weights: Weights, gradients: Weights, norm: Tensor) -> dict[str, Tensor]:
        """Return the weights after a step of the target optimizer."""
        eta = self.how.eta
        if self.how.target == "adam":
            steps = {n: eta * g.sign() for n, g in gradients.items()}
        else:
            steps = {n: eta * (g / norm if self.how.normalize else g) for n, g in gradients.items()}
        return {n: w - steps[n] if n in steps else w for n, w in weights.items()}

    def derivative(self, aim: Tensor) -> Tensor:
        """Return the gradient of the scales: for each tensor, the sum of gradient times initial weight."""
        if not aim.requires_grad:  # the gradient of a loss that is linear in the weights
            return torch.zeros_like(self.scales)
        try:
            (found,) = torch.autograd.grad(aim, [self.scales])
        except RuntimeError as error:
            reason = (str(error).splitlines() or [""])[0]
            raise RegrowRuntimeError(
                f"GradInit: `model` cannot be differentiated twice: {reason}\n"
                "Its fused operations (cuDNN's recurrent layers, attention) need a form that can."
            ) from error
        return found.clamp(-self.how.clip, self.how.clip)

    @torch.no_grad()
    def move(self, gradient: Tensor, constrained: bool) -> None:
        """Take a step of Adam: each aim has a first moment of its own, both share the second."""
        first, (one, two) = self.first[constrained], BETAS
        self.steps[constrained] += 1
        first.mul_(one).add_(gradient, alpha=1 - one)
        self.second.mul_(two).addcmul_(gradient, gradient, value=1 - two)
        mean = first / (1 - one ** self.steps[constrained])
        spread = (self.second / (1 - two ** sum(self.steps.values()))).sqrt()
        self.scales -= self.how.lr * mean / (spread + EPS)
        self.scales.copy_(torch.maximum(self.scales, self.floors))


def _endless(batches: Iterable[Any]) -> Iterator[Any]:
    """Yield batches, from the beginning again after the last.

    Raises:
        RegrowValueError: there are none, or none left of what can be gone through once.
    """
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise RegrowValueError(
                "`batches` has none, or none left\nGive a list or a DataLoader, which can be gone through again."
            )


def _mixed(one: Any, other: Any) -> Any:
    """Return a batch of the second half of `one` and the first half of `other`."""
    return tree_map(_halves, tuple(one), tuple(other))


def _halves(one: Any, other: Any) -> Any:
    if not isinstance(one, Tensor):
        return one
    return torch.cat([one[len(one) // 2 :], other[: len(other) // 2]])


def _math_attention() -> Any:
    """Let attention be computed by operations that can be differentiated twice."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend.MATH)


@torch.no_grad()
def _multiply(model: nn.Module, scales: Mapping[str, float]) -> None:
    """Multiply parameters, by the names that they have in the dense network."""
    sparse = dict(named_weights(model))
    for name, scale in scales.items():
        if name in sparse:
            weight = sparse[name]
            weight.fill(weight.positions(), weight.take(weight.parameter) * scale)
        else:
            model.get_parameter(name).mul_(scale)
