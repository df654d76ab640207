"""What `regrow flops` does: a network by name, built without memory, counted as sparse as it is said to be."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from regrow._text import wrapped
from regrow.accounting import Costs, costs_of
from regrow.app.recipes import Part, find, import_file
from regrow.arguments import require_count
from regrow.errors import RegrowValueError, closest
from regrow.models import models, scales, small_dense
from regrow.sparsity.initial import asked_sparsities
from regrow.tricks import GhostSkips, tricks


@dataclass(frozen=True)
class Flops:
    """Counted costs of one network at one sparsity; ``str()`` is what the command prints."""

    model: str
    options: dict[str, Any]
    input: tuple[int, ...]
    sparsity: float
    distribution: str
    dense: tuple[str, ...]
    """Layers kept dense by name."""
    costs: Costs
    small_dense_width: float | None
    ghosts: float | None
    """FLOPs of a forward pass of ghost skips beside the network's; None where there is nothing to put them over."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document."""
        return {
            "model": self.model,
            "options": self.options,
            "input": list(self.input),
            "sparsity": self.sparsity,
            "distribution": self.distribution,
            **self.costs.to_dict(),
            "small_dense_width": self.small_dense_width,
            "ghost_flops": self.ghosts,
        }

    def __str__(self) -> str:
        return self.text()

    def text(self, width: int | None = None) -> str:
        """Say what is printed on a terminal of `width` characters, or in lines as long as they take."""
        options = "".join(f" {key}={value}" for key, value in self.options.items())
        kept = f", {', '.join(self.dense)} kept dense" if self.dense else ""
        small = (
            "small-dense has no figure: no argument `width` of this network, a factor that is 1.0 by default, "
            "gives its stored size"
            if self.small_dense_width is None
            else f"small-dense is the network of width {self.small_dense_width:g}"
        )
        head = (
            f"{self.model}{options}, input {' x '.join(map(str, self.input))}: "
            f"sparsity {self.sparsity:g}, {self.distribution}{kept}"
        )
        counted = [wrapped(head, width), "", self.costs.text(width), wrapped(small, width)]
        return "\n".join([*counted, wrapped(self._of_tricks(), width)])

    def _of_tricks(self) -> str:
        said = [f"{name} {record.cost}" for name, record in tricks().items()]
        if self.ghosts is None:
            ghosts = "no convolution that ghost skips could be put over"
        else:
            ghosts = f"f_G is {self.ghosts:.5g}, {self.ghosts / self.costs.flops['dense']:.4f} f_D"
        return f"tricks, FLOPs an example beside the training: {'; '.join(said)}; {ghosts}"


def count(
    name: str,
    options: Sequence[str] = (),
    *,
    sparsity: float = 0.9,
    distribution: str = "erk",
    convention: str = "clean",
    input_: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    update_every: int = 100,
    multiplier: float = 1.0,
    tickets: int | None = None,
    files: Sequence[str] = (),
) -> Flops:
    """Count a network; no weights are needed, and none are made where the network can be built without.

    Args:
        name: of the zoo, or ``package.module:function``.
        options: ``key=value`` for its builder.
        sparsity: as for `regrow.sparsify`.
        distribution: as for `regrow.sparsify`, a name.
        convention: as for `regrow.costs`.
        input_: sizes of one example, ``3,224,224``. Default: the zoo's.
        include: globs of what is sparse, as for `regrow.sparsify`.
        exclude: globs of what is not. Default: what the RigL paper keeps dense in this network.
        update_every: as for `regrow.costs`.
        multiplier: as for `regrow.costs`.
        tickets: also count Sup-tickets and FreeTickets' ensembles with so many.
        files: the user's Python files to import first.

    Raises:
        RegrowValueError: for whatever is not allowed.
    """
    for file in files:
        import_file(Path(file))
    if tickets is not None:
        tickets = require_count("tickets", tickets)
    build = find("model", Part(name=name))
    given = _options(name, build, options)
    record = models().get(name)
    shape = _shape(name, input_) if input_ is not None or record is None else record.example_shape(given)
    kept = tuple(exclude) or (record.dense if record is not None and not include else ())

    def counted(device: str) -> tuple[Costs, float | None, float | None]:
        model = _build(name, build, given, device)
        sparsities = asked_sparsities(
            model, sparsity, distribution, include=list(include) or None, exclude=list(kept) or None
        )
        example = _example(model, shape, device)
        how: dict[str, Any] = {
            "convention": convention,
            "update_every": update_every,
            "multiplier": multiplier,
        }
        costs = replace(costs_of(model, example, sparsities, **how), tickets=tickets)
        small = _small(name, build, given, costs, device, example)
        ghosts = _ghosts(model, example, sparsities, costs)
        return (
            (costs, None, ghosts)
            if small is None
            else (replace(costs, small_dense=small[1]), small[0], ghosts)
        )

    try:
        costs, width, ghosts = counted("meta")
    except Exception:
        if record is not None:
            raise
        costs, width, ghosts = counted("cpu")  # the user's network cannot be built or run on the meta device
    return Flops(name, given, shape, sparsity, distribution, kept, costs, width, ghosts)


