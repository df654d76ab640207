"""What a comparison consists of: every run, resolved and checked before the first one starts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regrow.app.compare.keys import Key, of_method, parse
from regrow.app.compare.length import multiply
from regrow.app.compare.ways import Way, is_dynamic, overrides, way_of
from regrow.app.recipes import Part, Recipe, find, kept, load, resolve, same_code
from regrow.app.recipes.parts import SUPPLIED
from regrow.app.training.folder import file_name, require_folder
from regrow.arguments import require_count
from regrow.errors import RegrowError, RegrowValueError, closest
from regrow.methods.registry import parameters_of

FREE = {"device", "threads", "out", "line", "log_every", "checkpoint_every"}
"""Keys that change no result, so that a run which differs in them only is the same run."""


@dataclass(frozen=True)
class Cell:
    """One condition of a comparison: its runs differ by the seed alone."""

    method: str
    multiplier: float
    values: tuple[tuple[str, str], ...]
    """Keys that take several values in the comparison, and this cell's."""

    def __str__(self) -> str:
        length = [f"{self.multiplier:g}x"] if self.multiplier != 1 else []
        return " ".join([self.method, *length, *(f"{key}={value}" for key, value in self.values)])


@dataclass(frozen=True)
class Run:
    """One training run of a comparison."""

    cell: Cell
    seed: int
    recipe: Recipe
    folder: Path
    arguments: tuple[str, ...]
    """Those of ``regrow train``, but for threads and folder."""

    def __str__(self) -> str:
        return f"{self.cell} seed {self.seed}"

    @property
    def begun(self) -> bool:
        return (self.folder / "config.yaml").is_file()

    @property
    def finished(self) -> bool:
        return (self.folder / "summary.json").is_file()


@dataclass(frozen=True)
class Base:
    """What the runs have in common: the recipe with the keys that are the same for all, at its own length."""

    recipe: Recipe
    methods: tuple[str, ...]
    seeds: int
    multipliers: tuple[float, ...]
    axes: dict[str, tuple[str, ...]]
    """Keys with several values."""
    fixed: tuple[str, ...]
    """``key=value`` with one value, for all methods or ``method.key=value``."""


@dataclass(frozen=True)
class Grid:
    """A comparison, planned."""

    base: Base
    runs: tuple[Run, ...]
    folder: Path


def plan(
    recipe: str,
    methods: Sequence[str],
    *,
    seeds: int = 1,
    multipliers: Sequence[float] = (1.0,),
    overrides: Sequence[str] = (),
    imports: Sequence[str] = (),
    folder: Path | None = None,
) -> Grid:
    """Return the runs of a comparison, each resolved and checked; nothing is written.

    A method other than the recipe's own gets those of the recipe's method options that it has too (``update_every``,
    ``drop_fraction``, ...), and so do ``method.option=value``: one budget for all.

    Args:
        recipe: a shipped recipe, or the path of a YAML file.
        methods: names, or ``package.module:function``; kinds of tickets, alone or as ``<tickets>-rigl``.
        seeds: runs of each condition, with seeds 0, 1, ...
        multipliers: lengths, relative to the recipe's.
        overrides: ``key=value``, ``key=a,b,c``, or ``method.key=...`` for one method.
        imports: Python files with methods, models or data.
        folder: of the comparison; default ``runs/compare-<recipe>``.

    Raises:
        RegrowValueError: whatever of it a recipe does not allow.
    """
    require_count("--seeds", seeds)
    for what, values in (("--methods", methods), ("--multiplier", multipliers)):
        if not values or len(set(values)) < len(values):
            raise RegrowValueError(
                f"`{what}` must name at least one, and none twice, got {', '.join(map(str, values))!r}"
            )
    if any(not 0 < m < float("inf") for m in multipliers):
        raise RegrowValueError(f"`--multiplier` must be above 0, got {list(multipliers)}")
    keys = parse(overrides, methods)
    common = [
        f"{k.key}={k.values[0]}"
        for k in keys
        if k.method is None and len(k.values) == 1 and not k.option() and not k.option("tickets")
    ]
    own = load(recipe, common, imports)  # also runs the imported files, which may register methods
    ways = {name: way_of(name, own.method) for name in methods}
    _check_options(keys, ways)
    folder = folder or Path("runs") / file_name(f"compare-{own.name}")
    require_folder("--out", folder)
    base = Base(
        own,
        tuple(methods),
        seeds,
        tuple(multipliers),
        _axes(keys),
        tuple(
            f"{f'{k.method}.' if k.method else ''}{k.key}={k.values[0]}" for k in keys if len(k.values) == 1
        ),
    )
    runs: list[Run] = []
    for cell, lines in _cells(base, keys, ways):
        longer = multiply(load(recipe, lines, imports), cell.multiplier)
        for seed in range(seeds):
            given = [*lines, *longer, f"seed={seed}"]
            resolved = load(recipe, given, imports)
            files = [word for file in imports for word in ("--import", file)]
            taken = {run.folder for run in runs}
            path = _folder(folder, f"{cell} seed{seed}", resolved, taken)
            runs.append(Run(cell, seed, resolved, path, (recipe, *given, *files)))
    return Grid(base, tuple(runs), folder)


