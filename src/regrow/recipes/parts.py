"""From a name in a recipe to the function behind it, with its options checked against the signature."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import regrow
from regrow.data import Augment, datasets
from regrow.errors import RegrowValueError, closest
from regrow.methods import Dynamic
from regrow.methods.registry import records
from regrow.models import models
from regrow.recipes.rates import RATES
from regrow.recipes.schema import Part, Recipe
from regrow.recipes.tickets import KINDS, chosen


def dense() -> None:
    """The method that is none: the network stays dense."""


def small_dense() -> None:
    """The method that is none: a dense network as narrow as the sparse one is large."""


def choices(key: str) -> dict[str, Callable[..., Any]]:
    """What the recipe key `model`, `data`, `method`, `optimizer`, `schedule` or `tickets` may name."""
    if key == "model":
        return {name: record.build for name, record in models().items()}
    if key == "data":
        return {name: record.load for name, record in datasets().items()}
    if key == "method":
        known = {name: record.cls for name, record in records().items()}
        return {"dense": dense, "small-dense": small_dense} | known
    if key == "optimizer":
        kinds = {name: kind for name, kind in vars(torch.optim).items() if inspect.isclass(kind)}
        # one is the base class, one needs a closure, one gradients that are sparse tensors
        return {n: kinds[n] for n in sorted(kinds) if n not in ("Optimizer", "LBFGS", "SparseAdam")}
    return dict(KINDS if key == "tickets" else RATES)


# what the training loop gives itself, so that no recipe may
_SUPPLIED = {
    "model": {"self"},
    "data": {"self"},
    "method": {"model", "optimizer", "total_steps", "process_group", "final_sparsity", "loss_fn", "batch"},
    "optimizer": {"params"},
    "schedule": {"total_steps"},
    "tickets": {"total", "epoch"},
}


def find(key: str, part: Part) -> Callable[..., Any]:
    """The function or class that `part` of recipe key `key` names.

    Raises:
        RegrowValueError: for an unknown name, or a ``package.module:function`` that cannot be imported.
    """
    known, own = choices(key), key != "tickets"
    if own and ":" in part.name:
        return _import(key, part.name)
    if part.name not in known:
        raise RegrowValueError(
            f"`{key}` must be one of {', '.join(known)}{' or package.module:function' if own else ''}, "
            f"got {part.name!r}{closest(part.name, known)}"
        )
    return known[part.name]


def resolve(recipe: Recipe) -> Recipe:
    """`recipe` with every name known, every option allowed, and the options' defaults filled in.

    Defaults come from the signatures of the constructors; those of torch's optimizers stay torch's.

    Raises:
        RegrowValueError: naming the key, what was given, what is allowed and the closest match.
    """
    for file in recipe.imports:
        import_file(Path(file))
    parts: dict[str, Part] = {}
    for key in _SUPPLIED:
        part: Part | None = getattr(recipe, key)
        if part is None:
            continue
        options = _check(f"{key}.", f"{key} {part.name}", find(key, part), part.options, _SUPPLIED[key])
        if key == "optimizer":
            options = part.options
        elif key == "method" and "seed" in options:
            options["seed"] = part.options.get("seed", recipe.seed)
        elif key == "tickets":
            options = chosen(part.name, options)
        parts[key] = Part(name=part.name, **options)
    _check_tickets(recipe.model_copy(update=parts))
    augment = _check("augment.", "augment", Augment, recipe.augment, set()) if recipe.augment else {}
    _check("sparsify.", "sparsify", regrow.sparsify, recipe.sparsify, {"model"})
    given = {**recipe.sparsify, "seed": recipe.sparsify.get("seed", recipe.seed)} if recipe.sparsify else {}
    return recipe.model_copy(update={**parts, "augment": augment, "sparsify": given})


def _check_tickets(recipe: Recipe) -> None:
    """What tickets need of the rest of the recipe."""
    if recipe.tickets is None:
        return
    kind, method = recipe.tickets.name, recipe.method.name
    if kind == "edst" and recipe.validation is None:
        raise RegrowValueError(
            "`validation` is missing: tickets edst are the best checkpoints of their windows, and the test set must "
            "choose nothing\nAdd `validation: 0.1`; in a comparison, `edst.validation=0.1` is for edst alone."
        )
    if kind != "dst" and method in ("dense", "small-dense"):
        raise RegrowValueError(
            f"`tickets` {kind} needs a sparse network, and method {method} has none\n"
            "Take another method, or tickets: dst, which are an ensemble of any networks."
        )
    record = records().get(method)
    if record is not None and recipe.tickets.options.get("explore") and not issubclass(record.cls, Dynamic):
        raise RegrowValueError(
            f"`tickets.explore` needs a method that drops and grows, such as rigl or set, and {method} does not\n"
            "Take another method, or give `tickets.explore: null`."
        )


def _check(
    prefix: str, what: str, function: Callable[..., Any], options: Mapping[str, Any], supplied: set[str]
) -> dict[str, Any]:
    """`options` and the plain defaults beside them, once they are known to fit the signature of `function`."""
    parameters = {n: p for n, p in inspect.signature(function).parameters.items() if n not in supplied}
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {n: p for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    for name in options:
        if name not in named and not anything:
            allowed = ", ".join(f"`{n}`" for n in named) or "none"
            raise RegrowValueError(
                f"`{prefix}{name}` is no option of {what}{closest(name, named)}\nAllowed are: {allowed}."
            )
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in options:
            raise RegrowValueError(f"`{prefix}{name}` is missing: {what} needs it")
    plain = {
        n: list(p.default) if isinstance(p.default, tuple) else p.default
        for n, p in named.items()
        if n in options or p.default is None or isinstance(p.default, bool | int | float | str | tuple | list)
    }
    return plain | dict(options)


def import_file(path: Path) -> ModuleType:
    """Run a user's Python file once, as the module of its stem; what it registers is then known by name.

    Raises:
        RegrowValueError: for a file that is not there, or whose name another module has already.
    """
    path = path.expanduser().resolve()
    if not path.is_file():
        raise RegrowValueError(f"`--import` {path}: no such file\nFiles that a recipe imports lie beside it.")
    loaded = sys.modules.get(path.stem)
    if loaded is not None:
        if getattr(loaded, "__file__", None) == str(path):
            return loaded
        raise RegrowValueError(
            f"`--import` {path}: a module `{path.stem}` is there already, from {getattr(loaded, '__file__', 'Python')}"
            "\nGive the file another name."
        )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise RegrowValueError(f"`--import` {path} is no Python file\nIts name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[path.stem]
        if isinstance(error, SyntaxError | UnicodeDecodeError):
            raise RegrowValueError(f"`--import` {path} is no Python: {error}\nGive a Python file.") from error
        raise
    return module


def _import(key: str, name: str) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    if not all(word.isidentifier() for word in [*module_name.split("."), attribute]):
        raise RegrowValueError(
            f"`{key}` {name[:100]!r} must be package.module:function\nWrite names of Python with dots between them."
        )
    if "" not in sys.path:  # as `python -m` has it, so that a module beside the recipe is found
        sys.path.insert(0, "")
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise  # the user's module was found, and misses one of its own
        raise RegrowValueError(
            f"`{key}` {name}: there is no module `{error.name}` in this folder or installed"
        ) from error
    except AttributeError as error:
        has = [n for n in vars(sys.modules[module_name]) if not n.startswith("_")]
        raise RegrowValueError(
            f"`{key}` {name}: module `{module_name}` has no `{attribute}`{closest(attribute, has)}"
        ) from error
    if not callable(function):
        raise RegrowValueError(f"`{key}` {name} must be a function or a class, got {function!r}")
    return function  # type: ignore[no-any-return]
