"""What `load_state_dict` accepts: either storage, another count of connections, a plain dense checkpoint.

A weight stands in a state dict in one of four forms: ``weight`` and ``weight_mask`` (masked storage);
``weight_values``, ``weight_crow`` and ``weight_col`` (compressed); ``weight``, ``weight_crow`` and ``weight_col``,
which dense models read too (`regrow.weights.pretrained`); ``weight`` alone (dense). Everything is checked before
anything is written: the hook on the root of the sparsified model sees the whole state dict first, those on the modules
serve `load_state_dict` on a part of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from regrow._formats import STATE_DICT, require_format
from regrow.errors import RegrowValueError, warn
from regrow.ops import csr
from regrow.weights import stamp
from regrow.weights.base import SparseWeight
from regrow.weights.compressed import INDEX
from regrow.weights.forward import ensure_hooks
from regrow.weights.hook import hook_of
from regrow.weights.patterns import require_held
from regrow.weights.reading import as_matrix
from regrow.weights.views import views

KEY = "regrow"
"""Key of the format's number in torch's metadata of a module."""

State = MutableMapping[str, Any]

WRAPPERS = ("_orig_mod.", "module.")
"""What torch.compile and DistributedDataParallel put before each key."""

_WHOLE = (
    "\nIt is damaged, or of another weight: load all parts of a weight from one file, as they were saved."
)

ZEROS_TELL = 0.9
"""Share of nonzero values below which a dense weight is taken for a sparse network's."""


def before_load(module: nn.Module, state: State, prefix: str, metadata: Mapping[str, Any], *_: Any) -> None:
    """Bring each sparse weight below `module` into the form its storage loads; a `load_state_dict` pre-hook.

    Raises:
        RegrowValueError: naming the key, what it holds and what is allowed; nothing has been written then.
    """
    require_formats(state, metadata)
    converted = []
    for base, weight in all_names(module, prefix):
        _leave_out_own(state, base, weight)
        found = read(state, base, weight.shape, weight.positions)
        if found is not None:
            if weight.record.pattern is not None:
                require_held(base, weight.record.pattern, weight.shape, found[0])
            capacity = _capacity(len(found[0]), state.get(f"{base}_col"))
            converted.append((weight, base, *found, capacity, state.get(f"{base}_values")))
    if not converted:
        _refuse_prefixes(state, [base for base, _ in all_names(module, prefix)])
    _warn_of_cuts(state, {base: values for _, base, _, values, *_ in converted})
    for weight, base, positions, values, capacity, whole in converted:
        if hook := hook_of(weight.parameter):
            hook.before_load(weight)
        for key in keys(base):
            state.pop(key, None)
        state.update(weight.loadable(base, positions, values, capacity))
        if whole is not None and f"{base}_values" in state and len(whole) == capacity + stamp.SIZE:
            kept = whole.detach()[-stamp.SIZE :]  # so that a run resumes bit for bit
            state[f"{base}_values"][-stamp.SIZE :] = kept
    for weight in views(module):  # its own parameters are loaded next; the topology is not a buffer
        weight.load_topology(
            {name: state.pop(f"{prefix}{name}") for name in weight.saved() if f"{prefix}{name}" in state}
        )


def _metadata_of(state: Mapping[str, Any]) -> list[MutableMapping[str, Any]]:
    """Return torch's metadata of the modules in a state dict; other code drops it, or puts anything there."""
    found = getattr(state, "_metadata", None) or {}
    return [each for each in found.values() if isinstance(each, MutableMapping)]


def require_formats(state: Mapping[str, Any], *own: Mapping[str, Any]) -> None:
    """Refuse a state dict that a newer regrow has written, by torch's metadata of its modules or of one module.

    Raises:
        RegrowValueError: naming its format.
    """
    for metadata in (*_metadata_of(state), *own):
        require_format("the state dict", metadata, KEY, STATE_DICT)


def save_topology(module: nn.Module, state: State, prefix: str, metadata: MutableMapping[str, Any]) -> None:
    """Add the topology of `module`'s own weights, as copies that nobody can change it by; a `state_dict` post-hook.

    The format's number goes into torch's `metadata` of the module, since strict loading refuses a key more.
    """
    metadata[KEY] = STATE_DICT
    for weight in views(module):
        weight.settle(thorough=True)
        for name, tensor in weight.saved().items():
            state[f"{prefix}{name}"] = tensor.clone()


def _leave_out_own(state: State, base: str, weight: SparseWeight) -> None:
    """Leave out what is the model's own beside a whole form: ``state = model.state_dict(); state.update(others)``."""
    held = _held(state, base)
    path, parameter = base.removesuffix(weight.parameter_name), weight.parameter
    topology = {f"{path}{name}": tensor for name, tensor in weight.saved().items()}
    present = {
        key
        for key in held
        if (
            torch.equal(topology[key], state[key].to(topology[key].device))
            if key in topology
            else state[key].data_ptr() == parameter.data_ptr()
        )
    }
    if held - present in _forms(base):
        for key in present:
            del state[key]


