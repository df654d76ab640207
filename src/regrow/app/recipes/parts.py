"""From a name in a recipe to the function behind it, with its options checked against the signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import yaml

import regrow
from regrow.app.recipes.imports import import_files, import_name
from regrow.app.recipes.rates import RATES
from regrow.app.recipes.schema import Part, Recipe
from regrow.app.recipes.tricks import check_tricks
from regrow.arguments import require_choice
from regrow.data import Augment, Samples, datasets
from regrow.errors import RegrowValueError, closest, nearest
from regrow.methods.formulas import ALWAYS
from regrow.methods.registry import (
    DEFAULT,
    EXAMPLES,
    MethodRecord,
    parameters_of,
    record_of,
    records,
    ways,
)
from regrow.models import models
from regrow.optim import NTASGD, SNTASGD
from regrow.tickets import EarlyTicket, kind_of, kinds
from regrow.tickets.scores import GRADIENT, SCORES
from regrow.tricks import tricks
from regrow.weights.patterns import require_pattern
from regrow.weights.storages import STORAGES


def choices(key: str) -> dict[str, Callable[..., Any]]:
    """Return what the recipe key `model`, `data`, `method`, `optimizer`, `schedule`, `tickets` or `tricks` may name."""
    if key == "model":
        return {name: record.build for name, record in models().items()}
    if key == "data":
        return {name: record.load for name, record in datasets().items()}
    if key == "method":
        return {name: record.cls for name, record in ways().items()}
    if key == "optimizer":
        found: dict[str, Callable[..., Any]] = {
            name: kind for name, kind in vars(torch.optim).items() if inspect.isclass(kind)
        }
        # one is the base class, one needs a closure, one gradients that are sparse tensors
        torchs = {n: found[n] for n in sorted(found) if n not in ("Optimizer", "LBFGS", "SparseAdam")}
        return {**torchs, "NTASGD": NTASGD, "SNTASGD": SNTASGD}
    if key == "tricks":
        return {name: record.cls for name, record in tricks().items()}
    if key == "tickets":
        return {name: kind.plan for name, kind in kinds().items()}
    return dict(RATES)


# what the training loop gives itself, so that no recipe may
SUPPLIED = {
    "model": {"self"},
    "data": {"self"},
    "method": {
        "model",
        "optimizer",
        "total_steps",
        "process_group",
        "final_sparsity",
        "loss_fn",
        "batch",
        "example",
    },
    "optimizer": {"params"},
    "schedule": {"total_steps"},
    "tickets": {"total", "epoch"},
}
PARTS = tuple(SUPPLIED)
"""The keys that name something with options."""
OF_TRICKS = {"model", "total_steps"}
"""What the training loop gives each of the `tricks`."""


def find(key: str, part: Part) -> Callable[..., Any]:
    """Find the function or class that `part` of recipe key `key` names.

    Raises:
        RegrowValueError: for an unknown name, or a ``package.module:function`` that cannot be imported.
    """
    known, own = choices(key), key not in ("tickets", "tricks")
    if own and ":" in part.name:
        return import_name(key, part.name)
    if part.name not in known:
        near, hint = nearest(part.name, known), ""
        if near is not None:  # in words that do as they stand
            hint = (
                f", did you mean `{written(near, _missing(known[near], {}, SUPPLIED.get(key, OF_TRICKS)))}`?"
            )
        raise RegrowValueError(
            f"`{key}` must be one of {', '.join(known)}{' or package.module:function' if own else ''}, "
            f"got {part.name!r}{hint}"
        )
    return known[part.name]


def method_of(part: Part) -> MethodRecord:
    """Return the record of the method that `part` names; one of the user's own without a record says it of itself."""
    return ways().get(part.name) or record_of(find("method", part))


def resolve(recipe: Recipe) -> Recipe:
    """Return `recipe` with every name known, every option allowed, and the options' defaults filled in.

    Defaults come from the signatures of the constructors; those of torch's optimizers stay torch's.

    Raises:
        RegrowValueError: naming the key, what was given, what is allowed and the closest match.
    """
    import_files(recipe)
    parts: dict[str, Part] = {}
    for key in SUPPLIED:
        part: Part | None = getattr(recipe, key)
        if part is None:
            continue
        what = f"{key} {part.name}"
        options = _check(recipe, key, what, find(key, part), part.options, SUPPLIED[key])
        if key == "optimizer":
            options = {name: options[name] for name in part.options}
        elif key == "method" and "seed" in options:
            options["seed"] = part.options.get("seed", recipe.seed)
        elif key == "tickets":
            options = kind_of(part.name).chosen(options)
        parts[key] = Part(name=part.name, **options)
    _check_tickets(recipe.model_copy(update=parts))
    _check_averaging(recipe)
    of_tricks = [_trick(recipe, part) for part in recipe.tricks]
    check_tricks(recipe)
    augment = _check(recipe, "augment", "augment", Augment, recipe.augment) if recipe.augment else {}
    samples = _check(recipe, "samples", "samples", Samples, recipe.samples) if recipe.samples else {}
    early = {}
    if recipe.early:
        early = _check(recipe, "early", "early", EarlyTicket, recipe.early, {"model", "include", "exclude"})
    checked = _check(recipe, "sparsify", "sparsify", regrow.sparsify, recipe.sparsify, {"model"})
    given = {name: _names(checked[name]) for name in recipe.sparsify}
    _check_sparsity(recipe, given)
    _check_storage(recipe, given)
    if given:
        given["seed"] = given.get("seed", recipe.seed)
    changed = {"tricks": of_tricks, "augment": augment, "samples": samples, "early": early, "sparsify": given}
    return recipe.model_copy(update={**parts, **changed})


