"""`costs(model, example)`: layer by layer, what a network costs dense and as sparse as it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from regrow._text import KEEP, either, table, wrapped
from regrow.accounting.trace import Work, trace
from regrow.accounting.training import ticket_multiples, training_multiple
from regrow.accounting.units import CLEAN, CONVENTIONS, PUBLISHED, Unit, stored_megabytes, units
from regrow.arguments import require_choice, require_count, require_model, require_positive
from regrow.errors import RegrowValueError
from regrow.measure.example import Example
from regrow.methods import formulas
from regrow.methods.registry import MethodRecord, tabulated
from regrow.tickets import kinds
from regrow.weights.views import settle, unwrapped

MEANING = {
    CLEAN: "a multiply-add is 2, a bias and an activation for each output, true sizes, real connections",
    PUBLISHED: "as RigL's tables were computed, with the sizes and biases of its counter and unrounded densities",
}


@dataclass(frozen=True)
class LayerCost:
    """One weight; FLOPs are those of one example."""

    name: str
    shape: tuple[int, ...]
    parameters: int
    """Positions: weights of the dense layer. 0 where the weight is shared with a layer before."""
    connections: int
    density: float
    flops_dense: float
    flops_sparse: float
    uses: float
    """How often each connection multiplies: output pixels of a convolution, tokens of a linear layer."""


@dataclass(frozen=True)
class Costs:
    """Counted costs of a network; ``str()`` is a table, `to_dict` plain numbers."""

    layers: tuple[LayerCost, ...]
    convention: str
    other_parameters: int
    """Biases, norms and other parameters of one dimension: not in `parameters`, and not in the FLOPs."""
    size_megabytes: dict[str, float]
    """Stored size, dense and sparse, in 10^6 bytes: connections, a bit a position of sparse weights, biases."""
    uncounted: tuple[str, ...] = ()
    """Weights that no operation with a rule for its FLOPs has reached: 0 FLOPs."""
    update_every: int = 100
    multiplier: float = 1.0
    small_dense: float | None = None
    """FLOPs of a dense network of the same stored size; None where there is none to compare with."""
    tickets: int | None = None
    """M of Sup-tickets and of FreeTickets' ensembles; None counts one network alone."""

    @property
    def parameters(self) -> dict[str, int]:
        """Weights, dense and sparse; biases and norms are not among them."""
        return {
            "dense": sum(layer.parameters for layer in self.layers),
            "sparse": sum(layer.connections for layer in self.layers if layer.parameters),
        }

    @property
    def multiply_adds(self) -> dict[str, float]:
        """Multiply-adds of a forward pass of one example, and nothing else."""
        return {
            "dense": sum(layer.uses * math.prod(layer.shape) for layer in self.layers),
            "sparse": sum(layer.uses * layer.connections for layer in self.layers),
        }

    @property
    def flops(self) -> dict[str, float]:
        """FLOPs of a forward pass of one example, dense and sparse, and one divided by the other."""
        dense = sum(layer.flops_dense for layer in self.layers)
        sparse = sum(layer.flops_sparse for layer in self.layers)
        return {"dense": dense, "sparse": sparse, "inference_multiple": sparse / dense}

    @property
    def training_multiple(self) -> dict[str, float | None]:
        """FLOPs of training by each method, as a multiple of those of dense training of the plain length.

        Pruning and GraNet end at this network's sparsity: Pruning follows the published 33 samples of its schedule,
        GraNet its own defaults, from sparsity 0.5 with an update every 1,000 steps. Small-Dense is
        None where no network was given to compare with. `regrow.accounting.training_multiple` has the formulas. With
        `tickets` also each kind of them (`regrow.accounting.ticket_multiples`), of bare multiply-adds as in their
        paper's tables, whatever the convention.
        """
        found = {name: self._multiple(record) for name, record in tabulated().items()}
        if self.tickets is None:
            return found
        products = self.multiply_adds
        forward = products["sparse"] / products["dense"]
        return found | ticket_multiples(forward, self.tickets, multiplier=self.multiplier)

    @property
    def test_multiple(self) -> dict[str, float]:
        """FLOPs of a test where there are `tickets`, as a multiple of a dense one's: an ensemble runs each member."""
        one = self.flops["inference_multiple"]
        count = self.tickets
        if count is None:
            return {}
        return {name: kind.networks(count) * one for name, kind in kinds().items() if kind.cost is not None}

    def trained(self, ratio: float) -> float:
        """Return the FLOPs of a forward pass of one example with `ratio` times the connections of each layer, f_B.

        At most all positions of a layer: those that are trained by a method that trains more than it connects.
        """
        more = require_positive("ratio", ratio) - 1
        return sum(
            min(y.flops_dense, y.flops_sparse + more * 2 * y.uses * y.connections) for y in self.layers
        )

    def _multiple(self, record: MethodRecord) -> float | None:
        if record.is_narrow and self.small_dense is None:
            return None
        flops, parameters = self.flops, self.parameters
        return training_multiple(
            formulas.SPARSE if record.is_narrow else record.cost,
            dense=flops["dense"],
            sparse=self.small_dense if record.is_narrow and self.small_dense is not None else flops["sparse"],
            update_every=record.interval or self.update_every,
            multiplier=self.multiplier,
            levels=record.levels(1 - parameters["sparse"] / parameters["dense"]),
            trained=self.trained(record.backward_ratio),
        )

    def training_flops(self, method: str, *, steps: int, batch_size: int) -> float:
        """Return the FLOPs of a whole training run by `method`.

        Args:
            method: a key of `training_multiple`.
            steps: of dense training; a longer run is in the multiple.
            batch_size: examples a step.

        Raises:
            RegrowValueError: an unknown method, or one without a figure here.
        """
        known = self.training_multiple
        choices = [name for name, value in known.items() if value is not None]
        multiple = known[require_choice("method", method, choices)]
        assert multiple is not None
        examples = require_count("steps", steps) * require_count("batch_size", batch_size)
        return multiple * 3 * self.flops["dense"] * examples

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings, for JSON."""
        return {
            "convention": self.convention,
            "layers": [{**vars(layer), "shape": list(layer.shape)} for layer in self.layers],
            "parameters": {**self.parameters, "others": self.other_parameters},
            "multiply_adds": self.multiply_adds,
            "flops": self.flops,
            "training_multiple": self.training_multiple,
            "update_every": self.update_every,
            "multiplier": self.multiplier,
            **(
                {} if self.tickets is None else {"tickets": self.tickets, "test_multiple": self.test_multiple}
            ),
            "size_megabytes": self.size_megabytes,
            "uncounted": list(self.uncounted),
        }

    def __str__(self) -> str:
        return self.text()

    def text(self, width: int | None = None) -> str:
        """Lay out the table for a terminal of `width` characters, or as wide as it takes."""
        rows = [
            (
                layer.name,
                " x ".join(map(str, layer.shape)),
                f"{layer.parameters:,}",
                f"{layer.connections:,}",
                f"{layer.density:.4f}",
                f"{layer.flops_dense:,.0f}",
                f"{layer.flops_sparse:,.0f}",
            )
            for layer in self.layers
        ]
        head = ("layer", "shape", "parameters", "connections", "density", "FLOPs dense", "FLOPs sparse")
        lines = table([head, *rows], width, numbers=2)
        return wrapped("\n".join([*lines, "", *self._totals()]), width)

    def _totals(self) -> list[str]:
        parameters, flops, size = self.parameters, self.flops, self.size_megabytes
        said = {name: "-" if m is None else f"{m:.4f}" for name, m in self.training_multiple.items()}
        length = "" if self.multiplier == 1 else f" at {self.multiplier:g}x the steps"
        own = [
            f"{name}: every {record.interval:,}, from sparsity {record.initial_sparsity}"
            for name, record in tabulated().items()
            if record.interval is not None and record.gradient == formulas.UPDATE
        ]
        lines = [
            f"parameters  {parameters['dense']:,} dense, {parameters['sparse']:,} sparse "
            f"(weights; {self.other_parameters:,} biases and norms beside them)",
            f"FLOPs       {flops['dense']:.5g} dense, {flops['sparse']:.5g} sparse an example: "
            f"test {flops['inference_multiple']:.4f}x",
            f"training{length}, multiples of dense, an update every {self.update_every} steps "
            f"({'; '.join(own)}):",
            "  " + "  ".join(f"{name}{KEEP}{value}" for name, value in said.items()),
            *self._of_tickets(),
            f"size        {size['dense']:.3f} MB dense, {size['sparse']:.3f} MB sparse",
            f"all counted, convention {self.convention}: {MEANING[self.convention]}",
        ]
        if self.uncounted:
            lines.append(f"without a rule, 0 FLOPs: {', '.join(self.uncounted)}")
        return lines

    def _of_tickets(self) -> list[str]:
        if self.tickets is None:
            return []
        said = "  ".join(f"{name} {multiple:.4f}" for name, multiple in self.test_multiple.items())
        costs = {name: kind.cost for name, kind in kinds().items() if kind.cost is not None}
        supposed = [f"; {name}: {cost.assumes}" for name, cost in costs.items() if cost.assumes]
        return [
            f"  {either(costs, 'and')} with {self.tickets} tickets{''.join(supposed)}",
            f"test of these, multiples of dense: {said}",
        ]


def costs(
    model: nn.Module,
    example: Example,
    *,
    convention: str = "clean",
    update_every: int = 100,
    multiplier: float = 1.0,
    small_dense: nn.Module | None = None,
) -> Costs:
    """Return what `model` costs, counted from its shapes and its topology; it runs once on `example` and stays as
    it is.

    A dot product of n numbers is n multiplications and n - 1 additions, and each output has a bias and an activation,
    one operation each, as in the RigL paper's counter; `Costs.multiply_adds` are the bare products. Only operations
    with weights count: attention's products, norms and pooling do not. Recurrent weights work once a time step.

    Args:
        model: dense or sparse, in any storage.
        example: a batch that `model` takes: a tensor, a tuple of arguments or a dictionary of keyword arguments. The
            first dimension counts examples; all figures are for one.
        convention: ``"clean"``: true output sizes, real connections. ``"rigl"``: as the RigL paper's tables were
            computed: convolutions sized as its counter does (a padding layer counts twice, so ResNet-50's first
            convolution has 115 x 115 outputs), one bias for a whole depthwise kernel, densities before rounding.
        update_every: steps between two updates, of RigL's training cost; GraNet's has its own interval.
        multiplier: length of training as a multiple of dense training's.
        small_dense: a dense network to compare with at equal stored size (`regrow.models.small_dense`).

    Raises:
        RegrowValueError: a model without weights, an example that does not fit it, an unknown convention.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 10))
        >>> counted = costs(model, torch.zeros(1, 784))
        >>> counted.flops["dense"], round(counted.training_multiple["snfs"], 2)
        (476710.0, 1.0)
    """
    if small_dense is not None:
        require_model("small_dense", small_dense)
    result = costs_of(
        model, example, None, convention=convention, update_every=update_every, multiplier=multiplier
    )
    if small_dense is None:
        return result
    small = costs_of(small_dense, example, {}, convention=convention)
    return replace(result, small_dense=small.flops["dense"])


def costs_of(
    model: nn.Module,
    example: Example,
    sparsities: Mapping[str, float] | None,
    *,
    convention: str = "clean",
    update_every: int = 100,
    multiplier: float = 1.0,
) -> Costs:
    """Return `costs` of a dense model taken to be as sparse as `sparsities` says, {weight name: sparsity}.

    Works on the meta device, where nothing is computed: the model is only built and traced.
    """
    require_choice("convention", convention, CONVENTIONS)
    update_every = require_count("update_every", update_every)
    multiplier = require_positive("multiplier", multiplier)
    require_model("model", model)
    model = unwrapped(model)
    settle(model)
    found = units(model, sparsities)
    work = trace(model, example, found, convention)
    layers = tuple(_layer(unit, done, convention) for unit, done in zip(found, work, strict=True))
    if not any(layer.flops_dense for layer in layers):
        raise RegrowValueError(
            f"`model` used none of its weights on `example`: {[unit.name for unit in found]}"
        )
    idle = sum(p.numel() for p in model.parameters() if p.dim() < 2)
    return Costs(
        layers,
        convention,
        idle,
        {
            "dense": stored_megabytes(found, convention, dense=True),
            "sparse": stored_megabytes(found, convention),
        },
        tuple(unit.name for unit, done in zip(found, work, strict=True) if not done.counted),
        update_every,
        multiplier,
    )


def _layer(unit: Unit, done: Work, convention: str) -> LayerCost:
    # for each output n multiplications, n - 1 additions, a bias and an activation
    connections = unit.connections if convention == "clean" else unit.positions * unit.density
    dense = 2.0 * unit.positions * done.places + done.outputs
    sparse = 2.0 * connections * done.places + done.outputs
    density = unit.connections / unit.positions
    parameters = 0 if unit.shared else unit.positions
    return LayerCost(unit.name, unit.shape, parameters, unit.connections, density, dense, sparse, done.places)


def stored_size(
    model: nn.Module, sparsities: Mapping[str, float] | None = None, convention: str = "clean"
) -> float:
    """Return the stored size of `model` in megabytes, without running it."""
    require_choice("convention", convention, CONVENTIONS)
    return stored_megabytes(units(require_model("model", model), sparsities), convention)
