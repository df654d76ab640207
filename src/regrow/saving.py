"""`save` and `load`: a sparse model as one safetensors file, small, whole or not there at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from regrow.errors import RegrowRuntimeError, RegrowValueError
from regrow.layers import find_layers
from regrow.sparsify import sparsify
from regrow.weights import sparse_weights
from regrow.weights.loading import from_csr, keys, to_csr
from regrow.weights.views import named_weights, unwrapped

FORMAT = "1"


def write_atomically(file: str | os.PathLike[str], write: Callable[[Path], Any]) -> Path:
    """Write a file under a temporary name beside it, then rename: it is there whole, or as it was before.

    Args:
        file: where it is to be.
        write: writes it to the path it gets.

    Raises:
        RegrowRuntimeError: it could not be written (a full disk); what was there before is untouched.
    """
    target = Path(file)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        temporary.touch()  # with the permissions of an ordinary file, whatever the writer would give it
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, target)
    except Exception as error:
        raise RegrowRuntimeError(f"`{target}` could not be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return target


def save(model: nn.Module, file: str | os.PathLike[str]) -> Path:
    """Write `model` to one safetensors file: its tensors, its topology, storage and version.

    Sparse weights are written by their connections alone (values [n, 1], row pointers, columns), whatever their
    storage, so that either storage reads them.

    Returns:
        The path.

    Raises:
        RegrowRuntimeError: a model that is not sparse, or a file that cannot be written.
    """
    from safetensors.torch import save_file

    model = unwrapped(model)
    sparse = dict(named_weights(model))
    if not sparse:
        raise RegrowRuntimeError(
            "`model` is not sparse.\nDid you forget to call regrow.sparsify(model, ...)?"
        )
    tensors: dict[str, Any] = dict(model.state_dict())
    layers = {}
    for base, weight in sparse.items():
        weight.settle(thorough=True)
        for key in keys(base):
            tensors.pop(key, None)
        tensors.update(to_csr(base, weight.shape, weight.positions(), weight.values()))
        layers[base] = {"shape": list(weight.shape), "storage": weight.storage, "asked": weight.record.asked}
    strange = [key for key, value in tensors.items() if not isinstance(value, Tensor)]
    if strange:
        raise RegrowRuntimeError(
            f"`model` has state that is no tensor: {strange} (get_extra_state).\n"
            "Use torch.save(model.state_dict(), ...)."
        )
    metadata = {"regrow": FORMAT, "layers": json.dumps(layers)}
    own = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    return write_atomically(file, lambda path: save_file(own, path, metadata=metadata))


def load(file: str | os.PathLike[str], into: nn.Module) -> nn.Module:
    """Read a file of `save` into a model of the same architecture, in place.

    A model that is sparse already keeps its storage, and takes the file's topology and number of connections; a
    dense one is made sparse as the file says.

    Args:
        file: the file.
        into: the model.

    Returns:
        `into`.

    Raises:
        RegrowValueError: a file that is not regrow's, of a newer format, or of another architecture.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  (not a dictionary)
    except (SafetensorError, OSError) as error:
        raise RegrowValueError(f"`file` {file} cannot be read: {error}") from error
    if metadata.get("regrow") != FORMAT:
        raise RegrowValueError(
            f"`file` {file} must be written by regrow.save in format {FORMAT}, got format {metadata.get('regrow')}"
        )
    layers = json.loads(metadata["layers"])
    model = unwrapped(into)
    _check_architecture(layers, tensors, model)
    if not sparse_weights(model):
        _sparsify_like(layers, tensors, model)
    model.load_state_dict(tensors)
    return into


def _check_architecture(layers: dict[str, Any], tensors: dict[str, Tensor], into: nn.Module) -> None:
    """Everything that could make loading fail, before anything is changed."""
    sparse = {name: weight.shape for name, weight in named_weights(into)}
    shapes = sparse or {layer.weight_name: layer.shape for layer in find_layers(into)}
    for name, layer in layers.items():
        if shapes.get(name) != tuple(layer["shape"]):
            raise RegrowValueError(
                f"`into` must hold `{name}` of shape {tuple(layer['shape'])}, got {shapes.get(name, 'no such weight')}"
            )
    if sparse.keys() - layers.keys():
        raise RegrowValueError(
            f"`into` is sparse where the file is dense: {sorted(sparse.keys() - layers.keys())}"
        )
    ours = {key for name in layers for key in keys(name)}
    own = {key: value for key, value in into.state_dict().items() if key not in ours}
    rest = {key: value for key, value in tensors.items() if key not in ours}
    wrong = sorted(own.keys() ^ rest.keys()) or [key for key in own if own[key].shape != rest[key].shape]
    if wrong:
        raise RegrowValueError(f"`into` is of another architecture than the file: {wrong} differ")


def _sparsify_like(layers: dict[str, Any], tensors: dict[str, Tensor], into: nn.Module) -> None:
    """Make `into` sparse in the file's layers, with the file's topology and storages."""
    for storage in sorted({layer["storage"] for layer in layers.values()}):
        found = {}
        for name, layer in layers.items():
            if layer["storage"] == storage:
                base = [tensors[key] for key in keys(name)[2:]]
                found[name], _ = from_csr(name, tuple(layer["shape"]), *base)
        sparsify(into, include=list(found), init=found, storage=storage)
