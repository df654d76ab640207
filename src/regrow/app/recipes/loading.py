"""Read a recipe: find its file, apply ``key=value`` overrides, and turn every mistake into a clear error."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from regrow.app.recipes.code import tell_code
from regrow.app.recipes.imports import import_files
from regrow.app.recipes.parts import PARTS, choices, meant, resolve
from regrow.app.recipes.schema import Part, Recipe
from regrow.errors import RegrowValueError, closest
from regrow.tickets import kinds

LENGTHS = {"steps", "epochs"}
"""Keys of which a recipe gives one."""
LONGEST_FILE = 1_000_000
"""Bytes of a recipe, and values in it."""
LINE = 110
"""Characters of a line of YAML in a run folder."""
LONGEST = 24
"""Characters of an option with its name: a line of YAML is ended once it is too long."""


class _Loader(yaml.SafeLoader):
    """YAML with three traps closed: ``1e-4`` is a number (1.2), ``2:4`` is none (1.1: 124), a repeated key an error."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> Any:
        text = self.construct_scalar(node)
        return str(text) if ":" in str(text) else int(super().construct_yaml_int(node))

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(
                    problem=f"key `{key}` is given twice", problem_mark=node.start_mark
                )
        return super().construct_mapping(node, deep)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def shipped() -> dict[str, Path]:
    """Return the recipes that come with regrow: name -> file."""
    folder = Path(str(resources.files("regrow.app.recipes")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load(name: str, overrides: Iterable[str] = (), imports: Sequence[str] = ()) -> Recipe:
    """Return the recipe `name`, changed by `overrides`, checked and resolved.

    Args:
        name: a shipped recipe, or the path of a YAML file.
        overrides: ``key=value`` with dots for inner keys, the value in YAML: ``optimizer.lr=0.05``.
        imports: Python files to import beside those the recipe names.

    Raises:
        RegrowValueError: naming the key, what was given, what is allowed and the closest match.
    """
    path = _path(name)
    raw = _mapping(path)
    raw.setdefault("name", path.stem)
    # files named in a recipe lie beside it, those of the command line in the folder one is in
    named = raw.get("imports") or []
    if not isinstance(named, list) or not all(isinstance(file, str) for file in named):
        raise RegrowValueError(
            f"recipe {path}:\n`imports` must be a list of files, for example [methods.py]\n"
            "Write it in brackets, each file in quotes."
        )
    files = [str(path.parent / Path(file).expanduser()) for file in named] + list(imports)
    raw["imports"] = [str(Path(file).resolve()) for file in files]
    of_file = {key: _name_of(raw.get(key)) for key in PARTS}
    given = [_override(raw, override) for override in overrides]
    if LENGTHS & set(given):
        for other in LENGTHS - set(given):
            raw.pop(other, None)  # the length asked for replaces the recipe's, whatever its unit
    if isinstance(raw.get("start"), str):
        raw["start"] = str(Path(raw["start"]).expanduser().resolve())
    _settle_sparsity(raw, given)
    recipe = _validate(raw, name)
    typed = {_name_of(raw.get(key)) for key in PARTS if _name_of(raw.get(key)) != of_file[key]}
    tell_code(recipe, path, {*typed, *(str(Path(file).resolve()) for file in imports)})
    import_files(recipe)  # which may register the kind of tickets
    return resolve(_settle_tickets(recipe, given))


def _settle_tickets(recipe: Recipe, given: Sequence[str]) -> Recipe:
    """Let the length of tickets that was asked for replace the recipe's, whatever its unit."""
    kind = kinds().get(recipe.tickets.name) if recipe.tickets is not None else None
    if recipe.tickets is None or kind is None:
        return recipe
    asked = {name for name in kind.alternatives if f"tickets.{name}" in given}
    others = kind.alternatives.keys() - asked if asked else set()
    options = {name: value for name, value in recipe.tickets.options.items() if name not in others}
    return recipe.model_copy(update={"tickets": Part(name=kind.name, **options)})


def _settle_sparsity(raw: dict[str, Any], given: Sequence[str]) -> None:
    """Let the one sparsity that was asked for replace one for each layer, and the other way round."""
    sparsify = raw.get("sparsify")
    one, each = (f"sparsify.{key}" in given for key in ("sparsity", "distribution"))
    if not isinstance(sparsify, dict) or one == each:
        return
    by_layer = isinstance(sparsify.get("distribution"), dict)
    if one and by_layer:
        sparsify["distribution"] = "erk"
    elif each and by_layer:
        sparsify.pop("sparsity", None)


def read(path: Path) -> Recipe:
    """Read and resolve the recipe that a run folder keeps; what it imports and names is code, and runs."""
    recipe = kept(path)
    tell_code(recipe, path)
    return resolve(recipe)


def kept(path: Path) -> Recipe:
    """Read the recipe that a run folder keeps, as it is written there: nothing that it names is imported."""
    return _validate(_mapping(path), str(path))


def comment(name: str) -> str:
    """Read what the author of a recipe says at its head, a line a paragraph; indented lines are lines of their own."""
    lines: list[str] = []
    for line in _path(name).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.removeprefix("#").removeprefix(" ")
        if lines and lines[-1] and not lines[-1].startswith(" ") and text and not text.startswith(" "):
            lines[-1] += f" {text}"
        else:
            lines.append(text)
    return "\n".join(lines)


def as_yaml(recipe: Recipe, width: int | None = None) -> str:
    """Write the YAML that `read` reads back; a part with its options is a line of `width` characters at the most."""
    return yaml.safe_dump(
        recipe.plain(),
        sort_keys=False,
        default_flow_style=None,
        allow_unicode=True,
        width=LINE if width is None else min(width - LONGEST, LINE),
    )


def _name_of(part: Any) -> Any:
    """Find what names a part of a recipe, written in either way."""
    return part.get("name") if isinstance(part, dict) else part


def _path(name: str) -> Path:
    """Find the file of a recipe.

    Raises:
        RegrowValueError: where there is none.
    """
    known = shipped()
    path = known.get(name, Path(name).expanduser())
    if not path.is_file():
        raise RegrowValueError(
            f"there is no recipe {name!r}{closest(name, known)}\n"
            f"Shipped are: {', '.join(known)}; or give the path of a YAML file."
        )
    return path


def _mapping(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LONGEST_FILE:
            raise RegrowValueError(
                f"{path} has more than {LONGEST_FILE:,} bytes\nGive the YAML file of a recipe."
            )
        loader = _Loader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        _require_small(node, {}, path)
        raw = loader.construct_document(node) if node is not None else None
    except OSError as error:
        raise RegrowValueError(f"cannot read {path}: {error.strerror}\nMake it readable.") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        if isinstance(error, RegrowValueError):
            raise
        reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error)[:500]
        raise RegrowValueError(f"{path} is no YAML: {reason}\nGive the YAML file of a recipe.") from error
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise RegrowValueError(
            f"{path} must hold a mapping of keys to values, got {repr(raw)[:80]}\n"
            "Give the YAML file of a recipe, such as `regrow recipes` lists."
        )
    return raw


def _require_small(node: yaml.Node | None, sizes: dict[yaml.Node, int], path: Path) -> int:
    """Count the values below `node`, those behind aliases each time: a short file may stand for a long one."""
    if node is None or isinstance(node, yaml.ScalarNode):
        return 1
    if node not in sizes:
        sizes[node] = LONGEST_FILE  # whoever comes here again on the way holds itself
        inner = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else [pair])]
        sizes[node] = 1 + sum(_require_small(part, sizes, path) for part in inner)
    if sizes[node] >= LONGEST_FILE:
        raise RegrowValueError(
            f"{path} refers to itself, or to more than {LONGEST_FILE:,} values\nWrite the values out, without aliases."
        )
    return sizes[node]


