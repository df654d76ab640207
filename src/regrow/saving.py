"""`save`, `load` and `dense_state_dict`: a sparse model as one small file, and as other programs read it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from regrow.errors import RegrowRuntimeError, RegrowValueError
from regrow.layers import find_layers
from regrow.sparsify import sparsify
from regrow.weights import sparse_weights
from regrow.weights.loading import WRAPPERS, all_names, in_dense_form, keys, read, to_csr
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
        with suppress(OSError):  # which would hide the error that led here
            temporary.unlink(missing_ok=True)
    return target


def reason(error: BaseException) -> str:
    """What the system said: torch and safetensors bury it under errors of their own."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.strerror:
            return link.strerror
        link = link.__cause__ or link.__context__
    return str(error.__cause__ or error)


def sweep(folder: Path, *, everything: bool = False) -> None:
    """Remove the temporary files that processes which were killed have left in `folder`.

    Args:
        folder: where `write_atomically` has written.
        everything: also those of processes that live, or that nobody on this machine knows: none of them writes there.
    """
    for left in folder.glob(".*.part"):
        process = left.name.split(".")[-2]
        if process.isdecimal() and (everything or not _lives(int(process))):
            with suppress(OSError):
                left.unlink()


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    return True


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
    strange = [key for key, value in tensors.items() if not isinstance(value, Tensor)]
    if strange:
        raise RegrowRuntimeError(
            f"`model` has state that is no tensor: {strange} (get_extra_state).\n"
            "Use torch.save(model.state_dict(), file), and regrow.load(torch.load(file), into=model)."
        )
    metadata = {"regrow": FORMAT, "layers": json.dumps(layers)}
    own = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    return write_atomically(file, lambda path: save_file(own, path, metadata=metadata))


def dense_state_dict(model: nn.Module) -> dict[str, Any]:
    """The state dict that a plain dense model of the same architecture has: no key of regrow's, zeros where inactive.

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
    model = unwrapped(model)
    state: dict[str, Any] = model.state_dict()
    in_dense_form(model, state)
    return state


def load(file: str | os.PathLike[str] | Mapping[str, Any], into: nn.Module) -> nn.Module:
    """Read a sparse model's file or state dict into a model of the same architecture, in place.

    A model that is sparse already keeps its storage, and takes the file's topology and number of connections; a
    dense one is made sparse as the file says.

    Args:
        file: a file of `save`, the ``model.safetensors`` of ``save_pretrained``, or a state dict of a sparse model
            (``torch.load("checkpoint.pt")["model"]``), with the prefixes of torch's wrappers or without.
        into: the model.

    Returns:
        `into`.

    Raises:
        RegrowValueError: what is not a sparse model's, of a newer format, or of another architecture.
    """
    model = unwrapped(into)
    metadata, tensors = ({}, _without_prefix(file, model)) if isinstance(file, Mapping) else _opened(file)
    shapes = {name: weight.shape for name, weight in named_weights(model)}
    shapes = shapes or {layer.weight_name: layer.shape for layer in find_layers(model)}
    layers = _layers_of(file, metadata, tensors, shapes)
    _check_architecture(layers, shapes, tensors, model)
    found = {name: of[0] for name in layers if (of := read(tensors, name, shapes[name]))}
    if not sparse_weights(model):
        for storage in sorted({layer["storage"] for layer in layers.values()}):
            own = {name: found[name] for name, layer in layers.items() if layer["storage"] == storage}
            sparsify(model, include=[escape(name) for name in own], init=own, storage=storage)
    model.load_state_dict(tensors, strict=False)  # only names of what is tied to another weight are missing
    return into


def _opened(file: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  (not a dictionary)
            return opened.metadata() or {}, tensors
    except (SafetensorError, OSError) as error:
        raise RegrowValueError(
            f"`file` {file} cannot be read: {error}\n"
            "It must be a safetensors file. What torch.save has written: regrow.load(torch.load(file), into=model)."
        ) from error


def _without_prefix(state: Mapping[str, Any], into: nn.Module) -> dict[str, Any]:
    """A state dict without what torch.compile and DistributedDataParallel put before each key."""
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
    """Shape and storage of each sparse weight: as `save` noted them, or read off the keys of a state dict."""
    if metadata.get("regrow") == FORMAT:
        noted: dict[str, Any] = json.loads(metadata["layers"])
        return noted
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
        f"`file` {file} must be written by regrow.save in format {FORMAT}, got format {metadata.get('regrow')}"
    )


def _keys_of(layers: Iterable[str], into: nn.Module) -> set[str]:
    """All keys that these weights of `into` can have, under each name that their modules have in it."""
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
    """Everything that could make loading fail, before anything is changed."""
    for name, layer in layers.items():
        if shapes.get(name) != tuple(layer["shape"]):
            raise RegrowValueError(
                f"`into` must hold `{name}` of shape {tuple(layer['shape'])}, got {shapes.get(name, 'no such weight')}"
            )
    sparse = {name for name, _ in named_weights(into)}
    if sparse - layers.keys():
        raise RegrowValueError(f"`into` is sparse where the file is dense: {sorted(sparse - layers.keys())}")
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
        raise RegrowValueError(f"`into` is of another architecture than the file: {wrong} differ")
