"""What a run has cost in FLOPs: its real density over time, its updates, its passes with a dense gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

import regrow
from regrow.accounting import Costs
from regrow.errors import RegrowError
from regrow.methods.formulas import ALWAYS, UPDATE
from regrow.methods.registry import record_of


def measure(
    model: nn.Module,
    example: Tensor,
    method: object,
    records: Sequence[Mapping[str, Any]],
    steps: int,
    first: int = 0,
) -> dict[str, float] | None:
    """Count FLOPs for one example: of a test, of the same network dense, and of the run's average training step.

    A backward pass costs twice its forward pass; a dense gradient of the weights costs what it costs in the dense
    network (RigL, arXiv 1911.11134, appendix H), at every step or at each update step, as the method needs it, and the
    gradient of more weights than the connections what it costs in a network of so many.

    Args:
        model: as it is at the end of the run.
        example: one or more inputs of it.
        method: what drove it, or None.
        records: of ``metrics.jsonl``; those of kind ``update`` say what moved in which layer.
        steps: of the run.
        first: the step at which it began.

    Returns:
        ``dense``, ``test``, ``training``; the ``least`` and the ``most`` of a forward pass during the run; and the
        ``connections`` at the end, those of dense layers included. None for a network whose FLOPs cannot be counted.
    """
    try:
        costs = regrow.costs(model, example)
    except RegrowError:  # a finished run is not lost over a module that nobody can count
        return None
    dense, test = float(costs.flops["dense"]), float(costs.flops["sparse"])
    layers = {layer.name.removesuffix(".weight"): layer for layer in costs.layers}
    updates = [record for record in records if record.get("kind") == "update" and record["layers"]]
    gradient = record_of(type(method)).gradient
    # from the end to the beginning: only the topology at the end is at hand
    share = _searched(costs, method)
    forward, now, end, extra, seen = 0.0, test, first + steps, 0.0, [test]
    for update in reversed(updates):
        after = update["step"] + 1  # the first step that sees the new topology
        forward += now * (end - after)
        for name, moved in update["layers"].items():
            layer = layers.get(name.removesuffix(".weight"))
            if layer is not None:
                now -= 2 * layer.uses * (moved["grown"] - moved["dropped"])
        end = after
        seen.append(now)
        if gradient == UPDATE:
            extra += (dense - now) * share
    forward += now * (end - first)
    if hasattr(method, "core_steps"):  # in which a part of the network runs alone
        core = test + _beyond(layers, method)
        forward += method.core_steps(steps) * (core - now)
        seen.append(core)
    ratio = getattr(method, "backward_ratio", 1.0)
    if gradient == ALWAYS:
        total = 2 * forward + steps * dense
    elif ratio > 1:
        total = 2 * forward + steps * float(costs.trained(ratio))  # of a network that keeps its density
    else:
        total = 3 * forward + extra
    connections = float(costs.parameters["sparse"])
    return {
        "dense": dense,
        "test": test,
        "least": min(seen),
        "most": max(seen),
        "training": total / steps,
        "connections": connections,
    }


def _beyond(layers: Mapping[str, Any], method: Any) -> float:
    """Compute the FLOPs of a forward pass of the core of `method` beyond those of the network at the end."""
    sizes = {name.removesuffix(".weight"): size for name, size in method.core_sizes.items()}
    return float(
        sum(2 * y.uses * (sizes[name] - y.connections) for name, y in layers.items() if name in sizes)
    )


def _searched(costs: Costs, method: object) -> float:
    """Compute the share of the dense gradient that an update of `method` computes."""
    searched = getattr(method, "searched", None)
    if searched is None:
        return 1.0
    columns = {layer.name: math.prod(layer.shape[1:]) for layer in costs.layers}
    looked_at: float = sum(y.flops_dense * searched(columns[y.name]) / columns[y.name] for y in costs.layers)
    return looked_at / sum(layer.flops_dense for layer in costs.layers)


def tested(networks: Sequence[nn.Module], example: Tensor) -> dict[str, float]:
    """Return the FLOPs of a ``test`` of one example by all `networks`, and their ``connections``, dense layers
    included.
    """
    counted = [regrow.costs(network, example) for network in networks]
    return {
        "test": float(sum(costs.flops["sparse"] for costs in counted)),
        "connections": float(sum(costs.parameters["sparse"] for costs in counted)),
    }
