"""`SparseGRU`, `SparseLSTM` and `SparseRNN`: torch's recurrent layers with compressed weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from regrow.arguments import require_choice, require_count
from regrow.errors import RegrowValueError
from regrow.nn.recurrent_base import INSTEAD, SparseRecurrent


class SparseGRU(SparseRecurrent):
    """`torch.nn.GRU` with weights in compressed storage: time and memory follow the connections.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional: as for `torch.nn.GRU`.
        positions: flat positions of the connections by the weight's name, ``{"weight_ih_l0": ..., "weight_hh_l0":
            ...}``, ascending, int64 [nnz]; each weight_hh, and those weight_ih that are not to stay dense.
        values: their values [nnz]. All else is drawn as torch draws it.

    Shape:
        Inputs, states and outputs are those of `torch.nn.GRU`, packed sequences and inputs without a batch included.
        The output is laid out with the batch innermost.

    Raises:
        RegrowValueError: sizes, positions or arguments that are not allowed.
        RegrowRuntimeError: an input or a state whose shape or dtype does not fit.
    """

    dense_class = nn.GRU

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        positions: Mapping[str, Tensor],
        values: Mapping[str, Tensor],
    ) -> None:
        sizes = (input_size, hidden_size, num_layers)
        super().__init__(*sizes, bias, batch_first, dropout, bidirectional, positions, values)


class SparseLSTM(SparseRecurrent):
    """`torch.nn.LSTM` with weights in compressed storage; `proj_size` is 0, for all else see `SparseGRU`."""

    dense_class = nn.LSTM
    state_names = ("h_0", "c_0")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        positions: Mapping[str, Tensor],
        values: Mapping[str, Tensor],
    ) -> None:
        if require_count("proj_size", proj_size, least=0):
            raise RegrowValueError(f"`proj_size` must be 0, got {proj_size}.\n{INSTEAD}")
        sizes = (input_size, hidden_size, num_layers)
        super().__init__(*sizes, bias, batch_first, dropout, bidirectional, positions, values)


class SparseRNN(SparseRecurrent):
    """`torch.nn.RNN` with weights in compressed storage; `nonlinearity` as there, for all else see `SparseGRU`."""

    dense_class = nn.RNN

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        positions: Mapping[str, Tensor],
        values: Mapping[str, Tensor],
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            positions,
            values,
            nonlinearity=require_choice("nonlinearity", nonlinearity, ("tanh", "relu")),
        )

    @property
    def nonlinearity(self) -> str:
        """``tanh`` or ``relu``."""
        mode: str = self.mode
        return mode.removeprefix("RNN_").lower()

    def _options(self) -> dict[str, Any]:
        return {"nonlinearity": self.nonlinearity}
