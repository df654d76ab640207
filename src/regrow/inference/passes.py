"""`simplify`: from a graph as it was traced to one in which layers hold what follows them."""

from __future__ import annotations

import torch

from regrow.inference.edit import Editor
from regrow.inference.fold import fold_affines
from regrow.inference.fuse import fuse
from regrow.inference.graph import Graph
from regrow.inference.normalize import normalize
from regrow.inference.prune import prune


@torch.no_grad()
def simplify(graph: Graph) -> Graph:
    """Return a graph that computes the same in fewer operations; `graph` is left as it is.

    What depends on no input is computed now; batch norms and scales go into the layers before them; activations and
    sums go into the layers that they follow; outputs of layers that are constant, or that nothing reads, are cut.
    Values change by less than their rounding: folding is in float64.
    """
    editor = Editor(graph)
    normalize(editor)
    fold_affines(editor)
    fuse(editor)
    prune(editor)
    return editor.finish()
