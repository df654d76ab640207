"""SRigL: RigL with a constant fan-in, which ablates the neurons that few connections are worth keeping in."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.arguments import require_fraction
from regrow.methods.criteria import gradient_magnitude
from regrow.methods.registry import register
from regrow.methods.rigl import RigL
from regrow.methods.schedules import DropSchedule
from regrow.sparsity.distributions import whole_share
from regrow.weights import SparseWeight
from regrow.weights.gates import Move
from regrow.weights.part import Part
from regrow.weights.reading import as_matrix
from regrow.weights.views import named_records


@register(
    name="srigl",
    paper="arXiv 2305.02299",
    line="RigL with a constant fan-in, ablates neurons",
    drop="magnitude",
    grow="gradient",
)
class SRigL(RigL):
    """Structured RigL (arXiv 2305.02299), on weights made with ``sparsify(..., pattern="fan-in")``.

    An update drops as `RigL` does. Salient are a layer's connections that stay, and as many positions as it drops,
    those of the largest |dL/dw| of all. A neuron (row) with fewer of them than `min_salient` of the fan-in, or with
    none, is ablated: it loses its connections, to the other neurons of the layer, so that the fan-in grows. Each of
    these keeps what stays, the largest |w| where that is more than the fan-in, and grows up to it where |dL/dw| is
    largest in its row. A neuron that was ablated comes back once enough of its positions are salient. The model's last
    weight, in the order of its modules, loses no neuron; no layer has fewer than hold its connections.

    Differs from the published code: counts are exact, so that some neurons have one connection more than others, and a
    connection of value 0 is one like any other.

    Args:
        model: a model that `sparsify` has made sparse with the pattern ``"fan-in"``.
        optimizer: the torch optimizer that trains it.
        min_salient: gamma_sal, a share of the fan-in, in [0, 1].
        grow_columns: None, because each neuron needs all of its positions.
        total_steps, drop_fraction, update_every, stop_fraction, schedule, grow_init, grow_scale, skip_step, seed,
            process_group: as for `Dynamic`.
    """

    pattern: ClassVar[str | None] = "fan-in"

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        min_salient: float = 0.3,
        grow_columns: None = None,
        total_steps: int,
        drop_fraction: float = 0.3,
        update_every: int = 100,
        stop_fraction: float = 0.75,
        schedule: str | DropSchedule = "cosine",
        grow_init: str = "zeros",
        grow_scale: float = 1.0,
        skip_step: bool | None = None,
        seed: int = 0,
        process_group: Any = None,
    ) -> None:
        self.min_salient = require_fraction("min_salient", min_salient, one=True)
        super().__init__(
            model,
            optimizer,
            grow_columns=grow_columns,
            total_steps=total_steps,
            drop_fraction=drop_fraction,
            update_every=update_every,
            stop_fraction=stop_fraction,
            schedule=schedule,
            grow_init=grow_init,
            grow_scale=grow_scale,
            skip_step=skip_step,
            seed=seed,
            process_group=process_group,
        )

    def _aim(self) -> None:
        self._last = list(named_records(self.model).values())[-1].name

    def exchange(self, step: int, weight: SparseWeight, drop: Tensor, count: int) -> Move:
        if not count:
            return super().exchange(step, weight, drop, count)
        rows, columns = as_matrix(weight.shape)
        positions, scores = weight.positions(), self.drop_score(weight)
        row = positions // columns
        stays = torch.ones_like(row, dtype=torch.bool)
        stays[drop] = False
        salient = self._salient(weight, positions[stays], count)
        active = self._active(weight, salient)
        stays &= active[row]
        held = row[stays].bincount(minlength=rows)
        fan_in = _fan_in(weight.nnz, active, held, salient)
        stays[stays.clone()] = _among_best(scores[stays], row[stays], fan_in)
        survivors = positions[stays]
        come = fan_in - (survivors // columns).bincount(minlength=rows)
        grown = weight.best_of_rows(come, survivors, gradient_magnitude, self.average)
        return weight, (~stays).nonzero().view(-1), grown

    def _salient(self, weight: SparseWeight, stay: Tensor, count: int) -> Tensor:
        """Count the salient positions of each row, int64 [rows]; `stay` are those of connections."""
        rows, columns = as_matrix(weight.shape)
        whole = cast(Part, weight).whole  # of all positions, whatever the pattern
        best = whole.best(count, stay[:0], gradient_magnitude, self.average)
        salient: Tensor = torch.cat([stay, best]).unique()
        return (salient // columns).bincount(minlength=rows)

    def _active(self, weight: SparseWeight, salient: Tensor) -> Tensor:
        """Return which rows are not ablated, boolean [rows]."""
        if weight.name == self._last:
            return torch.ones_like(salient, dtype=torch.bool)
        fan_in = weight.nnz // int((weight.fan_in() > 0).sum())
        active = salient >= max(1, whole_share(self.min_salient, fan_in))
        fewest = -(-weight.nnz // as_matrix(weight.shape)[1])
        active[salient.sort(descending=True, stable=True).indices[:fewest]] = True
        return active


def _fan_in(connections: int, active: Tensor, held: Tensor, salient: Tensor) -> Tensor:
    """Share `connections` among the `active` rows, int64 [rows]: one more goes to those that hold the most, and, of
    as many, have the most `salient` positions.
    """
    each, more = divmod(connections, int(active.sum()))
    order = (held * (int(salient.max()) + 1) + salient).masked_fill(~active, -1)
    fan_in = active.long() * each
    fan_in[order.sort(descending=True, stable=True).indices[:more]] += 1
    return fan_in


def _among_best(scores: Tensor, row: Tensor, limit: Tensor) -> Tensor:
    """Return which connections [n] are among the `limit` [rows] of their row with the highest scores."""
    order = scores.argsort(descending=True, stable=True)
    order = order[row[order].argsort(stable=True)]
    counts = row.bincount(minlength=len(limit))
    first = counts.cumsum(0) - counts
    rank = torch.empty_like(row)
    rank[order] = torch.arange(len(row), device=row.device) - first[row[order]]
    return rank < limit[row]
