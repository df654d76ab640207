"""`SparseLinear`: torch's Linear with a compressed weight."""

from __future__ import annotations

from torch import Tensor, nn

from regrow.arguments import require_choice, require_count, require_instance, require_tensor
from regrow.errors import RegrowRuntimeError
from regrow.nn.base import SparseModule
from regrow.nn.tracing import is_traced, leaf
from regrow.ops.linear import linear
from regrow.ops.reference import ACTIVATIONS


class SparseLinear(SparseModule):
    """``y = activation(x W^T + b)`` with W in compressed storage: time and memory follow the connections.

    Args:
        in_features: size of the last dimension of the input.
        out_features: size of the last dimension of the output.
        bias: whether there is a bias.
        activation: what is applied to the output on its way to memory: ``"relu"``, ``"gelu"`` (exact, as torch's
            default), ``"silu"`` or None.
        positions: flat positions of the connections in the dense weight [out_features, in_features],
            ascending, int64 [nnz].
        values: their values [nnz].

    Shape:
        Input (..., in_features), output (..., out_features). The output is laid out with the batch innermost.

    Raises:
        RegrowValueError: rows, columns or connections at or beyond 2^31; positions that do not ascend or fit.
        RegrowRuntimeError: an input whose last dimension, or whose dtype, does not fit.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        positions: Tensor,
        values: Tensor,
        activation: str | None = None,
    ) -> None:
        in_features = require_count("in_features", in_features)
        out_features = require_count("out_features", out_features)
        sizes = {"in_features": in_features, "out_features": out_features}
        super().__init__((out_features, in_features), sizes, bias, positions, values)
        if activation is not None:
            require_choice("activation", activation, ACTIVATIONS, others=" or None")
        self.activation = activation
        self.in_features = in_features
        self.out_features = out_features

    @classmethod
    def from_linear(cls, linear: nn.Linear, positions: Tensor, values: Tensor | None = None) -> SparseLinear:
        """Keep the connections at `positions` of a dense layer, with the layer's own bias parameter.

        Their `values` [nnz] are the layer's, unless they are given.
        """
        require_instance("linear", linear, nn.Linear, "a torch.nn.Linear")
        require_tensor("positions", positions, floating=False)
        if values is None:
            values = linear.weight.detach().reshape(-1)[positions]
        sparse = cls(linear.in_features, linear.out_features, bias=False, positions=positions, values=values)
        sparse._take_from(linear)
        return sparse

    def to_linear(self, dense: Tensor) -> nn.Linear:
        """Return the dense layer with weight `dense` [out_features, in_features] and this layer's bias parameter."""
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        self._give_to(linear, dense)
        return linear

    def forward(self, input: Tensor) -> Tensor:
        if is_traced(input):
            return leaf(self, input)
        if input.shape[-1] != self.in_features:
            raise RegrowRuntimeError(
                f"`input` must have {self.in_features} as its last dimension, got shape {tuple(input.shape)}"
            )
        input, values, bias = self.operands("weight", input, self.bias)
        return linear(input, values, bias, self._index, self.activation or "none", self._listener)

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None, *, live: bool) -> Tensor:
        """Apply `torch.nn.functional.linear` for somebody who reads `weight`, a view; `live`: with its gradient."""
        input, values, _ = self.operands("weight", input)
        bias = None if bias is None else bias.to(values.dtype)
        return linear(input, values if live else values.detach(), bias, self._index, listener=self._listener)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, {self._connections()}"
            + (f", activation={self.activation}" if self.activation else "")
        )
