"""From a model to a sparse model, and back: `sparsify`, `densify`, `masks`, `is_sparse`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regrow import topology
from regrow.errors import RegrowRuntimeError, RegrowValueError, closest, require_fraction
from regrow.fuse import unfuse
from regrow.layers import (
    Layer,
    Selector,
    choose,
    find_layers,
    in_distribution,
    reads_weights,
    why_not_compressed,
)
from regrow.materialize import draw, is_on_meta, materialize
from regrow.nn import SparseLinear, SparseModule, compressed_form, dense_form
from regrow.ops.index import are_positions
from regrow.ops.select import top
from regrow.storage import choose_storages
from regrow.weights import CompressedWeight, MaskedWeight, Record, sparse_weights, views
from regrow.weights.base import RECORDS
from regrow.weights.loading import after_load, before_load
from regrow.weights.views import (
    adopt,
    before_forward_of_reader,
    module_records,
    named_weights,
    refuse_driven,
    release,
)

Criterion = Callable[[nn.Module, Mapping[str, tuple[int, ...]]], Mapping[str, Tensor]]
"""A one-shot initial topology: ``(model, {weight: shape}) -> {weight: scores of that shape}``."""

STORAGES = ("auto", "masked", "compressed")
DDP_IGNORED = "_ddp_params_and_buffers_to_ignore"


@dataclass(frozen=True)
class Plan:
    """What is to happen to one layer, decided and checked before anything is changed."""

    layer: Layer
    asked: float
    positions: Tensor
    storage: str
    reason: str


def sparsify(
    model: nn.Module,
    sparsity: float | None = None,
    distribution: str | topology.Distribution | Mapping[str, float] = "erk",
    *,
    include: Selector | None = None,
    exclude: Selector | None = None,
    init: str | Mapping[str, Tensor] | Criterion = "random",
    rescale: bool = False,
    storage: str = "auto",
    seed: int = 0,
) -> nn.Module:
    """Make `model` sparse in place, with exact counts; build the optimizer afterwards.

    Args:
        model: any module; one on the meta device gets its weights here, on the CPU, and those that are stored
            compressed are never dense (`regrow.materialize`). Sparse by default: Linear, convolutions but depthwise
            ones, the Conv1D of the transformers library, the projections of `nn.MultiheadAttention`, recurrent
            weights; never norms, biases, embeddings or a weight tied to one.
        sparsity: share of the weights that are zero, in [0, 1), over all sparse layers together.
        distribution: how it is spread over the layers: ``"uniform"`` (the model's first layer stays dense,
            unless `include` names the layers), ``"er"``, ``"erk"``, a function ``(shapes, sparsity) ->
            {weight: sparsity}``, or a dictionary ``{glob of layer names: sparsity}`` that says everything
            itself (leave `sparsity` out).
        include: globs of layer names, or a predicate ``(name, module)``, that name exactly what is sparse.
        exclude: globs or a predicate that take away from the default. Not together with `include`.
        init: which connections a layer starts with: ``"random"``; ``"magnitude"``, the largest (for a trained
            network); ``{weight name: boolean mask}``, or positions of the connections in the flattened weight, int64
            [n] and ascending, in place of a mask (leave `sparsity` out); or a one-shot criterion such as
            `regrow.SNIP`, a function ``(model, {weight name: shape}) -> {weight name: scores}`` whose best are kept,
            layer by layer unless it has an attribute ``per_layer`` that is False.
        rescale: scale the initial weights up to the sparse fan-in, by ``1 / sqrt(density)``; RigL does not.
        storage: ``"masked"``, ``"compressed"``, or ``"auto"``: compressed where that is faster on the device that
            the model is on, masked elsewhere (`regrow.storage`; `summary` says why).
        seed: of the random topology; the same seed and layer name give the same topology anywhere.

    Returns:
        `model`.

    Raises:
        RegrowValueError: for whatever is not allowed, before anything is changed.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(784, 300), torch.nn.ReLU(), torch.nn.Linear(300, 10))
        >>> model = sparsify(model, sparsity=0.9)
        >>> {name: int(mask.sum()) for name, mask in masks(model).items()}
        {'0.weight': 20820, '2.weight': 3000}
    """
    if storage not in STORAGES:
        raise RegrowValueError(
            f"`storage` must be one of {', '.join(STORAGES)}, got {storage!r}{closest(str(storage), STORAGES)}"
        )
    layers = find_layers(model)
    dense_because = {layer.weight_name: layer.dense_because for layer in layers}
    chosen = choose(model, layers, include, exclude, distribution, dense_because)
    shapes = {layer.weight_name: layer.shape for layer in chosen}
    asked, positions = _topology(model, chosen, shapes, sparsity, distribution, init, seed)
    if init == "random" and _looks_trained(model):
        warnings.warn(
            "`model` has been trained, and its connections are cut at random: init='magnitude' keeps the largest",
            stacklevel=2,
        )
    for layer in chosen:
        _refuse_pruned(layer)
    stored = _storages(model, chosen, {name: len(own) for name, own in positions.items()}, storage)
    names = [layer.weight_name for layer in chosen]
    plans = [
        Plan(layer, asked[name], positions.pop(name), *stored[name])
        for layer, name in zip(chosen, names, strict=True)
    ]
    if is_on_meta(model):
        materialize(model, [plan.layer.module for plan in plans if plan.storage == "compressed"])
    planned = {plan.layer.weight_name for plan in plans}
    while plans:  # positions are given up one by one
        _apply(model, plans.pop(0), rescale)
    _note_dense(layers, planned, dense_because)
    register(model)
    return model


def _topology(
    model: nn.Module,
    chosen: list[Layer],
    shapes: dict[str, tuple[int, ...]],
    sparsity: float | None,
    distribution: str | topology.Distribution | Mapping[str, float],
    init: str | Mapping[str, Tensor] | Criterion,
    seed: int,
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Density asked for and initial positions of each chosen weight."""
    says_all = isinstance(distribution, Mapping) or isinstance(init, Mapping)
    if says_all != (sparsity is None):
        what = (
            "a dictionary as `distribution` or `init` says everything itself"
            if says_all
            else "it must be in [0, 1)"
        )
        raise RegrowValueError(f"`sparsity` is {sparsity}, but {what}")
    if isinstance(init, Mapping):
        positions = _own_masks(init, shapes)
        return {name: len(p) / math.prod(shapes[name]) for name, p in positions.items()}, positions
    sparsities = _sparsities(chosen, shapes, sparsity, distribution)
    counts = {name: topology.connections(shapes[name], s) for name, s in sparsities.items()}
    return {name: 1 - s for name, s in sparsities.items()}, _initial(
        model, chosen, shapes, counts, init, seed
    )


