"""`explain(model, example)`: where the time of a sparse network goes, layer by layer, and where layouts change."""

from __future__ import annotations

import copy
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regrow._text import table
from regrow._torch import ConvNd, TorchDispatchMode, without_modes
from regrow.arguments import require_model, require_positive
from regrow.errors import RegrowValueError
from regrow.measure.example import Example, first_tensor, run_once
from regrow.measure.timing import Load, Watch, interleaved
from regrow.nn import SparseLinear, SparseModule
from regrow.nn.fused import unfuse
from regrow.nn.recurrent_base import SparseRecurrent
from regrow.ops.linear import is_laid_out
from regrow.sparsity.core import densify
from regrow.sparsity.summary import summary
from regrow.tiles.tensor import on_convert
from regrow.weights.views import unwrapped, views

OWN = tuple(f"{Path(file).parent}{os.sep}" for file in (torch.__file__, __file__))
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "_to_copy")  # read either layout, or are no change of layout
KINDS = (nn.Linear, ConvNd, nn.RNNBase, SparseModule, SparseRecurrent)


@dataclass(frozen=True)
class LayerTime:
    """One sparse layer, forward and backward with all gradients, on the input that it gets."""

    name: str
    shape: tuple[int, ...]
    """Of its weight; the positions alone where it has several."""
    density: float
    storage: str
    reason: str
    """Why it is stored so."""
    milliseconds: float
    dense_milliseconds: float
    """Of a dense layer of this shape."""

    @property
    def speedup(self) -> float:
        """How many times faster than dense."""
        return self.dense_milliseconds / self.milliseconds


@dataclass(frozen=True)
class Conversion:
    """A place where activations are copied from one layout into the other, in the forward pass."""

    place: str
    """Name of the layer that converts its input, or of the operation whose output is in torch's own layout."""
    shape: tuple[int, ...]
    milliseconds: float
    """Of copying a tensor of this shape so."""
    line: str
    """File and line of the user's code that called it; empty where only torch's modules did."""


@dataclass(frozen=True)
class Explanation:
    """What `explain` found; ``str()`` is a table."""

    layers: tuple[LayerTime, ...]
    conversions: tuple[Conversion, ...]
    untimed: tuple[str, ...]
    """Sparse layers that the example did not reach, or of a kind that is not timed by itself."""
    load: Load
    """How busy the machine was meanwhile."""
    reference: str | None = None
    """Why the times are those of the reference instead of the kernels; None where they are not."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings, for JSON."""
        return {
            "layers": [{**asdict(row), "speedup": row.speedup} for row in self.layers],
            "conversions": [asdict(row) for row in self.conversions],
            "untimed": list(self.untimed),
            "load": asdict(self.load),
            "reference": self.reference,
        }

    def __str__(self) -> str:
        rows = [
            (
                row.name,
                " x ".join(map(str, row.shape)),
                f"{row.density:.4f}",
                row.storage,
                f"{row.milliseconds:.3f}",
                f"{row.dense_milliseconds:.3f}",
                f"{row.speedup:.2f}",
                row.reason,
            )
            for row in self.layers
        ]
        head = ("layer", "shape", "density", "storage", "ms", "ms dense", "speed-up", "")
        lines = table([head, *rows])
        lines.append("ms: forward and backward with all gradients, on the input that the layer gets")
        if self.reference:
            lines.append(self.reference)
        if self.untimed:
            lines.append(f"not timed: {', '.join(self.untimed)}")
        if not self.load.quiet:
            lines.append(f"The machine was not quiet ({self.load}): times and speed-ups may be far off.")
        if not self.conversions:
            return "\n".join([*lines, "", "no conversion of layout in the forward pass"])
        found = [
            (row.place, " x ".join(map(str, row.shape)), f"{row.milliseconds:.3f}", row.line)
            for row in self.conversions
        ]
        return "\n".join(
            [*lines, "", "conversions of layout:", *table([("at", "shape", "ms", "line"), *found])]
        )


