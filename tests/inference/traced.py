"""Whether a graph computes what its model does, as traced and simplified."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regrow.inference.graph import Graph
from regrow.inference.passes import simplify
from regrow.inference.reference import interpret
from regrow.inference.structure import flatten, unflatten
from regrow.inference.trace import trace


def run(graph: Graph, *args: Any, **kwargs: Any) -> Any:
    """What `graph` makes of a call."""
    tensors: list[Tensor] = []
    assert flatten((args, kwargs), tensors) == graph.signature
    return unflatten(graph.structure, interpret(graph, tensors))


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]


def enlarged(value: Any, batch: int) -> Any:
    """`value` with tensors of `batch` times as many examples, no two alike."""
    if isinstance(value, Tensor) and value.dim() and batch > 1:
        more = [value, *(value.roll(step, -1) for step in range(1, batch))]
        return torch.cat(more)
    return value


def check(model: nn.Module, *args: Any, batches: tuple[int, ...] = (1, 3), **kwargs: Any) -> Graph:
    """Trace, simplify and compare, at several batches; returns the simplified graph."""
    graph = trace(model, args, kwargs)
    simple = simplify(graph)
    quiet = copy.deepcopy(model).eval()
    assert graph.dynamic == (len(batches) > 1)
    for batch in batches:
        more: tuple[Any, ...] = tuple(enlarged(each, batch) for each in args)
        named: Mapping[str, Any] = {key: enlarged(each, batch) for key, each in kwargs.items()}
        with torch.no_grad():
            expected = quiet(*more, **named)
        for each in (graph, simple):
            torch.testing.assert_close(run(each, *more, **named), expected, rtol=1e-5, atol=1e-5)
    return simple


def stir(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give batch norms statistics and weights of all kinds, negative and zero ones too; returns `model`."""
    torch.manual_seed(seed)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.3)  # type: ignore[union-attr]
            norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            if norm.affine:
                with torch.no_grad():
                    norm.weight.uniform_(-0.5, 1.2)
                    norm.weight[0] = 0
                    norm.bias.normal_(0, 0.3)
    return model
