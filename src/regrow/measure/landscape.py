"""Paths between two solutions and the loss along them: the straight line, and Bezier curves that can be trained.

    curve = Curve(pruned, static, degree=2)            # of the space that both topologies span
    optimizer = torch.optim.SGD(curve.parameters(), lr=0.05, momentum=0.9)
    for x, y in loader:                                # an ordinary loop; each batch sees another point of the curve
        optimizer.zero_grad()
        loss_fn(curve(x), y).backward()
        optimizer.step()
    along = profile(curve, loss_fn, loader, points=21)

After Garipov et al. (arXiv 1802.10026); between sparse solutions, RigL (arXiv 1911.11134), section 4.4 and figure 6.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from regrow.arguments import (
    number,
    require_choice,
    require_count,
    require_function,
    require_instance,
    require_iterable,
    require_model,
    require_sequence,
    require_tensor,
    said,
)
from regrow.errors import RegrowValueError
from regrow.sparsity.core import densify
from regrow.weights import views

SPACES = ("union", "dense")
Loss = Callable[[Tensor, Tensor], Tensor]
Batches = Iterable[tuple[Tensor, Tensor]]


def bezier(points: Sequence[Tensor], t: float | Tensor) -> Tensor:
    """Return the point at `t` of the Bezier curve with these control points: ``sum_k C(n, k) (1-t)^(n-k) t^k P_k``.

    Two points are the straight line, three ``(1-t)^2 A + 2t(1-t) C + t^2 B``.

    Args:
        points: n + 1 tensors of one shape, the ends first and last.
        t: in [0, 1] between the ends.

    Returns:
        A tensor of that shape.
    """
    points = [require_tensor("points", point) for point in require_iterable("points", points, "tensors")]
    if not points or any(point.shape != points[0].shape for point in points):
        raise RegrowValueError(
            f"`points` must be tensors of one shape, got shapes {[tuple(point.shape) for point in points]}"
        )
    if not isinstance(t, Tensor):
        t = require_place(t)
    degree = len(points) - 1
    terms = [math.comb(degree, k) * (1 - t) ** (degree - k) * t**k * point for k, point in enumerate(points)]
    return torch.stack(terms).sum(0)


def require_place(t: object) -> float:
    """Return `t` as a float; a curve goes on beyond its ends.

    Raises:
        RegrowValueError: naming the argument, what was given and what is allowed.
    """
    place = number(t)
    if place is None:
        raise RegrowValueError(f"`t` must be a number, got {said(t)}")
    return float(place)


class Curve(nn.Module):
    """A Bezier curve through parameter space from one model to another; its inner control points are trained.

    Weights absent at both ends stay absent along the whole curve in the space ``"union"``, the span of both topologies;
    in ``"dense"`` the inner points may use every position. Control points start on the straight line.

    Args:
        start: model at t = 0, sparse in either storage, or dense.
        end: model at t = 1, of the same architecture.
        degree: 1 is the straight line, 2 a quadratic curve with one inner point, 3 a cubic one with two.
        space: where inner points may lie.

    Raises:
        RegrowValueError: models that differ in architecture, or an unknown space.
    """

    def __init__(self, start: nn.Module, end: nn.Module, *, degree: int = 1, space: str = "union") -> None:
        super().__init__()
        for name, model in (("start", start), ("end", end)):
            require_model(name, model)
        if (degree := require_count("degree", degree)) > 3:
            raise RegrowValueError(f"`degree` must be 1, 2 or 3, got {degree}")
        require_choice("space", space, SPACES)
        ends = [dict(_plain(model).named_parameters()) for model in (start, end)]
        shapes = [{name: tuple(parameter.shape) for name, parameter in one.items()} for one in ends]
        if shapes[0] != shapes[1]:
            names = [n for n in shapes[0].keys() | shapes[1].keys() if shapes[0].get(n) != shapes[1].get(n)]
            name = min(names)
            raise RegrowValueError(
                f"`end` must be of the architecture of `start`, but `{name}` is "
                f"{shapes[0].get(name, 'absent')} at the start and {shapes[1].get(name, 'absent')} at the end"
            )
        self.degree, self.names = degree, tuple(shapes[0])
        self._template = (_plain(start),)  # in a tuple: its parameters are not the curve's
        unions = _union(start, end)
        for place, name in enumerate(self.names):
            first, last = (one[name].detach().clone() for one in ends)
            self.register_buffer(f"start{place}", first)
            self.register_buffer(f"end{place}", last)
            for k in range(1, degree):
                inner = nn.Parameter(first + (last - first) * (k / degree))
                if space == "union" and name in unions:
                    inner.register_hook(_restrict(unions[name]))
                self.register_parameter(f"inner{k}_{place}", inner)

    def points(self, place: int) -> list[Tensor]:
        """Return the control points of the parameter ``names[place]``, both ends included."""
        names = [f"start{place}", *(f"inner{k}_{place}" for k in range(1, self.degree)), f"end{place}"]
        return [getattr(self, name) for name in names]

    def at(self, t: float) -> dict[str, Tensor]:
        """Return the parameters at `t`, by name; differentiable in the inner points."""
        return {name: bezier(self.points(place), t) for place, name in enumerate(self.names)}

    def forward(self, *inputs: Any, t: float | None = None) -> Any:
        """Return the model's output at `t`; by default at a random point of the curve, drawn again each time."""
        template = self._template[0].train(self.training)
        if t is None:
            t = float(torch.rand((), device="cpu"))
        return torch.func.functional_call(template, self.at(t), inputs)

    def model(self, t: float) -> nn.Module:
        """Return a plain dense module with the parameters at `t`; norms have the statistics of `start`, see
        `profile`.
        """
        model = copy.deepcopy(self._template[0])
        with torch.no_grad():
            values = self.at(t)
            for name, parameter in model.named_parameters():
                parameter.copy_(values[name])
        return model


