"""Which modules take the place of which where a weight is stored compressed, and the way back."""

from __future__ import annotations

from torch import nn

from regrow.nn.conv import SparseConv2d
from regrow.nn.linear import SparseLinear
from regrow.nn.recurrent import SparseGRU, SparseLSTM, SparseRNN
from regrow.nn.recurrent_base import SparseRecurrent, recurrent_names, why_not
from regrow.weights.compressed import CompressedWeight
from regrow.weights.storages import Form


def _why_not(conv: nn.Conv2d) -> str | None:
    if conv.groups > 1:
        return f"a convolution with groups={conv.groups} has no compressed form"
    if conv.padding_mode != "zeros":
        return f"a convolution with padding_mode={conv.padding_mode!r} has no compressed form"
    return None


def recurrent_form(kind: type[SparseRecurrent]) -> Form:
    """Return the form of recurrent layers that are stored as `kind`."""
    return Form(kind, kind.from_dense, lambda own, dense: own.to_dense(dense), recurrent_names, True, why_not)


CompressedWeight.forms = {
    nn.Linear: Form(
        SparseLinear,
        make=lambda linear, at, values: SparseLinear.from_linear(linear, at["weight"], values.get("weight")),
        restore=lambda sparse, dense: sparse.to_linear(dense["weight"]),
    ),
    nn.Conv2d: Form(
        SparseConv2d,
        make=lambda conv, at, values: SparseConv2d.from_conv(conv, at["weight"], values.get("weight")),
        restore=lambda sparse, dense: sparse.to_conv(dense["weight"]),
        why_not=_why_not,
    ),
    nn.GRU: recurrent_form(SparseGRU),
    nn.LSTM: recurrent_form(SparseLSTM),
    nn.RNN: recurrent_form(SparseRNN),
}