def _names(value: Any) -> Any:
    """Turn layers called 0, 1, ... in `value` into the strings that their names are."""
    if isinstance(value, Mapping):
        return {str(name): each for name, each in value.items()}
    return [str(name) for name in value] if isinstance(value, list) else value


def _check_sparsity(recipe: Recipe, given: Mapping[str, Any]) -> None:
    """Refuse what `sparsify` would refuse once the data are read: one sparsity beside one for each layer, or none."""
    distribution, sparsity = given.get("distribution", "erk"), given.get("sparsity")
    if isinstance(distribution, Mapping) and sparsity is not None:
        raise RegrowValueError(
            f"`sparsify.sparsity` is {sparsity}, but `sparsify.distribution` gives each layer its own\n"
            "Leave one of them out, or give `sparsify.distribution=erk`."
        )
    pattern = require_pattern("sparsify.pattern", given.get("pattern"))
    says_all = isinstance(distribution, Mapping) or (pattern is not None and pattern.density is not None)
    if given and sparsity is None and not says_all:
        raise RegrowValueError(
            f"`sparsify.sparsity` is missing: distribution {distribution} spreads it over the layers\n"
            "Add `sparsify.sparsity=0.9`."
        )


def _check_storage(recipe: Recipe, given: Mapping[str, Any]) -> None:
    """Refuse a storage on which the method does not run."""
    storage, method = given.get("storage", "auto"), method_of(recipe.method)
    if storage in STORAGES and storage not in method.storages and not recipe.never_dense:
        why = (
            "needs the dense gradient"
            if method.needs == ALWAYS
            else f"runs on {' and '.join(method.storages)}"
        )
        raise RegrowValueError(
            f"`sparsify.storage` is {storage}, but method {recipe.method.name} {why}\n"
            f"Give `sparsify.storage={method.storages[0]}`, or take another method."
        )


def _check_tickets(recipe: Recipe) -> None:
    """Check what tickets need of the rest of the recipe."""
    if recipe.tickets is None:
        return
    name, method, record = recipe.tickets.name, recipe.method.name, method_of(recipe.method)
    kind = kind_of(name)
    if kind.needs_validation and recipe.validation is None:
        raise RegrowValueError(
            f"`validation` is missing: tickets {name} are the best checkpoints of their windows, and the test set must "
            f"choose nothing\nAdd `validation: 0.1`; in a comparison, `{name}.validation=0.1` is for {name} alone."
        )
    if (kind.prunes or not kind.independent) and record.is_dense:
        others = " or ".join(
            other.name for other in kinds().values() if other.result == "ensemble" and other.independent
        )
        raise RegrowValueError(
            f"`tickets` {name} needs a sparse network, and method {method} has none\n"
            f"Take another method, or tickets: {others}, which are an ensemble of any networks."
        )
    if kind.prunes and (record.kind != "method" or record.initial_sparsity is not None or recipe.never_dense):
        why = "`never_dense` makes none" if recipe.never_dense else f"method {method} starts from another"
        raise RegrowValueError(
            f"`tickets` {name} are pruned out of a dense network, and {why}\n"
            f"Take method static, which trains each ticket, or one such as {EXAMPLES}."
        )
    if kind.prunes and isinstance(recipe.sparsify.get("distribution"), Mapping):
        raise RegrowValueError(
            f"`sparsify.distribution` gives each layer its own sparsity, which says nothing of the rounds of tickets "
            f"{name}\nGive `sparsify.distribution=global`, or uniform or erk, and `sparsify.sparsity=0.9`."
        )
    if (score := recipe.tickets.options.get("score")) is not None:
        scored = [*SCORES, GRADIENT, *(n for n, other in records().items() if other.is_topology)]
        require_choice("tickets.score", score, scored)
    if inspect.isclass(record.cls) and recipe.tickets.options.get("explore") and not record.explores:
        raise RegrowValueError(
            f"`tickets.explore` needs a method that drops and grows, such as {EXAMPLES}, and {method} does not\n"
            "Take another method, or give `tickets.explore: null`."
        )


def _trick(recipe: Recipe, part: Part) -> Part:
    """Return one of the recipe's tricks with all its options."""
    function = find("tricks", part)
    options = _check(recipe, f"tricks.{part.name}", f"trick {part.name}", function, part.options, OF_TRICKS)
    return Part(name=part.name, **options)