def _options(name: str, build: Callable[..., Any], texts: Sequence[str]) -> dict[str, Any]:
    """Return ``key=value`` texts as options of `build`."""
    parameters = inspect.signature(build).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    options: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise RegrowValueError(f"an option must be key=value, for example width=0.5, got {text!r}")
        if key not in parameters and not anything:
            allowed = ", ".join(f"`{p}`" for p in parameters) or "none"
            raise RegrowValueError(
                f"`{key}` is not an option of {name}{closest(key, parameters)}\nAllowed are: {allowed}."
            )
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise RegrowValueError(f"`{key}`: {value!r} is no YAML: {error}") from error
    missing = [
        n for n, p in parameters.items() if p.default is p.empty and n not in options and p.kind not in (2, 4)
    ]
    if missing:
        raise RegrowValueError(f"`{missing[0]}` is missing: {name} needs it\nGive it as {missing[0]}=VALUE.")
    return options


def _shape(name: str, text: str | None) -> tuple[int, ...]:
    if text is None:
        raise RegrowValueError(
            f"`--input` is missing: the sizes of one example of {name}\nFor images: --input 3,224,224; for tokens: "
            "--input 128."
        )
    try:
        sizes = tuple(int(size) for size in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise RegrowValueError(
            f"`--input` must be sizes such as 3,224,224, whole numbers above 0, got {text!r}"
        )
    return sizes


def _build(name: str, build: Callable[..., Any], options: Mapping[str, Any], device: str) -> nn.Module:
    with torch.device(device):
        model = build(**options)
    if not isinstance(model, nn.Module):
        raise RegrowValueError(f"`model` {name} returned {model!r}, no torch module")
    return model


def _example(model: nn.Module, shape: tuple[int, ...], device: str) -> Tensor:
    """Return one example; a single size is a count of tokens where the model embeds them."""
    tokens = len(shape) == 1 and any(isinstance(module, nn.Embedding) for module in model.modules())
    return torch.zeros(1, *shape, dtype=torch.int64 if tokens else torch.float32, device=device)


def _small(
    name: str,
    build: Callable[..., Any],
    options: Mapping[str, Any],
    costs: Costs,
    device: str,
    example: Tensor,
) -> tuple[float, float] | None:
    """Return the width and FLOPs of the dense network with the stored size of the sparse one, if there is one."""
    if not scales(build):
        return None
    full = float(options.get("width", 1.0))

    def scaled(width: float) -> nn.Module:
        model: nn.Module = build(**{**options, "width": full * width})
        return model

    try:
        width = full * small_dense(scaled, costs.size_megabytes["sparse"], costs.convention)
    except RegrowValueError:
        return None
    model = _build(name, build, {**options, "width": width}, device)
    return width, costs_of(model, example, {}, convention=costs.convention).flops["dense"]


def _ghosts(model: nn.Module, example: Tensor, sparsities: Mapping[str, float], costs: Costs) -> float | None:
    """Count a forward pass of ghost skips, which `model` has from here on; None where it can have none."""
    try:
        GhostSkips(model, total_steps=2)
    except RegrowValueError:
        return None
    together = costs_of(model, example, sparsities, convention=costs.convention)
    return together.flops["sparse"] - costs.flops["sparse"]
