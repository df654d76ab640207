"""`deploy`: from a trained network to `Deployed`."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from regrow._torch import tree_leaves, tree_map_only
from regrow.arguments import require_choice, require_example, require_iterable, require_model, said
from regrow.errors import RegrowRuntimeError, RegrowValueError, warn
from regrow.inference import inputs
from regrow.inference.compare import ALLOWED, difference, first_difference
from regrow.inference.graph import Graph, Weight
from regrow.inference.module import Deployed
from regrow.inference.passes import simplify
from regrow.inference.plain import as_float32
from regrow.inference.precision import convert
from regrow.inference.program import PRECISIONS
from regrow.inference.reference import interpret
from regrow.inference.structure import unflatten
from regrow.inference.trace import NotTraceable, trace, without_fast_attention
from regrow.rewrite.fold import fold
from regrow.weights.views import unwrapped


def deploy(
    model: nn.Module,
    example: Tensor | list[Any] | tuple[Any, ...] | Mapping[str, Any],
    *,
    precision: str = "float32",
    calibration: Iterable[Any] | None = None,
) -> Deployed:
    """Return a network for inference that computes what `model` does, at the cost of its connections.

    Batch norms and scales are folded into values and biases, activations and sums fused behind the layers before them,
    and memory is planned for the example's shape; other batch sizes are planned when they are first seen. `model` is
    left as it is. The result computes in float32, in which it is checked on the example against `model`: to 1e-5, of
    the largest output where that is more than 1, or to ten times what `model` itself is off in float32.

    Args:
        model: in evaluation mode and on the CPU: masked, compressed, mixed, or dense with zeros.
        example: one batch as the model takes it: a tensor, a list or tuple of positional arguments, or a dictionary of
            keyword arguments.
        precision: of the values of connections: ``float32``, ``bfloat16``, or ``int8`` with a scale for each row.
        calibration: batches like `example`, of typical data, for ``int8``.

    Returns:
        The deployed network. A `model` that cannot be traced runs as it did, folded, and ``reason`` says why.

    Raises:
        RegrowValueError: a model in training mode or on another device, an example or calibration batches that it does
            not take, or an unknown precision.
        RegrowRuntimeError: outputs that differ from the model's; the error names the first layer.

    Warns:
        RuntimeWarning: the model cannot be traced, or torch's fused transformer layers give masked tokens otherwise.

    Example:
        >>> import regrow
        >>> model = nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 10))
        >>> model = regrow.sparsify(model, sparsity=0.9).eval()  # trained, in your case
        >>> deployed = regrow.deploy(model, torch.rand(1, 784))
        >>> deployed(torch.rand(4, 784)).shape
        torch.Size([4, 10])
    """
    model = _require_ready(model)
    require_choice("precision", precision, PRECISIONS)
    batches = _require_calibration(precision, calibration)
    args, kwargs, _ = require_example("example", example)
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
        without_fast_attention() as fused,
    ):
        if any(each.is_floating_point() and each.dtype != torch.float32 for each in _tensors(model)):
            model = copy.deepcopy(model).float()
        args, kwargs = tree_map_only(Tensor, as_float32, (args, kwargs))
        wanted = _outputs(model, args, kwargs)
        if fused:
            _warn_of_masked(model, args, kwargs, wanted)
        try:
            traced = trace(model, args, kwargs)
            if traced.dynamic and not _holds_for_one(traced, model, args, kwargs):
                traced = trace(model, args, kwargs, any_batch=False)
        except NotTraceable as why:
            return _untraced(model, str(why), args, kwargs, wanted)
        graph = _apart(simplify(traced), model)
        calibrated = (_inputs(graph, batch, f"calibration[{at}]") for at, batch in enumerate(batches))
        deployed = Deployed(convert(graph, precision, calibrated))
        deployed.difference = difference(_leaves(deployed(*args, **kwargs)), wanted)
        allowed = (
            max(ALLOWED, 10 * _rounding(model, args, kwargs, wanted))
            if deployed.difference > ALLOWED
            else ALLOWED
        )
        if precision == "float32" and deployed.difference > allowed:
            tensors = inputs.take(graph, args, kwargs)
            _refuse(deployed.difference, allowed, first_difference(traced, graph, tensors))
    return deployed


def _rounding(model: nn.Module, args: Any, kwargs: Any, wanted: Sequence[Tensor]) -> float:
    """Return how far `wanted`, the outputs of `model`, are from its outputs in float64: what float32 itself costs.

    Deep networks, above all untrained ones, amplify it beyond what two computations of one layer differ by.
    """
    try:
        exact = copy.deepcopy(model).double()
        return difference(wanted, _outputs(exact, *tree_map_only(Tensor, _as_float64, (args, kwargs))))
    except Exception:  # whatever the user's code raises in another precision: nothing more is known then
        return 0.0


def _as_float64(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _holds_for_one(traced: Graph, model: nn.Module, args: Any, kwargs: Any) -> bool:
    """Return whether a graph for any batch computes what `model` does for the first example alone.

    torch.export takes a batch to be of two and more, so it does not see what code does with a batch of one.
    """
    args, kwargs = tree_map_only(
        Tensor, lambda tensor: tensor[:1] if tensor.dim() else tensor, (args, kwargs)
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a batch that the caller has not given
            given, named = _copied(args, kwargs)
            wanted = model(*given, **named)
        found = unflatten(traced.structure, interpret(traced, inputs.take(traced, args, kwargs)))
    except Exception:  # whatever the user's code raises
        return False
    return difference(_leaves(found), _leaves(wanted)) <= ALLOWED


def _require_ready(model: object) -> nn.Module:
    """Return `model` without the wrappers of torch, once it is known that it can be deployed."""
    model = unwrapped(require_model("model", model))
    training = [name for name, module in model.named_modules() if module.training]
    if training:
        which = "" if training[0] == "" else f" (`{training[0]}`)"
        raise RegrowValueError(
            f"`model` must be in evaluation mode, got training mode{which}\nCall model.eval() first."
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type != "cpu":
            raise RegrowValueError(
                f"`model` must be on the CPU, where a deployed network runs, got `{name}` on {tensor.device}\n"
                'Call model.to("cpu") first.'
            )
    return model


def _require_calibration(precision: str, calibration: object) -> Iterable[Any]:
    """Return the batches that int8 needs, and which nothing else takes."""
    if precision != "int8":
        if calibration is not None:
            raise RegrowValueError(
                f"`calibration` is for `precision` int8, got it with {precision}\nLeave it out."
            )
        return []
    what = "a list of batches like `example`"
    if calibration is None or isinstance(calibration, Tensor | Mapping):
        raise RegrowValueError(
            f"`calibration` must be {what} with `precision` int8, got {said(calibration)}\n"
            "Give some typical batches: calibration=[inputs for inputs, _ in ...]."
        )
    batches = list(require_iterable("calibration", calibration, what))
    if not batches:
        raise RegrowValueError(
            "`calibration` must hold at least one batch, got none\nGive some typical batches."
        )
    return batches


def _inputs(graph: Graph, batch: Any, name: str) -> list[Tensor]:
    args, kwargs, _ = require_example(name, batch)
    args, kwargs = tree_map_only(Tensor, as_float32, (args, kwargs))
    return inputs.take(graph, args, kwargs, name)


def _apart(graph: Graph, model: nn.Module) -> Graph:
    """Return `graph` with copies of what shares memory with `model`, which may be trained on."""
    memory = {tensor.untyped_storage().data_ptr() for tensor in _tensors(model)}

    def own(tensor: Tensor) -> Tensor:
        return tensor.clone() if tensor.untyped_storage().data_ptr() in memory else tensor

    def own_weight(weight: Weight) -> Weight:
        return own(weight) if isinstance(weight, Tensor) else replace(weight, values=own(weight.values))

    return replace(
        graph,
        constants={name: own(tensor) for name, tensor in graph.constants.items()},
        weights={name: own_weight(weight) for name, weight in graph.weights.items()},
    )


def _outputs(model: nn.Module, args: Any, kwargs: Any) -> list[Tensor]:
    """Return the outputs of `model` for the example.

    Raises:
        RegrowValueError: an example that the model does not take.
    """
    try:
        args, kwargs = _copied(args, kwargs)
        return _leaves(model(*args, **kwargs))
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        given = ", ".join(said(each) for each in (*args, *kwargs.values()))
        raise RegrowValueError(f"`example` does not go through `model`: {given}: {error}") from error


def _warn_of_masked(model: nn.Module, args: Any, kwargs: Any, wanted: list[Tensor]) -> None:
    """Say that torch's fused transformer layers give masked tokens otherwise, where they do."""
    if not any(isinstance(each, nn.TransformerEncoderLayer) for each in model.modules()):
        return
    torch.backends.mha.set_fastpath_enabled(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, of nested tensors
            fused = _outputs(model, args, kwargs)
    except RegrowValueError:  # those layers do not take it
        return
    finally:
        torch.backends.mha.set_fastpath_enabled(False)
    if difference(fused, wanted) > ALLOWED:
        warn(
            "the deployed network computes masked tokens as `model` does with gradients; without them torch's fused "
            "layers leave those out",
            RuntimeWarning,
        )


def _copied(args: Any, kwargs: Any) -> Any:
    """Return the arguments for a model that may write to them."""
    return tree_map_only(Tensor, Tensor.clone, (args, kwargs))


def _leaves(found: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _untraced(model: nn.Module, reason: str, args: Any, kwargs: Any, wanted: list[Tensor]) -> Deployed:
    """Return a folded copy of `model` as a deployed network."""
    warn(f"`model` runs at dense cost, in float32, and cannot be saved: {reason}", RuntimeWarning)
    deployed = Deployed(None, fold(model), reason)
    args, kwargs = _copied(args, kwargs)
    deployed.difference = difference(_leaves(deployed(*args, **kwargs)), wanted)
    if deployed.difference > ALLOWED:
        _refuse(deployed.difference, ALLOWED, "a layer that is not known, since the model cannot be traced")
    return deployed


def _refuse(apart: float, allowed: float, where: str) -> NoReturn:
    raise RegrowRuntimeError(
        f"the deployed network differs from `model` by {apart:.2g} on the example, more than {allowed:.2g}, first in "
        f"{where}\nPlease report it. Until then, regrow.fold(model) runs the network layer by layer."
    )
