"""From a model to a sparse model, and back: `sparsify`, `densify`, `masks`, `is_sparse`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from regrow.arguments import require_choice, require_flag, require_model, require_seed
from regrow.errors import RegrowRuntimeError, RegrowValueError, warn
from regrow.nn import SparseLinear
from regrow.nn.fused import unfuse
from regrow.ops import backends, native
from regrow.sparsity import distributions
from regrow.sparsity.initial import Criterion, initial_topology, require_init
from regrow.sparsity.layers import (
    Layer,
    find_layers,
    reads_weights,
    warn_of_unlike,
)
from regrow.sparsity.meta import draw, is_on_meta, materialize
from regrow.sparsity.selecting import Selector, choose
from regrow.sparsity.start import warn_of_flat_start
from regrow.sparsity.storage import choices, storages
from regrow.sparsity.trained import looks_trained
from regrow.weights import MaskedWeight, Record, sparse_weights, views
from regrow.weights.attach import attach, attach_loading, attach_reader, detach, note
from regrow.weights.patterns import Pattern, require_pattern
from regrow.weights.record import module_records
from regrow.weights.replaced import note_replaced
from regrow.weights.storages import STORAGES, form_of
from regrow.weights.views import named_weights, refuse_driven, settle

APART = "apart"
GATES = ("together", APART)


@dataclass(frozen=True)
class Plan:
    """What is to happen to one layer, decided and checked before anything is changed."""

    layer: Layer
    asked: float
    positions: Tensor
    storage: str
    reason: str
    gates: int
    pattern: Pattern | None


def sparsify(
    model: nn.Module,
    sparsity: float | None = None,
    distribution: str | distributions.Distribution | Mapping[str, float] = "erk",
    *,
    include: Selector | None = None,
    exclude: Selector | None = None,
    init: str | Mapping[str, Tensor] | Criterion | None = None,
    rescale: bool | None = None,
    storage: str | Mapping[str, str] = "auto",
    gates: str = "together",
    pattern: str | tuple[int, int] | None = None,
    seed: int = 0,
) -> nn.Module:
    """Make `model` sparse in place, with exact counts; build the optimizer afterwards.

    Args:
        model: any module; one on the meta device gets its weights here, on the CPU, and those that are stored
            compressed are never dense (`regrow.sparsity.meta`). Sparse by default: Linear, convolutions but depthwise
            ones, the Conv1D of the transformers library, the projections of `nn.MultiheadAttention`, recurrent
            weights; never norms, biases, embeddings or a weight tied to one. A weight in which a zero is not a missing
            connection stays dense unless it is named, with the reason in `summary`: one that is parametrized or
            normalised (weight_norm, weight standardisation), one of a class whose `forward` cannot be followed.
        sparsity: share of the weights that are zero, in [0, 1), over all sparse layers together.
        distribution: how it is spread over the layers: ``"uniform"`` (the model's first layer stays dense,
            unless `include` names the layers), ``"er"``, ``"erk"``, ``"global"`` (the best of all layers together, by
            the scores of `init`; a layer may keep all or lose everything), a function ``(shapes, sparsity) ->
            {weight: sparsity}``, or a dictionary ``{glob of layer names: sparsity}`` that says everything
            itself (leave `sparsity` out).
        include: globs of layer names, or a predicate ``(name, module)``, that name exactly what is sparse.
        exclude: globs or a predicate that take away from the default. Not together with `include`.
        init: which connections a layer starts with: ``"random"``; ``"magnitude"``, the largest (for a trained
            network); ``{weight name: boolean mask}``, or positions of the connections in the flattened weight, int64
            [n] and ascending, in place of a mask (leave `sparsity` out); or a criterion such as `regrow.SNIP`,
            `regrow.GraSP` or `regrow.SynFlow`, a function ``(model, {weight name: shape}) -> {weight name: scores}``
            whose best are kept, layer by layer unless it has an attribute ``per_layer`` that is False (with an
            attribute ``iterative`` that is True it also gets ``count``, how many connections there are to be in all).
            None is ``"random"``, with a warning where the network looks trained.
        rescale: scale the initial weights up to the sparse fan-in, by ``1 / sqrt(density)``; RigL does not. None is
            False, with a warning where so little of the signal is left that the loss would stay flat at first.
        storage: ``"masked"``, ``"compressed"``, or ``"auto"``: compressed where that is faster on the device that
            the model is on, masked elsewhere (`regrow.sparsity.storage`; `summary` says why); or
            ``{weight name: storage}``.
        gates: of recurrent weights, in which a block of rows is a gate: ``"together"`` makes one weight of all gates,
            so that connections move between them (the cell weight redistribution of Selfish-RNN, arXiv 2101.09048);
            ``"apart"`` shares the weight's connections evenly among its gates, and each gate is to methods a weight by
            itself. With masks or a ``"global"`` choice as `init`, each gate keeps what that gives it.
        pattern: what the topology keeps to from now on, whatever a method drops and grows, in weights [outputs, inputs,
            *kernel]: ``"fan-in"``, equally many connections in each row, one more in some; ``"2:4"`` or any ``"N:M"``,
            N of each M inputs that follow each other, so that every sparse weight has the density N / M (leave
            `sparsity` and `distribution` out); or a block ``(outputs, inputs)`` such as ``(1, 4)``, whose connections
            come and go together. In a convolution inputs are channels at one place of the kernel.
        seed: of the random topology; the same seed and layer name give the same topology anywhere.

    Returns:
        `model`.

    Raises:
        RegrowValueError: for whatever is not allowed, before anything is changed.

    Example:
        >>> model = nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 10))
        >>> model = sparsify(model, sparsity=0.9)
        >>> {name: int(mask.sum()) for name, mask in masks(model).items()}
        {'0.weight': 20820, '2.weight': 3000}
    """
    require_model("model", model)
    if not isinstance(storage, Mapping):
        require_choice("storage", storage, choices(), others=", or {weight name: one of them}")
    distributions.require_distribution(distribution, (distributions.GLOBAL,))
    require_choice("gates", gates, GATES)
    init_, seed = require_init(init), require_seed("seed", seed)
    kept_to = require_pattern("pattern", pattern)
    scaled = None if rescale is None else require_flag("rescale", rescale)
    layers = find_layers(model)
    dense_because = {layer.weight_name: layer.dense_because for layer in layers}
    chosen = choose(model, layers, include, exclude, distribution, dense_because)
    if include is None and not isinstance(distribution, Mapping):
        warn_of_unlike(layers, chosen)
    shapes = {layer.weight_name: layer.shape for layer in chosen}
    number = {layer.weight_name: layer.gates if gates == APART else 1 for layer in chosen}
    if gates == APART and max(number.values()) == 1:
        raise RegrowValueError(
            f"`gates` is 'apart', but none of {list(number)} has several gates: allowed are weights of nn.LSTM, nn.GRU "
            "and their cells.\nLeave `gates` out."
        )
    asked, positions = initial_topology(
        model, chosen, shapes, sparsity, distribution, init_, seed, number, kept_to
    )
    if init is None and looks_trained(model, [layer.parameter for layer in chosen]):
        warn(
            "`model` has been trained, and its connections are cut at random: init='magnitude' keeps the largest, "
            "init='random' does this on purpose"
        )
    if scaled is None and (init is None or init == "random"):
        warn_of_flat_start(model, chosen, {name: len(own) for name, own in positions.items()})
    for layer in chosen:
        _refuse_pruned(layer)
    if storage != MaskedWeight.storage and backends.why_reference(layer.parameter for layer in chosen):
        native.warn_once()
    stored = storages(model, chosen, {name: len(own) for name, own in positions.items()}, storage)
    names = [layer.weight_name for layer in chosen]
    plans = [
        Plan(layer, asked[name], positions.pop(name), *stored[name], number[name], kept_to)
        for layer, name in zip(chosen, names, strict=True)
    ]
    if is_on_meta(model):
        materialize(model, [plan.layer for plan in plans if not STORAGES[plan.storage].is_dense])
    planned = {plan.layer.weight_name for plan in plans}
    for together in _by_module(plans):  # positions are given up one by one
        _apply(model, together, bool(scaled))
    _note_dense(model, layers, planned, dense_because)
    attach_loading(model)
    return model


def _refuse_pruned(layer: Layer) -> None:
    name = layer.weight_name
    if hasattr(layer.module, f"{layer.parameter_name}_mask"):
        raise RegrowValueError(
            f"`model` has something called `{name}_mask` already (torch.nn.utils.prune?).\nRemove it first."
        )


def _by_module(plans: list[Plan]) -> Iterator[list[Plan]]:
    """Take the `plans` out of their list, those of one module together."""
    while plans:
        module = plans[0].layer.module
        together = [plan for plan in plans if plan.layer.module is module]
        plans[:] = [plan for plan in plans if plan.layer.module is not module]
        yield together


def _apply(model: nn.Module, plans: list[Plan], rescale: bool) -> None:
    """Make the weights of one module sparse."""
    first, module = plans[0].layer, plans[0].layer.module
    parent = model.get_submodule(first.name.rpartition(".")[0])
    dense = {plan.layer.weight_name: plan.layer.parameter for plan in plans}
    forms = STORAGES[plans[0].storage].forms
    if forms is not None:
        module = forms[type(module)].make(
            module,
            {plan.layer.parameter_name: plan.positions for plan in plans},
            {
                plan.layer.parameter_name: draw(first.module, (len(plan.positions),))
                for plan in plans
                if plan.layer.parameter.is_meta
            },
        )
        parent.register_module(first.name.rpartition(".")[2], module)
    for plan in plans:
        name, size, old = plan.layer.parameter_name, len(plan.positions), dense[plan.layer.weight_name]
        weight, old.grad = STORAGES[plan.storage](module, name), None
        weight.parameter.detach().mul_((old.numel() / max(1, size)) ** 0.5 if rescale else 1.0)
        if forms is None:
            weight.hold(plan.positions)
        else:
            note_replaced(old, weight.parameter, plan.layer.weight_name)
        shape, layer = tuple(old.shape), plan.layer.weight_name
        record = Record(layer, shape, plan.asked, plan.storage, plan.reason, plan.gates, plan.pattern)
        attach(module, name, record)
    if reads_weights(parent):
        attach_reader(parent)


def _note_dense(
    model: nn.Module, layers: list[Layer], planned: set[str], dense_because: dict[str, str | None]
) -> None:
    """Note the layers that stay dense, so that `summary` can say why."""
    for layer in layers:
        module = model.get_submodule(layer.name)  # which may have taken the place of `layer.module`
        if layer.weight_name not in planned and layer.parameter_name not in module_records(module):
            record = Record(
                layer.weight_name, layer.shape, 1.0, "dense", dense_because[layer.weight_name] or ""
            )
            note(module, layer.parameter_name, record)


def densify(model: nn.Module) -> nn.Module:
    """Make every layer of `model` a plain dense one again, in place; zeros stay zeros, what was fused is apart again.

    Build a new optimizer afterwards, and `detach` methods before.

    Returns:
        `model`.

    Raises:
        RegrowRuntimeError: a method is attached, or a layer was made with an activation of its own.
    """
    refuse_driven(require_model("model", model))
    settle(model)
    unfuse(model)
    for name, module in model.named_modules():
        if isinstance(module, SparseLinear) and module.activation is not None:
            raise RegrowRuntimeError(
                f"`{name}` applies {module.activation} itself, which a dense layer cannot.\n"
                "Set its activation to None and put a module for it behind the layer."
            )
    for name, module in list(model.named_modules()):
        weights, form = list(views(module)), form_of(module)
        if weights and form is not None:
            parent, _, child = name.rpartition(".")
            dense = form.restore(module, {weight.parameter_name: weight.to_dense() for weight in weights})
            model.get_submodule(parent).register_module(child, dense)
            for weight in weights:
                note_replaced(weight.parameter, dense.get_parameter(weight.parameter_name), weight.name)
        for weight in weights if form is None else ():
            weight.let_go()
        detach(module)
    return model


def masks(model: nn.Module) -> dict[str, Tensor]:
    """Return the topology of each sparse weight by name: boolean tensors of its dense shape (copies)."""
    settle(require_model("model", model))
    return {name: weight.mask() for name, weight in named_weights(model)}


def is_sparse(model: nn.Module) -> bool:
    """Return whether any weight of `model` is sparse."""
    return bool(sparse_weights(require_model("model", model)))