def _check_averaging(recipe: Recipe) -> None:
    """Refuse an optimizer that begins to average by how good a test is, where that is the test set."""
    kind = find("optimizer", recipe.optimizer)
    if recipe.validation is None and inspect.isclass(kind) and issubclass(kind, NTASGD):
        raise RegrowValueError(
            f"`validation` is missing: optimizer {recipe.optimizer.name} averages from when the validation loss no "
            "longer falls, and the test set must choose nothing\nAdd `validation: 0.1`."
        )


def _check(
    recipe: Recipe,
    key: str,
    what: str,
    function: Callable[..., Any],
    options: Mapping[str, Any],
    supplied: Iterable[str] = (),
) -> dict[str, Any]:
    """Return `options` and the plain defaults beside them, once they are known to fit the signature of `function`."""
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters_of(function).values())
    named = _named(function, supplied)
    for name in options:
        if name not in named and not anything:
            allowed = ", ".join(f"`{n}`" for n in named) or "none"
            hint = closest(name, named, f"{key}.") or meant(name, recipe.plain(), exact=True)
            raise RegrowValueError(
                f"`{key}.{name}` is not an option of {what}{hint}\nAllowed are: {allowed}."
            )
    for name in _missing(function, options, supplied):
        raise RegrowValueError(
            f"`{key}.{name}` is missing: {what} needs it\nGive it as {key}.{name}={_example(named[name])}."
        )
    plain = {
        n: list(p.default) if isinstance(p.default, tuple) else p.default
        for n, p in named.items()
        if n in options or p.default is None or isinstance(p.default, bool | int | float | str | tuple | list)
    }
    own = getattr(function, "__module__", "").partition(".")[0] not in ("regrow", "torch")
    return plain | {n: as_list(f"{key}.{n}", v, named.get(n), own) for n, v in options.items()}


def _named(function: Callable[..., Any], supplied: Iterable[str] = ()) -> dict[str, inspect.Parameter]:
    """List the arguments of a function that have names, but for those `supplied` by others."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {n: p for n, p in parameters_of(function).items() if p.kind in kinds and n not in supplied}


def _missing(function: Callable[..., Any], options: Mapping[str, Any], supplied: Iterable[str]) -> list[str]:
    """List the arguments that `function` needs and `options` do not hold."""
    named = _named(function, supplied).items()
    return [name for name, p in named if p.default is p.empty and name not in options]


def written(name: str, missing: Sequence[str]) -> str:
    """Write a part of that name with what it needs."""
    return "".join([f"{{name: {name}", *(f", {one}: ..." for one in missing), "}"]) if missing else name


def _takes_list(parameter: inspect.Parameter | None) -> bool:
    if parameter is None:
        return False
    words = ("Sequence[", "list[", "tuple[", "Selector")
    said = parameter.default is parameter.empty or parameter.default is None
    return isinstance(parameter.default, tuple | list) or (
        said and any(word in str(parameter.annotation) for word in words)
    )


def _example(parameter: inspect.Parameter) -> str:
    return "[...]" if _takes_list(parameter) else "VALUE"


def as_list(key: str, value: Any, parameter: inspect.Parameter | None, own: bool = False) -> Any:
    """Turn ``300,100`` in `value` into a list where `parameter` takes one.

    Raises:
        RegrowValueError: a single value where a list is needed, unless the function is the user's `own`.
    """
    if not _takes_list(parameter) or parameter is None:
        return value
    if isinstance(value, str) and "," in value:
        return [yaml.safe_load(word) for word in value.split(",")]
    if isinstance(value, int | float | str) and isinstance(parameter.default, tuple | list) and not own:
        raise RegrowValueError(
            f"`{key}` must be a list, got {value!r}\nWrite it in brackets: {key}=[{value}]."
        )
    return value


def meant(word: str, raw: Mapping[str, Any], exact: bool = False) -> str:
    """Guess what a `word` that is not a key was meant to be: a key of `raw`, or of what it names.

    Args:
        word: the key, without what stands before a dot.
        raw: the recipe, as plain values.
        exact: only an inner key of this very name will do.
    """
    inner: dict[str, list[str]] = {}
    fixed: dict[str, Callable[..., Any]] = {
        "sparsify": regrow.sparsify,
        "augment": Augment,
        "samples": Samples,
    }
    for key, supplied in (
        *SUPPLIED.items(),
        ("sparsify", {"model"}),
        ("augment", set()),
        ("samples", set()),
    ):
        part = raw.get(key, DEFAULT if key == "method" else None)
        name = part.get("name") if isinstance(part, Mapping) else part
        function = fixed.get(key) or (choices(key).get(name) if isinstance(name, str) else None)
        for option in _named(function, supplied) if function is not None else ():
            inner.setdefault(option, []).append(f"{key}.{option}")
    if exact and (word in Recipe.model_fields or word not in inner):
        return ""
    near = word if word in inner else nearest(word, [*Recipe.model_fields, *inner])
    if near is None:
        return ""
    full = inner[near] if near == word or near not in Recipe.model_fields else [near]
    return ", did you mean " + " or ".join(f"`{one}`" for one in full) + "?"
