"""`Engine`: runs a graph, by the kernels where they are there, from any number of threads at once."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regrow._torch import memory_of, without_modes
from regrow.inference import file
from regrow.inference.graph import Graph
from regrow.inference.plan import Plan
from regrow.inference.reference import interpret
from regrow.ops import native

MOST = 8
"""Plans that are kept, one for each batch size; another takes the place of that which was not used for longest."""
Shapes = tuple[tuple[int, ...], ...]


class Engine:
    """Runs a graph: planned for the shapes of each call by the kernels, or by torch's operators where there are none.

    Reading a plan takes no lock: the dictionary of plans is replaced, never changed.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._plans: dict[Shapes, tuple[Plan, list[int]]] = {}
        self._packed: dict[Any, Any] = {}
        self._dense: dict[str, Tensor] = {}
        self._memory = {memory_of(tensor) for tensor in graph.constants.values()}
        self._clock = itertools.count()
        self._lock = threading.Lock()

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Compute the outputs for `inputs`, which `inputs.take` has checked."""
        if torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                found = self._run(inputs)
        else:
            found = self._run(inputs)
        return self._apart(found, inputs)

    def _apart(self, found: Sequence[Any], inputs: Sequence[Tensor]) -> list[Any]:
        """Return outputs that callers may write to: copies of what shares memory with inputs, constants or others."""
        taken = self._memory | {memory_of(tensor) for tensor in inputs}
        apart = []
        for each in found:
            own = each.clone() if isinstance(each, Tensor) and memory_of(each) in taken else each
            if isinstance(own, Tensor):
                taken.add(memory_of(own))
            apart.append(own)
        return apart

    def _run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        if native.available():
            # whole numbers also while torch.export runs: a plan is for one shape
            return self.plan(tuple(tuple(int(side) for side in tensor.shape) for tensor in inputs))(inputs)
        native.warn_once()
        return interpret(self.graph, inputs, dense=self._dense)

    def plan(self, shapes: Shapes) -> Plan:
        """Return the plan for inputs of these shapes, made at first need."""
        plan, used = self._plans.get(shapes) or self._make(shapes)
        used[0] = next(self._clock)
        return plan

    def _make(self, shapes: Shapes) -> tuple[Plan, list[int]]:
        with self._lock:
            found = self._plans.get(shapes)
            if found is None:
                with without_modes():  # torch.export follows what is computed by the plan, not its making
                    found = Plan(self.graph, shapes, self._packed), [0]
                kept = sorted(self._plans.items(), key=lambda item: item[1][1][0])[-(MOST - 1) :]
                self._plans = {**dict(kept), shapes: found}
            return found

    def __deepcopy__(self, memo: object) -> Engine:
        return Engine(self.graph)  # which nothing changes

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpacked, file.pack(
            self.graph
        )  # Python's pickle does not know numbers of 16 bits without a sign


def _unpacked(text: str, tensors: dict[str, Tensor]) -> Engine:
    return Engine(file.unpack(text, tensors))
