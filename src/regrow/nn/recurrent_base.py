"""`SparseRecurrent`: what torch's recurrent layers with compressed weights have in common.

The input's product with ``weight_ih`` is that of a linear layer, of all time steps at once; the recurrence itself is
one operator each way (`regrow.ops.recurrent.scan`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from regrow.arguments import (
    require_count,
    require_flag,
    require_fraction,
    require_instance,
    require_mapping,
    require_tensor,
)
from regrow.errors import RegrowRuntimeError, RegrowValueError
from regrow.nn.base import LIMIT, require_positions, require_values
from regrow.nn.owner import CompressedModule
from regrow.nn.steps import Steps
from regrow.nn.tracing import is_traced, leaf
from regrow.ops.linear import linear
from regrow.ops.recurrent import scan
from regrow.weights.forward import ensure_hooks

States = tuple[Tensor, ...]
"""``(h,)``, or ``(h, c)`` of an LSTM."""

ATTRIBUTES = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")
"""Attributes and arguments of torch's layers, which these have too."""


INSTEAD = (
    "Use storage='masked' for it, or an LSTM of that hidden_size without a projection, whose cost follows its "
    "connections."
)


class SparseRecurrent(CompressedModule):
    """A recurrent layer whose weights are stored compressed: what `SparseGRU` and the others have in common."""

    dense_class: ClassVar[Any]
    """The layer of torch that it stands for."""
    state_names: ClassVar[tuple[str, ...]] = ("h_0",)

    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        positions: Mapping[str, Tensor],
        values: Mapping[str, Tensor],
        **options: Any,
    ) -> None:
        template = self.dense_class(
            require_count("input_size", input_size, most=LIMIT),
            require_count("hidden_size", hidden_size, most=LIMIT // 4),
            require_count("num_layers", num_layers),
            bias=require_flag("bias", bias),
            batch_first=require_flag("batch_first", batch_first),
            dropout=require_fraction("dropout", dropout, one=True),
            bidirectional=require_flag("bidirectional", bidirectional),
            device="meta",
            **options,
        )
        _require_values(positions, values)
        self._take_over(template, positions, values)
        like = next(iter(values.values()))
        for name, parameter in list(self._parameters.items()):
            if parameter is not None and parameter.is_meta:
                drawn = torch.empty(parameter.shape, dtype=like.dtype, device=like.device)
                setattr(self, name, nn.Parameter(drawn.uniform_(-self._bound, self._bound)))

    @classmethod
    def from_dense(
        cls, rnn: nn.RNNBase, positions: Mapping[str, Tensor], values: Mapping[str, Tensor] | None = None
    ) -> Self:
        """Keep the connections at `positions` in some weights of a dense layer; its other parameters stay the same.

        Args:
            rnn: the layer of torch.
            positions: by the weight's name: of each ``weight_hh_l0``, and of each ``weight_ih_l0`` that is to be
                compressed too.
            values: those [nnz] of weights whose values are not the layer's own.
        """
        require_instance("rnn", rnn, cls.dense_class, f"a torch.nn.{cls.dense_class.__name__}")
        made = cls.__new__(cls)
        made._take_over(rnn, positions, {} if values is None else values)
        return made

    def _take_over(
        self, dense: nn.RNNBase, positions: Mapping[str, Tensor], values: Mapping[str, Tensor]
    ) -> None:
        """Take over the ways and the parameters of `dense`, the weights at `positions` compressed."""
        super().__init__()
        if reason := why_not(dense):
            raise RegrowValueError(f"{reason}.\n{INSTEAD}")
        for name in (*ATTRIBUTES, "mode"):
            setattr(self, name, getattr(dense, name))
        own = dict(dense.named_parameters())
        _require_weights(own, positions)
        require_mapping("values", values, "a dictionary {weight name: values}")
        for name, parameter in own.items():
            if name not in positions:
                self.register_parameter(name, parameter)
                continue
            of, given = f"[{name!r}]", values.get(name)
            at = require_positions(parameter.numel(), positions[name], of)
            given = parameter.detach().reshape(-1)[at] if given is None else require_values(at, given, of)
            self.own(name, parameter.shape, at, given).requires_grad_(parameter.requires_grad)
        self.train(dense.training)

    def to_dense(self, weights: Mapping[str, Tensor]) -> nn.RNNBase:
        """Return the dense layer of torch with these `weights` by name, and this layer's other parameters."""
        dense = self._template()
        for name, _ in list(dense.named_parameters()):
            own = self._parameters.get(name)
            if name in weights:
                kept = own if own is not None else self.get_parameter(f"{name}_values")
                own = nn.Parameter(weights[name], requires_grad=kept.requires_grad)
            setattr(dense, name, own)
        dense.train(self.training)
        return dense

    def _template(self) -> nn.RNNBase:
        """Return a dense layer of this one's sizes and ways, on the meta device."""
        template: nn.RNNBase = self.dense_class(
            **{name: getattr(self, name) for name in ATTRIBUTES}, **self._options(), device="meta"
        )
        return template

    def _options(self) -> dict[str, Any]:
        """Return what else the constructor of torch's layer takes."""
        return {}

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The parameters of each layer and direction, as torch's layers have them; compressed weights are read-only."""
        return [[getattr(self, name) for name in self._names(which)] for which in self._directions()]

    @property
    def _flat_weights(self) -> list[Tensor]:
        return [tensor for each in self.all_weights for tensor in each]

    @property
    def _flat_weights_names(self) -> list[str]:
        return [name for which in self._directions() for name in self._names(which)]

    def _names(self, which: str) -> list[str]:
        """Return the names of the parameters of one direction, ``_l0_reverse``."""
        kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if self.bias else 2]
        return [kind + which for kind in kinds]

    def flatten_parameters(self) -> None:
        """Do nothing: compressed weights do not lie together. Code for torch's layers calls it."""

    def reset_parameters(self) -> None:
        """Draw the values of the connections, and all else, as torch's layer draws them; the topology stays."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                weight = name.removesuffix("_values")
                count = int(self.index_of(weight).crow[-1]) if weight in self._owned else len(parameter)
                parameter[:count].uniform_(-self._bound, self._bound)

    @property
    def _bound(self) -> float:
        return 1 / math.sqrt(self.hidden_size)

    def _directions(self) -> list[str]:
        """Return how the names of the weights of each layer and direction end: ``_l0``, ``_l0_reverse``."""
        ends = ("", "_reverse") if self.bidirectional else ("",)
        return [f"_l{layer}{end}" for layer in range(self.num_layers) for end in ends]

    def forward(self, input: Any, hx: Any = None) -> Any:
        if is_traced(input):
            return leaf(self, input) if hx is None else leaf(self, input, hx)
        ensure_hooks(self)
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx)
        self._require_input(input, (2, 3))
        batched = input.dim() == 3
        if not batched:
            x = input.unsqueeze(1)
        else:
            x = input.transpose(0, 1) if self.batch_first else input
        steps = Steps(*x.shape[:2])
        if steps.count == 0:
            raise RegrowRuntimeError(f"`input` must have a time step, got shape {tuple(input.shape)}")
        rows = self._cast(x.reshape(-1, self.input_size))
        rows, final = self._layers(rows, self._initial(hx, steps.batch, rows, batched), steps)
        output = rows.reshape(steps.count, steps.batch, rows.shape[-1])
        if not batched:
            return output.squeeze(1), self._packed_up(tuple(state.squeeze(1) for state in final))
        return output.transpose(0, 1) if self.batch_first else output, self._packed_up(final)

    def _forward_packed(self, input: PackedSequence, hx: Any) -> tuple[PackedSequence, Tensor | States]:
        """Do the same for a packed sequence, whose padding takes part in the recurrence alone."""
        data, sizes, there, back = input
        self._require_input(data, (2,))
        steps, rows = Steps.of(input), self._cast(data)
        initial = self._initial(hx, steps.batch, rows, True)
        if there is not None:
            initial = tuple(state.index_select(1, there) for state in initial)
        rows, final = self._layers(rows, initial, steps)
        if back is not None:
            final = tuple(state.index_select(1, back) for state in final)
        return PackedSequence(rows, sizes, there, back), self._packed_up(final)

    def _packed_up(self, states: States) -> Tensor | States:
        return states[0] if len(states) == 1 else states

    def _layers(self, rows: Tensor, initial: States, steps: Steps) -> tuple[Tensor, States]:
        """Run all layers on an input [rows, features]; return their output and final states."""
        finals: list[States] = []
        for layer in range(self.num_layers):
            outputs = []
            for reverse in (False, True)[: 1 + self.bidirectional]:
                which = f"_l{layer}{'_reverse' if reverse else ''}"
                states = tuple(state[len(finals)] for state in initial)
                output, final = self._direction(rows, states, steps, which, reverse)
                outputs.append(output)
                finals.append(final)
            rows = torch.cat(outputs, -1) if self.bidirectional else outputs[0]
            if layer + 1 < self.num_layers and self.dropout:
                rows = F.dropout(rows, self.dropout, self.training)
        return rows, tuple(torch.stack(each) for each in zip(*finals, strict=True))

    def _direction(
        self, rows: Tensor, states: States, steps: Steps, which: str, reverse: bool
    ) -> tuple[Tensor, States]:
        """Run one direction of one layer on an input [rows, features]; `which` ends the names of its parameters."""
        name, own = f"weight_ih{which}", self._parameters
        if name in self._owned:
            operands = self._in_dtype(name, rows, own.get(f"bias_ih{which}"))
            gates = linear(*operands, self.index_of(name), listener=self.listener_of(name))
        else:
            gates = F.linear(rows, getattr(self, name), own.get(f"bias_ih{which}"))
        name = f"weight_hh{which}"
        _, values, bias = self._in_dtype(name, rows, own.get(f"bias_hh{which}"))
        output, final = scan(
            self.mode.lower(),
            steps.spread(gates, reverse),
            states,
            values,
            bias,
            self.index_of(name),
            listener=self.listener_of(name),
            lengths=steps.lengths,
        )
        return steps.collect(output, reverse), final

    def _cast(self, rows: Tensor) -> Tensor:
        """Return the input in the dtype of autocast, if that is on; its own is checked where it meets a weight."""
        kind = rows.device.type
        if torch.is_autocast_enabled(kind) and rows.dtype != torch.float64:
            return rows.to(torch.get_autocast_dtype(kind))
        return rows

    def _require_input(self, input: Tensor, dims: tuple[int, ...]) -> None:
        if input.dim() not in dims or input.shape[-1] != self.input_size:
            size = self.input_size
            shapes = {
                2: f"(T, {size})",
                3: f"(B, T, {size})" if self.batch_first else f"(T, B, {size})",
            }
            allowed = "(rows of a packed sequence) " if dims == (2,) else ""
            raise RegrowRuntimeError(
                f"`input` must be {allowed}{' or '.join(shapes[d] for d in reversed(dims))}, "
                f"got shape {tuple(input.shape)}"
            )

    def _initial(self, hx: Any, batch: int, like: Tensor, batched: bool) -> States:
        """Return the initial states [layers * directions, batch, hidden], checked; zero without `hx`."""
        names, layers = self.state_names, len(self._directions())
        if hx is None:
            return tuple(like.new_zeros(layers, batch, self.hidden_size) for _ in names)
        given = (hx,) if len(names) == 1 else hx
        if not isinstance(given, tuple | list) or len(given) != len(names) or not _are_tensors(given):
            what = f"the tensor {names[0]}" if len(names) == 1 else f"a tuple ({', '.join(names)})"
            raise RegrowRuntimeError(f"`hx` must be {what}, got {type(hx).__name__}")
        shape = (layers, batch, self.hidden_size) if batched else (layers, self.hidden_size)
        autocast = torch.is_autocast_enabled(like.device.type)
        for name, state in zip(names, given, strict=True):
            if tuple(state.shape) != shape:
                raise RegrowRuntimeError(
                    f"`hx` must hold {name} of shape {shape} for this input, (layers * directions, "
                    f"{'batch, ' if batched else ''}hidden_size), got {tuple(state.shape)}"
                )
            if state.device != like.device or (state.dtype != like.dtype and not autocast):
                raise RegrowRuntimeError(
                    f"`hx` must hold {name} of {like.dtype} on {like.device}, as `input`, got {state.dtype} on "
                    f"{state.device}"
                )
        states = tuple(state.to(like.dtype) for state in given)
        return states if batched else tuple(state.unsqueeze(1) for state in states)

    def extra_repr(self) -> str:
        counts = [self.index_of(name).crow for name in self._owned]
        connections = "?" if any(crow.is_meta for crow in counts) else sum(int(crow[-1]) for crow in counts)
        usual = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False}
        changed = [f"{name}={getattr(self, name)}" for name, at in usual.items() if getattr(self, name) != at]
        return ", ".join([f"{self.input_size}, {self.hidden_size}", *changed, f"connections={connections}"])


def why_not(rnn: nn.RNNBase) -> str | None:
    """Say why a layer of torch has no compressed form, or return None where it has one."""
    if rnn.proj_size:
        return f"an LSTM with projections (proj_size={rnn.proj_size}) has no compressed form"
    return None


def recurrent_names(rnn: nn.RNNBase) -> tuple[str, ...]:
    """Return the names of the weights from a state to the next, which are compressed if anything is."""
    return tuple(name for name, _ in rnn.named_parameters(recurse=False) if name.startswith("weight_hh"))


def _require_values(positions: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Check that each of the positions has values, and that these are alike."""
    require_mapping("positions", positions, "a dictionary {weight name: positions}")
    require_mapping("values", values, "a dictionary {weight name: values}")
    if positions.keys() != values.keys():
        raise RegrowValueError(
            f"`values` must have the keys of `positions`, {', '.join(positions)}, got {', '.join(values)}"
        )
    given = [require_tensor(f"values[{name!r}]", each) for name, each in values.items()]
    kinds = {(each.dtype, each.device) for each in given}
    if len(kinds) > 1:
        raise RegrowValueError(f"`values` must be alike in dtype and device, got {sorted(map(str, kinds))}")


def _require_weights(own: Mapping[str, Tensor], positions: Mapping[str, Tensor]) -> None:
    """Check that `positions` names weights of a layer with parameters `own`, all recurrent ones among them."""
    require_mapping("positions", positions, "a dictionary {weight name: positions}")
    weights = [name for name in own if name.startswith("weight_")]
    missing = [name for name in weights if name.startswith("weight_hh") and name not in positions]
    strange = [name for name in positions if name not in weights]
    if missing or strange:
        raise RegrowValueError(
            f"`positions` must be those of {', '.join(weights)}, where a weight_ih may be left out and stays dense, "
            f"got {', '.join(map(str, positions)) or 'none'}"
        )


def _are_tensors(given: Any) -> bool:
    return all(isinstance(each, Tensor) for each in given)
