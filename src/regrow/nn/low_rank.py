"""`LowRankLinear`: a linear layer as a product of two narrow ones, and a rest of full rank beside them."""

from __future__ import annotations

from torch import Tensor, nn

from regrow.arguments import require_count, require_flag
from regrow.errors import RegrowValueError


class LowRankLinear(nn.Module):
    """``y = U (V x) + R x + b``: a low-rank core U V, and a rest R that a network of low rank has not.

    The three are linear layers, so that `sparsify` takes their weights as it takes any. `regrow.PartiallyMasked`
    leaves the rest out of the core.

    Args:
        in_features, out_features: sizes of x [..., in_features] and y [..., out_features].
        rank: rows of V and columns of U, fewer than either size.
        bias: whether there is a b [out_features], which belongs to the core.
        rest: whether there is an R; without, the layer is of low rank for good.

    Raises:
        RegrowValueError: sizes that are no counts, or a rank that makes U V no smaller than R.
    """

    def __init__(
        self, in_features: int, out_features: int, rank: int, *, bias: bool = True, rest: bool = True
    ) -> None:
        super().__init__()
        inputs = require_count("in_features", in_features)
        outputs = require_count("out_features", out_features)
        rank = require_count("rank", rank)
        if rank * (inputs + outputs) >= inputs * outputs:
            raise RegrowValueError(
                f"`rank` {rank} makes a core of {rank} x ({inputs} + {outputs}) weights, no fewer than the {inputs} x "
                f"{outputs} of the layer\nGive a rank below {inputs * outputs / (inputs + outputs):.4g}."
            )
        self.reduce = nn.Linear(inputs, rank, bias=False)
        """V [rank, in_features]."""
        self.expand = nn.Linear(rank, outputs, bias=require_flag("bias", bias))
        """U [out_features, rank], and b."""
        self.rest = nn.Linear(inputs, outputs, bias=False) if require_flag("rest", rest) else None
        """R [out_features, in_features], or None."""

    def forward(self, x: Tensor) -> Tensor:
        """Return y [..., out_features] of x [..., in_features]."""
        y: Tensor = self.expand(self.reduce(x))
        return y if self.rest is None else y + self.rest(x)
