"""`simplify`: from a graph as it was traced to one in which layers hold what follows them."""

from __future__ import annotations

import torch

from regrow.inference.edit import Editor
from regrow.inference.fold import fold_affines
from regrow.inference.fuse import fuse
from regrow.inference.graph import CONV, LINEAR, Connections, Graph
from regrow.inference.normalize import normalize


@torch.no_grad()
def simplify(graph: Graph) -> Graph:
    """Return a graph that computes the same in fewer operations; `graph` is left as it is.

    What depends on no input is computed now; batch norms and scales go into the layers before them; activations and
    sums go into the layers that they follow. Values are changed by less than their rounding: folding is in float64.
    """
    editor = Editor(graph)
    normalize(editor)
    fold_affines(editor)
    fuse(editor)
    return editor.finish()


def empty_units(graph: Graph) -> dict[str, int]:
    """Count, by layer, the outputs that no connection reaches: constants, which `regrow.compact` cuts."""
    found = {}
    for node in graph.nodes:
        weight = graph.weights[node.args[1]] if node.op in (CONV, LINEAR) else None
        if isinstance(weight, Connections):
            empty = int((weight.crow.diff() == 0).sum())
            if empty:
                found[node.layer or node.name] = empty
    return found
