"""Which backend does the work of an operator: its kernel, or the reference on plain torch operators.

Below stands what each kernel needs of its operands. `why_not` lists what is in its way, `use_kernel` decides.
`regrow.ops.native` loads the kernels, and its `reference_only` turns all of them off.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from regrow._torch import tracing_state
from regrow.ops import native

DTYPES = frozenset({torch.float32, torch.float64, torch.bfloat16})
"""Dtypes of the products; bfloat16 accumulates in float32."""
EXACT = frozenset({torch.float32, torch.float64})
"""Dtypes of what only moves, compares or sums numbers."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """What the kernel of an operator needs of its operands."""

    dtypes: frozenset[torch.dtype] | None = None
    """Allowed dtypes of the first operand; None: any."""
    same_dtype: bool = False
    """All other operands have the dtype of the first."""
    same_strides: bool = False
    """All other operands have the strides of the first."""
    contiguous: bool = False
    """The first operand is contiguous."""
    eager: bool = False
    """Neither torch.compile nor torch.jit.trace follows: no operator of torch's stands around the kernel."""
    warns: bool = False
    """Warn where only the library is missing: the reference takes several times longer."""
    operand: str = "an operand"
    """What messages call an operand."""
    devices: frozenset[str] = frozenset({"cpu"})
    """Types of device that it runs on, with all operands."""

    def elsewhere(self, tensor: Tensor) -> str:
        """Return what is said of an operand on a device that it does not run on."""
        devices = " and ".join(device.upper() for device in sorted(self.devices))
        return f"the kernels run on the {devices}, {self.operand} is on {tensor.device}"


LINEAR = Kernel(DTYPES, warns=True, operand="the weight")
RECURRENT = Kernel(DTYPES, warns=True, operand="the weight")
CONV = Kernel(DTYPES, warns=True, operand="the weight")
TILES = Kernel(EXACT, same_dtype=True, eager=True, warns=True)
"""Conversion into batch tiles and out of them, and whatever runs from tiles to tiles."""
NORM = TILES
POOL = TILES
INDEX = Kernel()
POSITIONS = Kernel(frozenset({torch.int32}))
MOVE = Kernel(contiguous=True)
SELECT = Kernel(EXACT)
SCAN = Kernel(EXACT, contiguous=True)
SKETCH = Kernel()
OUTSIDE = Kernel(DTYPES, same_strides=True)


def unfit(kernel: Kernel, first: Tensor, *others: Tensor | None) -> list[str]:
    """Return what about these operands is in the way of `kernel`, whether or not there is a library of kernels."""
    if kernel.eager and (torch.compiler.is_compiling() or tracing_state() is not None):
        return ["torch.compile and torch.jit.trace do not see into the kernel"]
    reasons = []
    if first.device.type not in kernel.devices:
        reasons.append(kernel.elsewhere(first))
    if kernel.dtypes is not None and first.dtype not in kernel.dtypes:
        reasons.append(f"there are no kernels for {first.dtype}")
    if kernel.contiguous and not first.is_contiguous():
        reasons.append(f"{kernel.operand} is not contiguous")
    for other in others:
        if other is None:
            continue
        if other.device.type not in kernel.devices:
            reasons.append(kernel.elsewhere(other))
        if kernel.same_dtype and other.dtype != first.dtype:
            reasons.append(f"there are no kernels for {first.dtype} with {other.dtype}")
        if kernel.same_strides and other.stride() != first.stride():
            reasons.append(f"the strides {first.stride()} and {other.stride()} differ")
    return reasons


def why_not(kernel: Kernel, first: Tensor, *others: Tensor | None) -> list[str]:
    """Return the reasons why `kernel` does not do the work on these operands; none where it does.

    The library is looked for only where nothing else is in the way, since it may have to be built.
    """
    reasons = unfit(kernel, first, *others)
    if not reasons and (missing := native.missing()):
        reasons.append(f"there are no kernels: {missing.reason}")
    return reasons


def use_kernel(kernel: Kernel, first: Tensor, *others: Tensor | None) -> bool:
    """Decide whether `kernel` does the work on these operands: where `why_not` finds no reason.

    Warns once in a process where only the library is missing and the reference is much slower.
    """
    if unfit(kernel, first, *others):
        return False
    if native.missing() is None:
        return True
    if kernel.warns:
        native.warn_once()
    return False


def why_reference(weights: Iterable[Tensor]) -> str | None:
    """Explain that the reference runs, and the remedy, if only the library is missing for some of `weights`; else None.

    Weights on the meta device count as on the CPU, where they are likely to be made.
    """
    if all(unfit(LINEAR, w.new_empty(0, device="cpu") if w.is_meta else w) for w in weights):
        return None
    why = native.missing()
    return (
        f"the reference runs, several times slower than the kernels: {why.reason}\n{why.remedy}"
        if why
        else None
    )