def _sparsities(
    chosen: list[Layer],
    shapes: dict[str, tuple[int, ...]],
    sparsity: float | None,
    distribution: str | topology.Distribution | Mapping[str, float],
) -> dict[str, float]:
    if isinstance(distribution, Mapping):
        return _by_glob(distribution, chosen)
    return topology.distribute(distribution, shapes, require_fraction("sparsity", sparsity))


def asked_sparsities(
    model: nn.Module,
    sparsity: float | None = None,
    distribution: str | topology.Distribution | Mapping[str, float] = "erk",
    *,
    include: Selector | None = None,
    exclude: Selector | None = None,
) -> dict[str, float]:
    """The sparsity that `sparsify` with these arguments would ask of each weight, by its name; nothing is changed.

    Works on the meta device. Weights that would stay dense are left out.

    Raises:
        RegrowValueError: as `sparsify` does.
    """
    layers = find_layers(model)
    reasons = {layer.weight_name: layer.dense_because for layer in layers}
    chosen = choose(model, layers, include, exclude, distribution, reasons)
    if isinstance(distribution, Mapping) != (sparsity is None):
        raise RegrowValueError(
            f"`sparsity` is {sparsity}, allowed is [0, 1), and only beside a named distribution"
        )
    return _sparsities(chosen, {layer.weight_name: layer.shape for layer in chosen}, sparsity, distribution)


def _by_glob(distribution: Mapping[str, float], chosen: list[Layer]) -> dict[str, float]:
    """Sparsity of each chosen weight by the first glob that matches it."""
    result: dict[str, float] = {}
    for glob, value in distribution.items():
        value = require_fraction(f"distribution[{glob!r}]", value)
        for name in in_distribution(glob, chosen):
            result.setdefault(name, value)
    return result