def profile(
    curve: Curve,
    loss_fn: Loss,
    batches: Batches,
    *,
    points: int = 21,
    norm_batches: Iterable[Any] | None = None,
) -> list[tuple[float, float]]:
    """Return the mean loss at evenly spread points of `curve`, from t = 0 to 1.

    Args:
        curve: the path.
        loss_fn: ``(outputs, targets) -> mean loss`` of a batch.
        batches: ``(inputs, targets)``, iterated once for each point.
        points: how many, both ends included.
        norm_batches: re-estimate the statistics of batch norms on these at each point (torch's `update_bn`); between
            two solutions they are those of neither.

    Returns:
        ``[(t, loss), ...]``.
    """
    require_instance("curve", curve, Curve)
    require_function("loss_fn", loss_fn, "outputs", "targets")
    require_iterable("batches", batches, "batches (inputs, targets)")
    if norm_batches is not None:
        require_iterable("norm_batches", norm_batches, "batches of inputs")
    if (points := require_count("points", points)) < 2:
        raise RegrowValueError(f"`points` must be at least 2, for both ends, got {points}")
    result = []
    for place in range(points):
        t = place / (points - 1)
        model = curve.model(t)
        if norm_batches is not None:
            update_bn(norm_batches, model)
        model.eval()
        total, count = 0.0, 0
        with torch.inference_mode():
            for inputs, targets in batches:
                total += float(loss_fn(model(inputs), targets)) * len(targets)
                count += len(targets)
        if not count:
            raise RegrowValueError(
                "`batches` holds nothing at this point of the curve\nGive a list, or a DataLoader."
            )
        result.append((t, total / count))
    return result


def barrier(losses: Sequence[tuple[float, float]]) -> float:
    """Return how far the loss along a path rises above the higher of its ends; 0 on a path that never does."""
    pairs = require_iterable("losses", losses, "pairs (t, loss)")
    found = [
        number(require_sequence("losses", pair, "pairs (t, loss)", count=2)[1], nan=True) for pair in pairs
    ]
    values = [value for value in found if value is not None]
    if not values or len(values) < len(found):
        raise RegrowValueError(f"`losses` must be at least one pair (t, loss), got {said(losses)}")
    return max(values) - max(values[0], values[-1])


def _plain(model: nn.Module) -> nn.Module:
    """Return a dense copy of `model`, with the same parameter names."""
    return densify(copy.deepcopy(model))


def _union(*models: nn.Module) -> dict[str, Tensor]:
    """Return the positions that are a connection in any of `models`, by parameter name; dense parameters are left
    out.
    """
    found: dict[str, list[Tensor]] = {}
    for model in models:
        for name, module in model.named_modules():
            for weight in views(module):
                key = f"{name}.{weight.parameter_name}" if name else weight.parameter_name
                found.setdefault(key, []).append(weight.mask())
    return {
        name: torch.stack(masks).any(0) for name, masks in found.items() if len(masks) == len(models)
    }  # a weight that is dense at one end spans all positions


def _restrict(mask: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda gradient: torch.where(
        mask, gradient, torch.zeros((), dtype=gradient.dtype, device=gradient.device)
    )