def _override(raw: dict[str, Any], text: str) -> str:
    """Set one ``a.b=value`` in `raw`, where ``a: name`` stands for ``a: {name: name}``; returns the key."""
    key, equals, value = text.partition("=")
    *outer, last = key.split(".")
    if not equals or not all([*outer, last]):
        raise RegrowValueError(f"an override must be key=value, for example optimizer.lr=0.05, got {text!r}")
    for word in outer:
        inner = raw.get(word)
        if isinstance(inner, str):
            raw[word] = inner = {"name": inner}
        elif inner is None:
            raw[word] = inner = {}
        elif not isinstance(inner, dict):
            raise RegrowValueError(f"`{key}`: `{word}` is {inner!r} and has no inner keys")
        raw = inner
    try:
        raw[last] = yaml.load(value, _Loader)
    except yaml.YAMLError as error:
        raise RegrowValueError(f"`{key}`: {value!r} is no YAML: {error}") from error
    return key


def _validate(raw: dict[str, Any], where: str) -> Recipe:
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(dict(problem), raw) for problem in error.errors()]
        raise RegrowValueError(f"recipe {where}:\n" + "\n".join(lines)) from error


def _explain(problem: dict[str, Any], raw: dict[str, Any]) -> str:
    """Return one line for one of pydantic's errors: the key, what was given, what is allowed."""
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        allowed = ", ".join(f"`{name}`" for name in Recipe.model_fields)
        return f"`{key}` is not a key of a recipe{meant(key, raw)}\nAllowed are: {allowed}."
    if problem["type"] == "missing":
        part, _, name = key.rpartition(".")
        if part in PARTS and name == "name":  # one of its options was given, and nothing that has it
            return f"`{key}` is missing\nGive it as {key}=VALUE, one of {', '.join(choices(part))}."
        return f"`{key}` is missing"
    message = problem["msg"].removeprefix("Value error, ")
    if not key:
        return str(message)
    expected = _expected(key)
    if problem["type"] == "list_type":
        expected += f"\nWrite it in brackets: {key}=[{problem['input']}]."
    return f"`{key}`: {message[0].lower()}{message[1:]}, got {problem['input']!r}{expected}"


def _expected(key: str) -> str:
    field = Recipe.model_fields.get(key)
    if field is None or not field.description:
        return ""
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
        return f"\nA name, or a mapping with `name` and options: {field.description}."
    return f"\n`{key}` is {field.description}."