def _initial(
    model: nn.Module,
    chosen: list[Layer],
    shapes: dict[str, tuple[int, ...]],
    counts: dict[str, int],
    init: str | Criterion,
    seed: int,
) -> dict[str, Tensor]:
    if init == "random":
        return {
            layer.weight_name: topology.sample(
                counts[layer.weight_name],
                math.prod(layer.shape),
                topology.generator(seed, "topology", layer.weight_name),
            ).to(_home(layer))
            for layer in chosen
        }
    if is_on_meta(model):
        raise RegrowValueError(
            f"`init` is {init!r}, but `model` is on the meta device, without weights to score.\n"
            "Use init='random' or masks of your own, or call its to_empty(device=...) and initialise it first."
        )
    if init == "magnitude":
        scores: Mapping[str, Tensor] = {layer.weight_name: layer.parameter.detach().abs() for layer in chosen}
    elif callable(init):
        scores = init(model, shapes)
    else:
        names = ("random", "magnitude")
        raise RegrowValueError(
            f"`init` must be one of {', '.join(names)}, masks or a criterion, got {init!r}{closest(str(init), names)}"
        )
    _check_shapes("init", scores, shapes)
    if getattr(init, "per_layer", True):
        return {name: top(scores[name].reshape(-1), count) for name, count in counts.items()}
    return _best_of_all(scores, counts)


def _best_of_all(scores: Mapping[str, Tensor], counts: dict[str, int]) -> dict[str, Tensor]:
    """The best positions of all layers together, as many as `counts` says in all."""
    flat = {name: scores[name].reshape(-1) for name in counts}
    chosen = top(torch.cat(list(flat.values())), sum(counts.values()))
    positions, start = {}, 0
    for name, own in flat.items():
        inside = chosen[(chosen >= start) & (chosen < start + len(own))] - start
        positions[name], start = inside, start + len(own)
    empty = [name for name, inside in positions.items() if len(inside) == 0]
    if empty:
        warnings.warn(f"the criterion leaves no connection at all in {empty}", stacklevel=5)
    return positions


def _home(layer: Layer) -> torch.device:
    """Where the layer's weight is, or will be."""
    return torch.device("cpu") if layer.parameter.is_meta else layer.parameter.device