def _refuse_prefixes(state: State, bases: list[str]) -> None:
    """Refuse the state dict of a wrapped model, of which ``strict=False`` would load nothing, without a word."""
    for wrapper in WRAPPERS:
        if any(wrapper + key in state for base in bases for key in keys(base)):
            raise RegrowValueError(
                f"the keys of the state dict begin with `{wrapper}`: it is a wrapped model's (torch.compile, "
                "DistributedDataParallel).\nregrow.load(state_dict, into=model) takes it as it is."
            )


def _warn_of_cuts(state: State, taken: Mapping[str, Tensor]) -> None:
    """Say so where values are cut that were meant to stay: a topology beside them, or zeros among them, tell."""
    averaged, other = [], []
    for base, values in taken.items():
        dense = state.get(base)
        own = [key for key in keys(base)[1:] if key in state]
        if dense is None or dense.is_meta:
            continue
        nonzero = int(dense.count_nonzero())
        if nonzero <= int(values.count_nonzero()):
            continue
        if own:
            averaged.append(base)
        elif nonzero < ZEROS_TELL * dense.numel():
            other.append(base)
    if averaged:
        warn(
            f"the state dict holds values outside the topology it gives for {averaged}, and they are cut: "
            "an average of two topologies, or weights written past their masks"
        )
    if other:
        warn(
            f"the state dict holds a sparse network in dense form, and the present topology, another one, cuts {other}."
            "\nLoad it into the dense model, then regrow.sparsify(model, init={name: mask}) by its zeros."
        )


def after_load(module: nn.Module, incompatible: Any) -> None:
    """Take what is loaded as the known topology (``assign=True`` included); a `load_state_dict` post-hook."""
    for submodule in module.modules():
        # on the root once more, since a tied weight is loaded by each of its owners
        for weight in views(submodule):
            weight.record.follows = False
            weight.after_load()
        ensure_hooks(submodule)


def all_names(module: nn.Module, prefix: str = "") -> list[tuple[str, SparseWeight]]:
    """Return each sparse weight of `module` with the name it has in a state dict; one that has several, by each of
    them.
    """
    return [
        (f"{prefix}{name}.{weight.parameter_name}" if name else prefix + weight.parameter_name, weight)
        for name, submodule in module.named_modules(remove_duplicate=False)
        for weight in views(submodule)
    ]


def keys(base: str) -> list[str]:
    """Return all keys that a weight called `base` can have in a state dict, in any form."""
    return [base, f"{base}_mask", f"{base}_values", *(f"{base}_{part}" for part in INDEX)]


def _held(state: Mapping[str, Any], base: str) -> set[str]:
    """Find the keys of a weight that a state dict holds, each a tensor that can be indexed."""
    held = {key for key in keys(base) if state.get(key) is not None}
    for key in sorted(held):
        value = state[key]
        if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_quantized:
            what = value.layout if isinstance(value, Tensor) else type(value).__name__
            raise RegrowValueError(
                f"`{key}` must be an ordinary tensor, got {what}\nConvert it with to_dense() or dequantize()."
            )
    return held