def explain(model: nn.Module, example: Example, *, seconds: float = 0.2) -> Explanation:
    """Return what each sparse layer of `model` costs sparse and dense, and where activations change their layout.

    A linear layer in compressed storage puts out activations with the batch innermost, a convolution batch tiles; an
    operation of torch's that knows its own layout only breaks the chain, and the next compressed layer converts once.
    The backward pass converts at the same places. The model is run once, in evaluation mode, and is left as it was;
    layers are timed on copies.

    Args:
        model: a sparse model.
        example: one batch of it: a tensor, or a list or dictionary of the arguments of its forward pass.
        seconds: for how long each layer is timed.

    Raises:
        RegrowValueError: a model that is not sparse, or an example that it does not take.

    Example:
        >>> from regrow import sparsify
        >>> model = torch.nn.Sequential(torch.nn.Linear(784, 512), torch.nn.ReLU(), torch.nn.Linear(512, 10))
        >>> found = explain(sparsify(model, 0.9), torch.randn(128, 784), seconds=0.01)
        >>> [row.storage for row in found.layers]
        ['compressed', 'masked']
    """
    require_positive("seconds", seconds, zero=True)
    model = unwrapped(require_model("model", model))
    owners = {module: name for name, module in model.named_modules() if any(True for _ in views(module))}
    if not owners:
        raise RegrowValueError(
            "`model` is not sparse: there is nothing to explain.\n"
            "Call regrow.sparsify first, or give what regrow.deploy has returned."
        )
    inputs: dict[nn.Module, Tensor] = {}
    watch, others = _Watch(), Watch()

    def before(module: nn.Module, given: tuple[Any, ...]) -> None:
        if not isinstance(module, KINDS) or not given or not isinstance(given[0], Tensor):
            return
        inputs.setdefault(module, given[0].detach().clone(memory_format=torch.preserve_format))
        if isinstance(module, SparseLinear) and not is_laid_out(given[0].reshape(-1, given[0].shape[-1])):
            watch.note(f"{owners[module]} (its input)", given[0])

    def converted(operation: str, shape: torch.Size, milliseconds: float) -> None:
        watch.found.append(Conversion(operation, tuple(shape), milliseconds, _users_line()))

    handles = [module.register_forward_pre_hook(before) for module in owners]
    try:
        with watch, on_convert(converted):
            run_once(model, example)
    finally:
        for handle in handles:
            handle.remove()
    layers = [
        row for module, name in owners.items() for row in _timed(name, module, inputs.get(module), seconds)
    ]
    untimed = tuple(name for module, name in owners.items() if module not in inputs)
    reference = summary(model).reference
    return Explanation(tuple(layers), tuple(watch.found), untimed, others.load(), reference)


def _timed(name: str, module: nn.Module, given: Tensor | None, seconds: float) -> Iterator[LayerTime]:
    """Yield the row of a layer; none if it was not called, or is of a kind that is not timed."""
    if given is None:
        return
    own = unfuse(copy.deepcopy(module))
    if isinstance(own, SparseLinear):
        own.activation = None  # what is fused to it would be missing on the dense side
    dense = densify(nn.Sequential(copy.deepcopy(own)))
    ways = {"sparse": _step(own, given), "dense": _step(dense, given.contiguous())}
    took = interleaved(ways, seconds=seconds)
    weights = list(views(module))
    positions = sum(weight.numel for weight in weights)
    yield LayerTime(
        name,
        weights[0].shape if len(weights) == 1 else (positions,),
        sum(weight.nnz for weight in weights) / positions,
        weights[0].storage,
        weights[0].record.reason,
        1000 * took["sparse"].median,
        1000 * took["dense"].median,
    )


def _step(module: nn.Module, given: Tensor) -> Callable[[], object]:
    """Run forward and backward of a layer, with the gradients of its input and of its parameters."""
    given = given.clone(memory_format=torch.preserve_format)
    given.requires_grad_(given.is_floating_point())
    wanted = [tensor for tensor in (given, *module.parameters()) if tensor.requires_grad]
    with torch.no_grad():
        gradient = torch.ones_like(first_tensor(module(given)))

    def run() -> object:
        with torch.enable_grad():
            return torch.autograd.grad(first_tensor(module(given)), wanted, gradient)

    return run


class _Watch(TorchDispatchMode):
    """Sees each operation, and notes those that turn activations with the batch innermost into torch's layout."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[Conversion] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.namespace == "aten" and name not in PRODUCTS and isinstance(result, Tensor):
            given = next((a for a in args if isinstance(a, Tensor) and _batch_innermost(a)), None)
            if given is not None and given.shape == result.shape and result.is_contiguous():
                self.note(name.strip("_"), given)
        return result

    def note(self, place: str, given: Tensor) -> None:
        """Note that `given` changes its layout at `place`."""
        turned = given.reshape(-1, given.shape[-1]).t()
        with without_modes():
            copied = torch.empty(turned.shape, dtype=given.dtype, device=given.device)
            took = interleaved({"": lambda: copied.copy_(turned)}, seconds=0.02)
        self.found.append(Conversion(place, tuple(given.shape), 1000 * took[""].median, _users_line()))


def _batch_innermost(tensor: Tensor) -> bool:
    return (
        tensor.dim() >= 2
        and tensor.numel() > len(tensor) > 1
        and tensor.stride(-1) != 1
        and tensor.stride(-2) == 1
    )


def _users_line() -> str:
    """Return the innermost line of the stack that belongs neither to torch nor to regrow."""
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith(OWN):
            return f"{frame.filename}:{frame.lineno}: {frame.line}"
    return ""