def _own_masks(masks: Mapping[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Positions of the connections, from masks, or from positions themselves."""
    listed = {name for name, mask in masks.items() if mask.dtype == torch.int64 and name in shapes}
    _check_shapes(
        "init",
        {name: mask for name, mask in masks.items() if name not in listed},
        {name: shape for name, shape in shapes.items() if name not in listed},
    )
    for name, mask in masks.items():
        size = math.prod(shapes[name])
        some = mask.numel() > 0 if name in listed else bool(mask.any())
        if not some or not (mask.dtype == torch.bool or are_positions(mask, size)):
            raise RegrowValueError(
                f"`init[{name!r}]` must be a boolean mask with a connection, or ascending positions in [0, {size}), "
                f"got {mask.dtype}"
            )
    return {n: masks[n] if n in listed else masks[n].reshape(-1).nonzero().view(-1) for n in shapes}


def _check_shapes(
    argument: str, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if given != dict(shapes):
        raise RegrowValueError(f"`{argument}` must give one tensor for each of {dict(shapes)}, got {given}")


def _looks_trained(model: nn.Module) -> bool:
    """Whether a norm has seen batches: the one trace that training is sure to leave."""
    counters = (getattr(m, "num_batches_tracked", None) for m in model.modules())
    return any(c is not None and not c.is_meta and int(c) > 0 for c in counters)


def _refuse_pruned(layer: Layer) -> None:
    name = layer.weight_name
    if hasattr(layer.module, f"{layer.parameter_name}_mask"):
        raise RegrowValueError(
            f"`model` has something called `{name}_mask` already (torch.nn.utils.prune?).\nRemove it first."
        )


def _storages(
    model: nn.Module, chosen: list[Layer], connections: Mapping[str, int], storage: str
) -> dict[str, tuple[str, str]]:
    """Storage of each weight, and why where it was chosen here."""
    if storage == "masked":
        return dict.fromkeys(connections, (storage, ""))
    if storage == "auto" and not is_on_meta(model):
        return choose_storages(chosen, model, connections)
    stored = {}
    for layer in chosen:
        name, obstacle = layer.weight_name, why_not_compressed(layer, model)
        if storage == "compressed" and obstacle:
            raise RegrowValueError(
                f"`storage` is 'compressed', but `{name}` cannot be stored so: {obstacle}.\n"
                "Use storage='auto', or name what is compressed with `include` and call sparsify again for the rest."
            )
        reason = "on the meta device: never dense" if storage == "auto" else ""
        stored[name] = ("masked", obstacle) if obstacle else ("compressed", reason)
    return stored


def _apply(model: nn.Module, plan: Plan, rescale: bool) -> None:
    layer, module = plan.layer, plan.layer.module
    parent = model.get_submodule(layer.name.rpartition(".")[0])
    record = Record(layer.weight_name, layer.shape, plan.asked, plan.storage, plan.reason)
    weight = layer.parameter.detach()
    scale = (weight.numel() / len(plan.positions)) ** 0.5 if rescale else 1.0
    layer.parameter.grad = None
    if plan.storage == "compressed":
        drawn = draw(module, (len(plan.positions),)) if weight.is_meta else None
        module = compressed_form(module, plan.positions, drawn)
        module.weight_values.detach().mul_(scale)
        parent.register_module(layer.name.rpartition(".")[2], module)
    else:
        weight.mul_(scale)
        mask = torch.zeros(layer.shape, dtype=torch.bool, device=weight.device)
        mask.view(-1)[plan.positions] = True
        module.register_buffer(f"{layer.parameter_name}_mask", mask)
        weight.masked_fill_(~mask, 0)
    adopt(module, layer.parameter_name, record)
    if reads_weights(parent) and before_forward_of_reader not in parent._forward_pre_hooks.values():
        parent.register_forward_pre_hook(before_forward_of_reader)
    register(module)


def _note_dense(layers: list[Layer], planned: set[str], dense_because: dict[str, str | None]) -> None:
    """Records of the layers that stay dense, so that `summary` can say why."""
    for layer in layers:
        if layer.weight_name not in planned and layer.parameter_name not in module_records(layer.module):
            record = Record(
                layer.weight_name, layer.shape, 1.0, "dense", dense_because[layer.weight_name] or ""
            )
            layer.module.__dict__.setdefault(RECORDS, {})[layer.parameter_name] = record


def register(module: nn.Module) -> None:
    """What the model and each sparse module need once: loading of either storage, and no DDP broadcasts."""
    if not any(getattr(h, "hook", h) is before_load for h in module._load_state_dict_pre_hooks.values()):
        module.register_load_state_dict_pre_hook(before_load)
        module.register_load_state_dict_post_hook(after_load)
    ignored = {
        f"{name}.{buffer}" if name else buffer
        for name, submodule in module.named_modules()
        for weight in views(submodule)
        for buffer in weight.topology_buffers
    }
    known = getattr(module, DDP_IGNORED, ())
    setattr(module, DDP_IGNORED, [*known, *sorted(ignored - set(known))])


def densify(model: nn.Module) -> nn.Module:
    """Make every layer of `model` a plain dense one again, in place; zeros stay zeros, what was fused is apart again.

    Build a new optimizer afterwards, and `detach` methods before.

    Returns:
        `model`.

    Raises:
        RegrowRuntimeError: a method is attached, or a layer was made with an activation of its own.
    """
    refuse_driven(model)
    unfuse(model)
    for name, module in model.named_modules():
        if isinstance(module, SparseLinear) and module.activation is not None:
            raise RegrowRuntimeError(
                f"`{name}` applies {module.activation} itself, which a dense layer cannot.\n"
                "Set its activation to None and put a module for it behind the layer."
            )
    for name, module in list(model.named_modules()):
        for weight in list(views(module)):
            if isinstance(weight, MaskedWeight):
                del module._buffers[f"{weight.parameter_name}_mask"]
            elif isinstance(weight, CompressedWeight) and isinstance(module, SparseModule):
                parent, _, child = name.rpartition(".")
                model.get_submodule(parent).register_module(child, dense_form(module, weight.to_dense()))
            else:
                raise RegrowRuntimeError(f"`{weight.name}` cannot be made dense: {type(module).__name__}")
        _unregister(module)
    return model


def _unregister(module: nn.Module) -> None:
    release(module)
    for hooks, own in (
        (module._load_state_dict_pre_hooks, before_load),
        (module._load_state_dict_post_hooks, after_load),
        (module._forward_pre_hooks, before_forward_of_reader),
    ):
        for key in [key for key, hook in hooks.items() if getattr(hook, "hook", hook) is own]:
            del hooks[key]
    module.__dict__.pop(DDP_IGNORED, None)


def masks(model: nn.Module) -> dict[str, Tensor]:
    """The topology of each sparse weight, by its name in `model`: boolean tensors of its dense shape (copies)."""
    return {name: weight.mask() for name, weight in named_weights(model)}


def is_sparse(model: nn.Module) -> bool:
    """Whether any weight of `model` is sparse."""
    return bool(sparse_weights(model))
