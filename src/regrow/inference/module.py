"""`Deployed`: a network for inference."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from regrow._text import either
from regrow._torch import transforms_active, tree_map_only
from regrow.errors import RegrowRuntimeError
from regrow.inference import file as files
from regrow.inference import inputs
from regrow.inference.engine import Engine
from regrow.inference.graph import Connections, Graph
from regrow.inference.plan import Plan
from regrow.inference.structure import unflatten
from regrow.ops import native


class Deployed(nn.Module):
    """A network for inference on the CPU, made by `deploy` or read by `Deployed.load`.

    Call it as the network that it was made of, with batches of any size, from any number of threads at once. It
    records no gradients, and has no parameters, no buffers and no training mode: `train` leaves it as it is.

    Attributes:
        reason: why it runs at dense cost, layer by layer as it did, and cannot be saved; None where it does not.
        difference: between its outputs for the example and those of the network that it was made of, relative to the
            largest of those where that is more than 1; None for one that was read from a file.
    """

    _regrow_deployed: ClassVar[bool] = True  # `regrow.arguments.DEPLOYED`

    def __init__(
        self, graph: Graph | None, network: nn.Module | None = None, reason: str | None = None
    ) -> None:
        super().__init__()
        self.reason = reason
        self.difference: float | None = None
        self._engine = None if graph is None else Engine(graph)
        self._network = (network,)  # a tuple, so that its parameters are nobody's
        self.eval()

    @property
    def graph(self) -> Graph | None:
        """What it computes, as plain data; None where `reason` says why there is none."""
        return None if self._engine is None else self._engine.graph

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the network returned, without gradients.

        Raises:
            RegrowValueError: other arguments than in the example, or of other types or shapes, but for the batch.
            RegrowRuntimeError: it is called under a transform of torch.func.
        """
        if transforms_active():
            raise RegrowRuntimeError(
                "a deployed network cannot be called under a transform of torch.func (vmap, grad, jvp ...)\n"
                "Call it with the whole batch, or transform the network that it was made of."
            )
        with torch.no_grad():
            if self._engine is not None:
                found = self._engine(inputs.take(self._engine.graph, args, kwargs))
                return unflatten(self._engine.graph.structure, found)
            (network,) = self._network
            assert network is not None
            return tree_map_only(Tensor, Tensor.detach, network(*args, **kwargs))

    def save(self, file: str | os.PathLike[str]) -> Path:
        """Write it to one file that needs no code of yours, whole or not at all.

        Returns:
            The path.

        Raises:
            RegrowRuntimeError: a file that cannot be written, or a network that could not be traced.
        """
        return files.write(file, self._traced("saved", ", or use regrow.save and regrow.load"))

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> Self:
        """Read what `save` has written; nothing in the file is executed.

        Raises:
            RegrowValueError: another file, a damaged one, or one of a newer regrow.
        """
        return cls(files.read(file))

    @staticmethod
    def library() -> Path:
        """Load the kernels and return their file, which programs load that run what torch.export wrote of a network.

        That is ``torch.ops.load_library(file)`` in Python, ``dlopen`` in C++.

        Raises:
            RegrowRuntimeError: there are no kernels here, and why.
        """
        if (why := native.missing()) is not None:
            raise RegrowRuntimeError(f"there are no kernels: {why.reason}\n{why.remedy}")
        found = native.library()
        assert found is not None
        return found

    def plan(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], name: str = inputs.CALL
    ) -> tuple[Plan, list[Tensor]]:
        """Return what runs for these arguments, which messages call `name`, and the tensors in them.

        Raises:
            RegrowValueError: arguments that the network does not take.
            RegrowRuntimeError: a network that could not be traced, or no kernels here.
        """
        graph = self._traced("explained")
        if (why := native.missing()) is not None:
            raise RegrowRuntimeError(f"there are no kernels: {why.reason}\n{why.remedy}")
        assert self._engine is not None
        tensors = inputs.take(graph, args, kwargs, name)
        return self._engine.plan(tuple(tuple(tensor.shape) for tensor in tensors)), tensors

    def size(self) -> int:
        """Return the bytes of its file, which is written to a temporary place for that."""
        with tempfile.TemporaryDirectory() as folder:
            return self.save(Path(folder) / "deployed").stat().st_size

    def train(self, mode: bool = True) -> Self:
        """Leave it in evaluation mode, which is the only one."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Refuse to move or convert: `to`, `cuda`, `half` and the like come here."""
        before = torch.empty(1, dtype=torch.float32, device="cpu")
        after = fn(before)
        if after.device != before.device or after.dtype != before.dtype:
            where = after.device if after.device != before.device else after.dtype
            raise RegrowRuntimeError(
                f"a deployed network cannot be moved or converted to {where}: it runs on the CPU, with the types of "
                "its example\n"
                "Deploy again with another `precision`, or move the network that it was made from."
            )
        return self

    def _traced(self, what: str, otherwise: str = "") -> Graph:
        """Return the graph, or refuse where there is none."""
        if self._engine is None:
            raise RegrowRuntimeError(
                f"this deployed network cannot be {what}, since it could not be traced: {self.reason}\n"
                f"Change its forward pass so that torch.export can follow it{otherwise}."
            )
        return self._engine.graph

    def extra_repr(self) -> str:
        """Describe it in a line."""
        if self._engine is None:
            return f"at dense cost: {self.reason}"
        graph = self._engine.graph
        sparse = [weight for weight in graph.weights.values() if isinstance(weight, Connections)]
        dense = [weight for weight in graph.weights.values() if not isinstance(weight, Connections)]
        count = sum(len(weight.values) for weight in sparse)
        parts = [graph.precision, f"{count:,} connections in {_layers(sparse)}"]
        if dense:
            parts.append(f"{sum(weight.numel() for weight in dense):,} dense weights in {_layers(dense)}")
        first = "N" if graph.dynamic else None
        shapes = [f"({', '.join(map(str, (first or s[0], *s[1:])))})" for s in graph.shapes if s]
        return ", ".join([*parts, f"takes {either(shapes, 'and')}"])


def _layers(weights: Sequence[Any]) -> str:
    return "1 layer" if len(weights) == 1 else f"{len(weights)} layers"
