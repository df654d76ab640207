"""`EarlyTicket`: finds out when the mask that pruning would give has settled, long before training ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regrow._formats import TICKETS, require_format
from regrow.arguments import require_count, require_fraction, require_mapping, require_model
from regrow.errors import RegrowValueError
from regrow.sparsity import distributions
from regrow.sparsity.initial import Criterion
from regrow.sparsity.selecting import Selector
from regrow.tickets.prune import Distribution, budget_of, connections, remaining, shapes_of
from regrow.tickets.scores import require_score


class EarlyTicket:
    """The last few masks that pruning would have given, as Robust Bird finds its early ticket (arXiv 2202.09844).

        early = regrow.tickets.EarlyTicket(model, sparsity=0.8)
        for epoch in range(100):
            ...                                 # an epoch of ordinary training
            if early.settled():
                break
        regrow.sparsify(model, init=early.masks)

    The mask has settled when it differs from each of the `masks - 1` before it in at most the share `distance` of all
    positions. Differs from the published code in that all layers that would be sparse are looked at, where the code
    looks at convolutions; `include` says otherwise.

    Args:
        model: the network in training, dense or sparse.
        sparsity: that the mask has, in [0, 1).
        distance: the share of positions in which two masks may differ, in [0, 1].
        masks: how many are compared, the newest among them.
        score, distribution, include, exclude: as for `regrow.tickets.pruned`.

    Raises:
        RegrowValueError: an argument that is not allowed.
    """

    def __init__(
        self,
        model: nn.Module,
        sparsity: float,
        *,
        distance: float = 0.08,
        masks: int = 5,
        score: str | Criterion = "magnitude",
        distribution: Distribution = distributions.GLOBAL,
        include: Selector | None = None,
        exclude: Selector | None = None,
    ) -> None:
        self.model = require_model("model", model)
        self.sparsity = require_fraction("sparsity", sparsity)
        self.distance = require_fraction("distance", distance, one=True)
        self.length = require_count("masks", masks, least=2)
        self.score = require_score(score)
        self.distribution, self.include, self.exclude = distribution, include, exclude
        self._shapes = shapes_of(model, connections(model, distribution, include, exclude))
        budget_of(self._shapes, sparsity, distribution)
        self._masks: list[Tensor] = []  # the oldest first, of all weights one after the other

    def settled(self) -> bool:
        """Take the mask that the network would be pruned to now; return whether it is as the last ones were."""
        kept = remaining(
            self.model,
            self.sparsity,
            score=self.score,
            distribution=self.distribution,
            include=self.include,
            exclude=self.exclude,
        )
        parts = []
        for name, own in kept.items():
            mask = torch.zeros(self._shapes[name], dtype=torch.bool, device=own.device).view(-1)
            parts.append(mask.index_fill_(0, own, True).cpu())
        self._masks = [*self._masks, torch.cat(parts)][-self.length :]
        return len(self._masks) == self.length and max(self.distances) <= self.distance

    @property
    def distances(self) -> list[float]:
        """The share of positions in which the newest mask differs from each one before it, the oldest first."""
        newest = self._masks[-1:]
        return [float((one != newest[0]).double().mean()) for one in self._masks[:-1]]

    @property
    def masks(self) -> dict[str, Tensor]:
        """The newest mask, by the weight's name: boolean tensors of their shapes; none before the first is taken."""
        if not self._masks:
            return {}
        sizes = [int(torch.Size(shape).numel()) for shape in self._shapes.values()]
        device = next(self.model.parameters()).device
        parts = self._masks[-1].to(device).split(sizes)
        return {n: own.view(self._shapes[n]) for n, own in zip(self._shapes, parts, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """Return the masks so far, for `torch.load(weights_only=True)`."""
        return {"format": TICKETS, "masks": list(self._masks)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        Raises:
            RegrowValueError: a state of another network.
        """
        require_mapping("state", state, "what state_dict returned", keys=["masks"])
        require_format("`state`", state, "format", TICKETS)
        size = sum(int(torch.Size(shape).numel()) for shape in self._shapes.values())
        wrong = [m for m in state["masks"] if tuple(m.shape) != (size,) or m.dtype != torch.bool]
        if wrong:
            raise RegrowValueError(
                f"`state` holds masks of {wrong[0].numel():,} positions, and this network has {size:,}"
            )
        self._masks = [mask.cpu() for mask in state["masks"]][-self.length :]
