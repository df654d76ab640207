"""`WeightDropLSTM` in compressed storage: a connection that is dropped for a batch stays a connection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regrow.models.dropouts import WeightDropLSTM
from regrow.nn.forms import recurrent_form
from regrow.nn.recurrent import SparseLSTM
from regrow.weights.compressed import CompressedWeight


class SparseWeightDropLSTM(SparseLSTM):
    """A `WeightDropLSTM` whose weights are stored compressed; `regrow.sparsify` makes it of one."""

    weight_drop: float = 0.0

    @classmethod
    def from_dense(
        cls, rnn: Any, positions: Mapping[str, Tensor], values: Mapping[str, Tensor] | None = None
    ) -> Self:
        """Keep the connections at `positions`, as `SparseLSTM` does, and the probability."""
        made = super().from_dense(rnn, positions, values)
        made.weight_drop = rnn.weight_drop
        return made

    def _template(self) -> nn.RNNBase:
        with torch.device("meta"):
            return WeightDropLSTM(self.input_size, self.hidden_size, self.weight_drop)

    def _in_dtype(
        self, name: str, input: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        input, values, bias = super()._in_dtype(name, input, bias)
        if name.startswith("weight_hh"):
            values = F.dropout(values, self.weight_drop, self.training)
        return input, values, bias

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, weight_drop={self.weight_drop}"


assert CompressedWeight.forms is not None
CompressedWeight.forms[WeightDropLSTM] = recurrent_form(SparseWeightDropLSTM)
