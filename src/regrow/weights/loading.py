"""What `load_state_dict` accepts: either storage, another count of connections, a plain dense checkpoint.

Everything is checked before anything is written: the hook on the root of the sparsified model sees the whole
state dict first, those on the modules serve `load_state_dict` on a part of the model.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from regrow.errors import RegrowValueError
from regrow.ops import index
from regrow.weights.base import SparseWeight, as_matrix
from regrow.weights.compressed import INDEX, CompressedWeight
from regrow.weights.hook import hook_of
from regrow.weights.masked import MaskedWeight
from regrow.weights.views import ensure_hooks, views

State = MutableMapping[str, Any]


def before_load(module: nn.Module, state: State, prefix: str, *_: Any) -> None:
    """`load_state_dict` pre-hook: bring each sparse weight below `module` into the form its storage loads.

    Raises:
        RegrowValueError: naming the key, what it holds and what is allowed; nothing has been written then.
    """
    converted = []
    for name, submodule in module.named_modules():
        for weight in views(submodule):
            base = f"{prefix}{name}.{weight.parameter_name}" if name else prefix + weight.parameter_name
            found = read(state, base, weight)
            if found is not None:
                if hook := hook_of(weight.parameter):
                    hook.before_load(weight)
                padded = state.get(
                    f"{base}_values"
                )  # optimizer state has its length, beyond the connections too
                converted.append((weight, base, *found, len(found[0] if padded is None else padded)))
    for weight, base, positions, values, capacity in converted:
        for key in keys(base):
            state.pop(key, None)
        state.update(_form(weight, base, positions, values, capacity))


def after_load(module: nn.Module, incompatible: Any) -> None:
    """`load_state_dict` post-hook: what is loaded is now the known topology (``assign=True`` included)."""
    for (
        submodule
    ) in module.modules():  # on the root once more, since a tied weight is loaded by each of its owners
        for weight in views(submodule):
            if isinstance(weight, CompressedWeight):
                weight.rebuild_mirror()
            elif isinstance(weight, MaskedWeight):
                weight.cut()
                weight.remember()
        ensure_hooks(submodule)


def keys(base: str) -> list[str]:
    """All keys that a weight called `base` can have in a state dict, of either storage."""
    return [base, f"{base}_mask", f"{base}_values", *(f"{base}_{part}" for part in INDEX)]


def read(state: State, base: str, weight: SparseWeight) -> tuple[Tensor, Tensor] | None:
    """Positions and values of a weight in a state dict, checked, or None where it holds nothing of it."""
    dense, mask, values, crow, col = (state.get(key) for key in keys(base))
    if values is not None and crow is not None and col is not None:
        return from_csr(base, weight.shape, values, crow, col)
    if dense is None:
        return None
    if tuple(dense.shape) != weight.shape:
        raise RegrowValueError(f"`{base}` must have shape {weight.shape}, got {tuple(dense.shape)}")
    if mask is None:  # a plain dense checkpoint is cut by the present topology
        positions = weight.positions().to(dense.device)
    elif tuple(mask.shape) != weight.shape or mask.dtype != torch.bool:
        raise RegrowValueError(
            f"`{base}_mask` must be boolean of shape {weight.shape}, got {mask.dtype} of shape {tuple(mask.shape)}"
        )
    else:
        positions = mask.reshape(-1).nonzero().view(-1)
    return positions, dense.detach().reshape(-1)[positions]


def from_csr(
    base: str, shape: tuple[int, ...], values: Tensor, crow: Tensor, col: Tensor
) -> tuple[Tensor, Tensor]:
    """Positions and values [nnz] of a CSR matrix, its index checked whole.

    Raises:
        RegrowValueError: an index that is out of range, unsorted or repeated, or lengths that do not fit.
    """
    rows, columns = as_matrix(shape)
    if tuple(crow.shape) != (rows + 1,) or crow[0] != 0 or (crow.diff() < 0).any():
        raise RegrowValueError(
            f"`{base}_crow` must be {rows + 1} ascending row pointers that start at 0, for a weight of shape {shape}"
        )
    nnz = int(crow[-1])
    if col.dim() != 1 or values.shape != (len(col), 1) or nnz > len(col):
        raise RegrowValueError(
            f"`{base}_values` must be [n, 1] and `{base}_col` [n] with n of at least {nnz}, "
            f"got {tuple(values.shape)} and {tuple(col.shape)}"
        )
    used = col[:nnz].long()
    if nnz and (used.min() < 0 or used.max() >= columns):
        raise RegrowValueError(
            f"`{base}_col` must be in [0, {columns}), got {int(used.min())} to {int(used.max())}"
        )
    found = index.positions(crow, used, columns)
    if (found[1:] <= found[:-1]).any():
        raise RegrowValueError(f"`{base}_col` must ascend within each row, without repetition")
    return found, values.detach()[:nnz, 0]


def to_csr(
    base: str, shape: tuple[int, ...], positions: Tensor, values: Tensor, capacity: int | None = None
) -> dict[str, Tensor]:
    """Keys and tensors of a compressed weight in a state dict, from its positions and values [nnz].

    Values and columns are padded with zeros up to `capacity`, if given.
    """
    crow, col = index.from_positions(positions, *as_matrix(shape))
    padding = (0, 0 if capacity is None else capacity - len(positions))
    return {
        f"{base}_values": pad(values, padding).view(-1, 1),
        f"{base}_crow": crow,
        f"{base}_col": pad(col, padding),
    }


def _form(
    weight: SparseWeight, base: str, positions: Tensor, values: Tensor, capacity: int
) -> dict[str, Tensor]:
    """The entries of a state dict that `weight`'s storage loads."""
    if isinstance(weight, CompressedWeight):
        if weight.capacity != capacity:
            weight.resize(capacity)
        return to_csr(base, weight.shape, positions, values, capacity)
    dense = torch.zeros(weight.numel, dtype=values.dtype, device=values.device)
    mask = torch.zeros(weight.numel, dtype=torch.bool, device=values.device)
    dense[positions], mask[positions] = values, True
    return {base: dense.view(weight.shape), f"{base}_mask": mask.view(weight.shape)}
