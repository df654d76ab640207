"""What ``regrow methods`` and ``regrow recipes`` show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regrow._text import either, table
from regrow.app.recipes import Recipe, as_yaml, comment, import_file, load, shipped
from regrow.app.training.expected import Expected, expected
from regrow.data import datasets
from regrow.methods.registry import records
from regrow.tickets import kinds
from regrow.tricks import tricks

RESULTS = {"superposed": "superposed", "ensemble": "ensembles", "last": "pruned in rounds"}
"""What the tickets of a kind come to, in words."""


def of_tickets() -> str:
    """Name the kinds of tickets with what each comes to, in words."""
    named: dict[str, list[str]] = {}
    for kind in kinds().values():
        named.setdefault(RESULTS[kind.result], []).append(kind.name)
    return ", ".join(f"{either(names)} ({result})" for result, names in named.items())


METHODS = {
    "name": "what `method=` and `--methods` take; `dense` and `small-dense`, which train dense networks, beside these",
    "drop": "which connections go at an update: those of the smallest magnitude, or none",
    "grow": "which come in their place: where the gradient or its momentum is largest, any at random, or none",
    "redistribute": "what decides how many of them each layer gets; none: as many as it lost",
    "needs": "when the dense gradient is computed: never, at each update, or always",
    "paper": "where it is published",
    "line": "",
}
"""Columns, and what each holds."""
TRICKS = {
    "name": "what `tricks=[...]` takes: they help the training and are not in the network at its end",
    "needs": "what of the network and its task; `regrow flops` has the costs",
    "paper": "where it is published",
    "line": "",
}
RECIPES = {
    "name": "what `regrow train` takes; `regrow recipes NAME` shows one with its data, length and time here",
    "model": "the network",
    "data": "the data set; idx and image-folder are files of your own",
    "method": "how the connections evolve",
    "tickets": f"how one run makes several networks, if it does: {of_tickets()}",
    "line": "",
}


def methods(files: Sequence[str] = ()) -> list[dict[str, Any]]:
    """List the methods, one record each, with those of the user's Python `files`."""
    for file in files:
        import_file(Path(file))
    return [record.to_dict() for record in records().values()]


def with_tricks(rows: Sequence[Mapping[str, Any]], width: int | None) -> str:
    """Lay out the methods, and beneath them the tricks."""
    of_tricks = [vars(record) for record in tricks().values()]
    return "\n\n".join([as_text(rows, METHODS, width), as_text(of_tricks, TRICKS, width)])


def recipes() -> list[dict[str, Any]]:
    """List the shipped recipes, one record each."""
    return [_short(load(name)) for name in shipped()]


def _short(recipe: Recipe) -> dict[str, Any]:
    length = {"epochs": recipe.epochs} if recipe.epochs else {"steps": recipe.steps}
    return {
        "name": recipe.name,
        **{key: getattr(recipe, key).name for key in ("model", "data", "method")},
        "tickets": recipe.tickets.name if recipe.tickets else None,
        "sparsify": recipe.sparsify,
        **length,
        "line": recipe.line,
    }


def as_text(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], width: int | None) -> str:
    """Lay out `rows` as a table of those `columns` that say something, with what they hold beneath."""
    shown = [c for c in columns if any(row.get(c) not in (None, "none") for row in rows)]
    head = ["what it is" if c == "line" else c for c in shown]
    lines = table([head, *([str(row.get(c) or "-") for c in shown] for row in rows)], width, prose=True)
    longest = max(map(len, shown))
    meanings = [f"{c:{longest}}  {columns[c]}" for c in shown if columns[c]]
    return "\n".join([*lines, "", *meanings])


def one_recipe(name: str) -> dict[str, Any]:
    """Find all that is known of a recipe, with how long it takes here: some of its steps are made.

    Args:
        name: a shipped recipe, or the path of a YAML file.
    """
    recipe = load(name)
    record = datasets().get(recipe.data.name)
    return {
        **_short(recipe),
        "data_is": record.line if record else "your own",
        "data_from": record.source if record else recipe.data.name,
        "expected": expected(recipe).to_dict(),
        "notes": comment(name),
        "command": f"regrow train {name}",
        "recipe": recipe.plain(),
    }


def one_as_text(found: Mapping[str, Any], width: int | None) -> str:
    """Say what `one_recipe` found, for people."""
    timed = Expected(**found["expected"])
    here, *how = (f"no: {timed.missing}" if timed.missing else "yes").splitlines()
    return "\n".join(
        [
            f"{found['name']}: {found['line']}" if found["line"] else found["name"],
            "",
            *([found["notes"], ""] if found["notes"] else []),
            f"data    {found['data']}: {found['data_is']}",
            f"from    {found['data_from']}",
            f"here    {here}",
            *(f"        {line.strip()}" for line in how),
            f"length  {timed.length}",
            f"time    {timed.time}",
            "",
            as_yaml(Recipe.model_validate(found["recipe"]), width),
            f"Start it with `{found['command']}`; keys behind it change it: optimizer.lr=0.05 seed=1",
        ]
    )