def _axes(keys: list[Key]) -> dict[str, tuple[str, ...]]:
    axes: dict[str, tuple[str, ...]] = {}
    for key in keys:
        if len(key.values) > 1:
            known = axes.get(key.key, ())
            axes[key.key] = (*known, *(v for v in key.values if v not in known))
    return axes


def _cells(base: Base, keys: list[Key], ways: dict[str, Way]) -> Iterator[tuple[Cell, list[str]]]:
    """Yield each condition with the overrides that make it, apart from length and seed."""
    for method, way in ways.items():
        mine = [key for key in of_method(keys, method) if _is_for(key, way)]
        made = overrides(way, base.recipe, _shared(base.recipe.method, way.method), mine)
        for multiplier in base.multipliers:
            for values in itertools.product(*(key.values for key in mine)):
                chosen = dict(zip((key.key for key in mine), values, strict=True))
                varied = tuple((key, chosen[key]) for key in base.axes if key in chosen)
                yield Cell(method, multiplier, varied), [*made, *(f"{k}={v}" for k, v in chosen.items())]


def _shared(own: Part, method: str) -> dict[str, Any]:
    """Return what `method` takes over of the options that the recipe gives its own method: all that it has too.

    Only between `Dynamic` methods: there, words such as ``stop_fraction`` mean the same.
    """
    defaults = {name: p.default for name, p in parameters_of(find("method", Part(name=own.name))).items()}
    given = {n: v for n, v in own.options.items() if n != "seed" and v != defaults.get(n)}
    if method != own.name and not (is_dynamic(own.name) and is_dynamic(method)):
        return {}
    has = _options(method)
    return {name: value for name, value in given.items() if method == own.name or _fits(name, has)}


def _options(method: str) -> set[str] | None:
    """List the options of a method; None where it takes any."""
    parameters = parameters_of(find("method", Part(name=method))).values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _fits(option: str | None, has: set[str] | None) -> bool:
    return has is None or (option or "").partition(".")[0] in has


def _is_for(key: Key, way: Way) -> bool:
    """Return whether `key` sets no option of a method or of tickets, or one that `way` has."""
    method, tickets = key.option(), key.option("tickets")
    if tickets is not None:
        return _fits(tickets, way.ticket_options())
    return method is None or _fits(method, _options(way.method))


def _check_options(keys: list[Key], ways: dict[str, Way]) -> None:
    """Refuse an option that none of the methods it is meant for has."""
    for key in keys:
        part = next((part for part in ("method", "tickets") if key.option(part)), None)
        meant = {key.method: ways[key.method]} if key.method else ways
        if part is not None and not any(_is_for(key, way) for way in meant.values()):
            known = sorted(set().union(*(_known(part, way) for way in meant.values())))
            word = (key.option(part) or "").partition(".")[0]
            raise RegrowValueError(
                f"`{key.key}` is not an option of {', '.join(meant)}{closest(word, known, f'{part}.')}\n"
                f"Allowed are: {', '.join(f'`{n}`' for n in known) or 'none'}."
            )


def _known(part: str, way: Way) -> set[str]:
    """Return the options of `way` that a key may set."""
    if part == "tickets":
        return way.ticket_options()
    return (_options(way.method) or set()) - SUPPLIED["method"]


def _folder(root: Path, name: str, recipe: Recipe, taken: set[Path]) -> Path:
    """Return the folder of a run: one that holds this very run, or else a free one."""
    stem = file_name(name)[:120]
    for number in itertools.count(1):
        path = root / (stem if number == 1 else f"{stem}-{number}")
        if path not in taken and _same(path, recipe):
            return path
    raise AssertionError  # the numbers do not end


def _same(folder: Path, recipe: Recipe) -> bool:
    """Return whether `folder` is free or holds a run of `recipe`."""
    config = folder / "config.yaml"
    if not config.is_file():
        return True
    try:
        there = kept(config)
        if not same_code(there, recipe):  # which is not run only to be compared
            return False
        there = resolve(there)
    except RegrowError:  # of another version, or damaged
        return False
    return _plain(there) == _plain(recipe) and recipe.device in ("auto", there.device)


def _plain(recipe: Recipe) -> dict[str, Any]:
    return {key: value for key, value in recipe.plain().items() if key not in FREE}