def _require_floats(key: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():  # a cast would change the weight in silence
        raise RegrowValueError(
            f"`{key}` must hold floating-point numbers, got {tensor.dtype}\n"
            "Convert weights to floating-point types only."
        )


def _named(base: str, held: set[str]) -> str:
    return ", ".join(f"`{key}`" for key in keys(base) if key in held)


def _forms(base: str) -> list[set[str]]:
    dense, mask, values, *index_keys = keys(base)
    return [{dense, mask}, {values, *index_keys}, {dense, *index_keys}, {dense}]


def read(
    state: Mapping[str, Any], base: str, shape: tuple[int, ...], present: Callable[[], Tensor] | None = None
) -> tuple[Tensor, Tensor] | None:
    """Read positions and values of a sparse weight from a state dict, checked; None if it holds nothing of it.

    Args:
        state: the state dict.
        base: the weight's name in it.
        shape: the weight's dense shape.
        present: gives the positions to take of a plain dense weight; without it, one is nothing.

    Raises:
        RegrowValueError: a part that is missing, one too many, or one that does not fit.
    """
    held = _held(state, base)
    if not held or (present is None and held == {base}):
        return None
    if held not in _forms(base):
        raise RegrowValueError(_not_a_form(base, held))
    dense, mask, values, crow, col = (state.get(key) for key in keys(base))
    if dense is not None and tuple(dense.shape) != shape:
        raise RegrowValueError(
            f"`{base}` must have shape {shape}, got {tuple(dense.shape)}\nBuild the model as the one that was saved."
        )
    if crow is not None and col is not None:
        if values is not None:
            return from_csr(base, shape, values, crow, col)
        positions = _positions(base, shape, crow, col)
    elif mask is None:  # a plain dense checkpoint is cut by the present topology
        assert present is not None
        positions = present()
    elif tuple(mask.shape) != shape or mask.dtype != torch.bool:
        raise RegrowValueError(
            f"`{base}_mask` must be boolean of shape {shape}, got {mask.dtype} of shape {tuple(mask.shape)}{_WHOLE}"
        )
    else:
        positions = mask.reshape(-1).nonzero().view(-1)
    assert dense is not None
    _require_floats(base, dense)
    positions = positions.to(dense.device)
    return positions, dense.detach().reshape(-1)[positions]


def _not_a_form(base: str, held: set[str]) -> str:
    named = _named(base, held)
    missing = [key for form in _forms(base) if held < form for key in keys(base) if key in form - held]
    if missing:
        return (
            f"`{missing[0]}` is missing: the state dict holds {named} of a weight whose parts belong together.\n"
            "Load them together (all shards of a checkpoint as one state dict), or none of them."
        )
    return (
        f"`{base}` is in the state dict in two forms: {named}.\n"
        "Take out the keys of the one that is not meant: "
        f"`{base}` alone is a dense weight, which the present topology cuts."
    )


def in_dense_form(module: nn.Module, state: State, prefix: str = "", *, topology: bool = False) -> None:
    """Give each sparse weight of `module` in its state dict the key and the shape of a dense one, in place.

    Args:
        module: the sparse model.
        state: its state dict, in any form; the order of the keys becomes that of a dense model.
        prefix: what the names in `state` begin with.
        topology: leave the topology beside the weight (its mask, or its row pointers and columns), so that
            `load_state_dict` of a sparse model gives exactly what it was.
    """
    for metadata in () if topology else _metadata_of(state):
        metadata.pop(KEY, None)
    dense = {}
    for base, weight in all_names(module, prefix):
        found = read(state, base, weight.shape, weight.positions)
        if found is None or (topology and base in state):
            continue
        dense[base] = weight.in_dense(*found)
    replaced = {key: base for base in dense for key in keys(base) if not topology or key == f"{base}_values"}
    for key in list(state):
        value, owner = state.pop(key), replaced.get(key)
        if owner is None:
            state[key] = value
        elif owner in dense:
            state[owner] = dense.pop(owner)


def from_csr(
    base: str, shape: tuple[int, ...], values: Tensor, crow: Tensor, col: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the positions and values [nnz] of a CSR matrix, its index checked whole.

    Raises:
        RegrowValueError: an index that is out of range, unsorted or repeated, or lengths that do not fit.
    """
    positions = _positions(base, shape, crow, col)
    _require_floats(f"{base}_values", values)
    if values.shape != (len(col), 1):
        raise RegrowValueError(
            f"`{base}_values` must be [n, 1] and `{base}_col` [n] with n of at least {len(positions)}, "
            f"got {tuple(values.shape)} and {tuple(col.shape)}{_WHOLE}"
        )
    mark = stamp.read(values) if len(values) - len(positions) >= stamp.SIZE else None
    if mark is not None and not mark.is_of(csr.fingerprint(crow.int(), col.int(), as_matrix(shape)[1])):
        raise RegrowValueError(
            f"`{base}_values` does not belong to `{base}_crow` and `{base}_col`: it holds values of another topology, "
            "or of several, averaged.\n"
            "Average dense weights (regrow.dense_state_dict), then sparsify with init='magnitude'."
        )
    return positions, values.detach()[: len(positions), 0]


def _positions(base: str, shape: tuple[int, ...], crow: Tensor, col: Tensor) -> Tensor:
    rows, columns = as_matrix(shape)
    converted = {}
    for part, tensor in zip(INDEX, (crow, col), strict=True):
        if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
            raise RegrowValueError(
                f"`{base}_{part}` must hold whole numbers, got {tensor.dtype}: it was converted or averaged together "
                "with the weights.\nConvert and average floating-point tensors only, of one topology."
            )
        converted[part] = tensor.long()  # differences of small unsigned numbers are never below 0
    crow, col = (converted[part] for part in INDEX)
    if tuple(crow.shape) != (rows + 1,) or crow[0] != 0 or (crow.diff() < 0).any():
        raise RegrowValueError(
            f"`{base}_crow` must be {rows + 1} ascending row pointers that start at 0, for a weight of shape {shape}"
            f"{_WHOLE}"
        )
    nnz = int(crow[-1])
    if col.dim() != 1 or nnz > len(col):
        raise RegrowValueError(
            f"`{base}_col` must be [n] with n of at least {nnz}, got {tuple(col.shape)}{_WHOLE}"
        )
    used = col[:nnz]
    if nnz and (used.min() < 0 or used.max() >= columns):
        raise RegrowValueError(
            f"`{base}_col` must be in [0, {columns}), got {int(used.min())} to {int(used.max())}{_WHOLE}"
        )
    found = csr.positions(crow, used, columns)
    if (found[1:] <= found[:-1]).any():
        raise RegrowValueError(f"`{base}_col` must ascend within each row, without repetition{_WHOLE}")
    return found


def _capacity(nnz: int, col: Tensor | None) -> int:
    """Count the connections that optimizer state beside these columns has room for: a module's end with a stamp."""
    return nnz if col is None or len(col) - nnz < stamp.SIZE else len(col) - stamp.SIZE
