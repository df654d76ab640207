"""`save`, `load` and `dense_state_dict`: a sparse model as one small file, and as other programs read it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from glob import escape
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from regrow._files import write_atomically
from regrow.arguments import require_model, require_path
from regrow.errors import RegrowRuntimeError, RegrowValueError
from regrow.sparsity import modelfile
from regrow.sparsity.core import sparsify
from regrow.sparsity.layers import find_layers
from regrow.weights import sparse_weights
from regrow.weights.compressed import to_csr
from regrow.weights.loading import WRAPPERS, all_names, in_dense_form, keys, read, require_formats
from regrow.weights.patterns import pattern_of, require_held
from regrow.weights.views import named_weights, unwrapped


def save(model: nn.Module, file: str | os.PathLike[str]) -> Path:
    """Write `model` to one safetensors file: its tensors, its topology, storage and version.

    Sparse weights are written by their connections alone (values [n, 1], row pointers, columns), whatever their
    storage, so that either storage reads them. A model saved twice gives the same bytes, with a checksum in them.

    Returns:
        The path.

    Raises:
        RegrowRuntimeError: a model that is not sparse, or a file that cannot be written.
    """
    file = require_path("file", file)
    model = unwrapped(require_model("model", model))
    sparse = dict(named_weights(model))
    if not sparse:
        raise RegrowRuntimeError(
            "`model` is not sparse.\nDid you forget to call regrow.sparsify(model, ...)?"
        )
    tensors: dict[str, Any] = dict(model.state_dict())  # which settles the sparse weights
    layers = {}
    for name, _ in all_names(model):
        for key in keys(name):
            tensors.pop(key, None)
    written = {id(weight.parameter) for weight in sparse.values()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in written:  # of another module, tied to it
            tensors.pop(name, None)
    for base, weight in sparse.items():
        tensors.update(to_csr(base, weight.shape, weight.positions(), weight.values()))
        layers[base] = {"shape": list(weight.shape), "storage": weight.storage, "asked": weight.record.asked}
        if weight.record.gates > 1:
            layers[base]["gates"] = weight.record.gates
        if weight.record.pattern is not None:
            layers[base]["pattern"] = str(weight.record.pattern)
    strange = [key for key, value in tensors.items() if not isinstance(value, Tensor)]
    if strange:
        raise RegrowRuntimeError(
            f"`model` has state that is not a tensor: {strange} (get_extra_state).\n"
            "Use torch.save(model.state_dict(), file), and regrow.load(torch.load(file), into=model)."
        )
    return write_atomically(file, lambda path: modelfile.write(path, tensors, layers))


def dense_state_dict(model: nn.Module) -> dict[str, Any]:
    """Return the state dict of a plain dense model: no key of regrow's, zeros where inactive.

    Any program that knows nothing of regrow loads it. The topology is not in it: to train on, save
    ``model.state_dict()`` or use `save`.

    Args:
        model: a model, sparse or not, wrapped by torch or not.

    Returns:
        Its state dict; the dense weights are copies.

    Raises:
        RegrowRuntimeError: a topology that other code has overwritten.

    Example:
        >>> model = sparsify(nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 10)), sparsity=0.9)
        >>> plain = nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 10))
        >>> plain.load_state_dict(dense_state_dict(model))
        <All keys matched successfully>
    """
    model = unwrapped(require_model("model", model))
    state: dict[str, Any] = model.state_dict()
    in_dense_form(model, state)
    return state


def load(file: str | os.PathLike[str] | Mapping[str, Any], into: nn.Module) -> nn.Module:
    """Read a sparse model's file or state dict into a model of the same architecture, in place, whole or not at all.

    A model that is sparse already keeps its storage, its pattern and whether its gates are apart, and takes the file's
    topology and number of connections; a dense one is made sparse as the file says.

    Args:
        file: a file of `save`, the ``model.safetensors`` of ``save_pretrained``, or a state dict of a sparse model
            (``torch.load("checkpoint.pt")["model"]``), with the prefixes of torch's wrappers or without.
        into: the model.

    Returns:
        `into`.

    Raises:
        RegrowValueError: what is not a sparse model's, of a newer format, of another architecture, or damaged; nothing
            has been written then.
    """
    model = unwrapped(require_model("into", into))
    metadata, tensors = (
        ({}, _without_prefix(file, model)) if isinstance(file, Mapping) else modelfile.read(file)
    )
    put(file, metadata, tensors, model)
    return into


def put(
    file: str | os.PathLike[str] | Mapping[str, Any],
    metadata: Mapping[str, str],
    tensors: Mapping[str, Any],
    model: nn.Module,
) -> None:
    """Put what was read from a `file` into `model`, as `load` does.

    Args:
        file: where it is from, for messages.
        metadata: those of `regrow.save`; none where the tensors are a state dict.
        tensors: by name.
        model: without the wrappers of torch.
    """
    shapes = {name: weight.shape for name, weight in named_weights(model)}
    shapes = shapes or {layer.weight_name: layer.shape for layer in find_layers(model)}
    layers = _layers_of(file, metadata, tensors, shapes)
    _check_architecture(layers, shapes, tensors, model)
    found = {name: _positions(tensors, name, shapes[name]) for name in layers}
    if not sparse_weights(model):
        patterns = {name: pattern_of(layer.get("pattern", "")) for name, layer in layers.items()}
        for name, pattern in patterns.items():
            if pattern is not None:
                require_held(name, pattern, shapes[name], found[name])
        storage = {name: layer["storage"] for name, layer in layers.items()}
        sparsify(model, include=[escape(name) for name in found], init=found, storage=storage)
        for name, weight in named_weights(model):
            weight.record.gates = layers[name].get("gates", 1)
            weight.record.pattern = patterns[name]
    model.load_state_dict(tensors, strict=False)  # only names of what is tied to another weight are missing


def _positions(tensors: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> Tensor:
    """Read the connections of a weight, checked whole."""
    found = read(tensors, name, shape)
    if found is None:
        raise RegrowValueError(
            f"`{name}_crow` is missing: `file` names `{name}` as sparse, and holds nothing of its connections\n"
            "Save the model again, or fetch the whole file."
        )
    return found[0]


def _without_prefix(state: Mapping[str, Any], into: nn.Module) -> dict[str, Any]:
    """Return a state dict without what torch.compile and DistributedDataParallel put before each key."""
    keys_: list[object] = list(state)
    if strange := [key for key in keys_ if not isinstance(key, str)]:
        raise RegrowValueError(
            f"`file` must be a state dict, whose keys are names, got the key {strange[0]!r}\n"
            'Take the model\'s part of a file: regrow.load(torch.load(path)["model"], into=model).'
        )
    require_formats(state)
    own, found = into.state_dict(), dict(state)
    for prefix in WRAPPERS * 2:  # compiled and then wrapped, or the other way round
        if all(key.startswith(prefix) for key in found) and not any(key.startswith(prefix) for key in own):
            found = {key.removeprefix(prefix): value for key, value in found.items()}
    return found


def _layers_of(
    file: str | os.PathLike[str] | Mapping[str, Any],
    metadata: Mapping[str, str],
    tensors: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, Any]:
    """Return the shape and storage of each sparse weight: as `save` noted them, or read off the keys of a state
    dict.
    """
    if metadata.get("regrow") == modelfile.FORMAT:
        return modelfile.layers_in(file, metadata.get("layers"))
    layers = {}
    for name, shape in shapes.items() if "regrow" not in metadata else ():
        _, mask, _, crow, _ = keys(name)
        if mask in tensors or crow in tensors:
            layers[name] = {"shape": list(shape), "storage": "masked" if mask in tensors else "compressed"}
    if layers:
        return layers
    if isinstance(file, Mapping):
        raise RegrowValueError(
            f"`file` is a state dict without a sparse weight of `into`: it holds {', '.join(list(file)[:4])}, ...\n"
            'Take the model\'s part of a file: regrow.load(torch.load(path)["model"], into=model). A dense one is '
            "for model.load_state_dict."
        )
    raise RegrowValueError(
        f"`file` {file} must be written by regrow.save in format {modelfile.FORMAT}, got format "
        f"{metadata.get('regrow')}\n"
        "A newer format needs a newer regrow; a dense model's file is for model.load_state_dict."
    )


def _keys_of(layers: Iterable[str], into: nn.Module) -> set[str]:
    """Return all keys that these weights of `into` can have, under each name that their modules have in it."""
    owned: dict[nn.Module, list[str]] = {}
    for name in layers:
        path, _, parameter_name = name.rpartition(".")
        owned.setdefault(into.get_submodule(path), []).append(parameter_name)
    return {
        key
        for path, module in into.named_modules(remove_duplicate=False)
        for parameter_name in owned.get(module, ())
        for key in keys(f"{path}.{parameter_name}" if path else parameter_name)
    }


def _check_architecture(
    layers: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, Any],
    into: nn.Module,
) -> None:
    """Check everything that could make loading fail, before anything is changed."""
    for name, layer in layers.items():
        if shapes.get(name) != tuple(layer["shape"]):
            raise RegrowValueError(
                f"`into` must hold `{name}` of shape {tuple(layer['shape'])}, got {shapes.get(name, 'no such weight')}"
                "\nBuild `into` as the model that was saved."
            )
    sparse = {name for name, _ in named_weights(into)}
    if sparse - layers.keys():
        raise RegrowValueError(
            f"`into` is sparse where the file is dense: {sorted(sparse - layers.keys())}\n"
            "Load into a dense model of the same architecture; it is made sparse as the file says."
        )
    ours = _keys_of(layers, into)
    state = into.state_dict(keep_vars=True)
    own = {key: value for key, value in state.items() if key not in ours}
    rest = {key: value for key, value in tensors.items() if key not in ours}
    there = {id(value) for key, value in state.items() if key in tensors or key in ours}
    missing = {key for key in own.keys() - rest.keys() if id(own[key]) not in there}  # but tied ones
    wrong = sorted(missing | (rest.keys() - own.keys())) or [
        key for key in rest if getattr(own[key], "shape", None) != getattr(rest[key], "shape", None)
    ]
    if wrong:
        some = ", ".join(wrong[:8]) + (f" and {len(wrong) - 8} more" if len(wrong) > 8 else "")
        raise RegrowValueError(
            f"`into` is of another architecture than the file: {some} differ\n"
            "Build `into` as the model that was saved."
        )
    for key, value in rest.items():
        if isinstance(value, Tensor) and _kind(value) != _kind(own[key]):  # a cast would change what it means
            raise RegrowValueError(
                f"`{key}` must hold {_kind(own[key])} numbers, as in `into`, got {value.dtype}\n"
                "Convert floating-point tensors only, to other floating-point types."
            )


def _kind(tensor: Tensor) -> str:
    return "complex" if tensor.is_complex() else "floating-point" if tensor.is_floating_point() else "whole"
