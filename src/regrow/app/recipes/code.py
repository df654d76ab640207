"""A recipe names code that runs: files to import, and functions as ``package.module:function``.

Whoever trains from another's recipe, or resumes another's run, runs their code. It is said where it happens, once.
"""

from __future__ import annotations

import sys
from collections.abc import Collection

from regrow.app.recipes.parts import PARTS
from regrow.app.recipes.schema import Recipe

_told: set[str] = set()


def code_of(recipe: Recipe) -> dict[str, str]:
    """Find what runs when `recipe` is resolved, and what of the recipe names it."""
    named = dict.fromkeys(recipe.imports, "imports")
    for key in PARTS:
        part = getattr(recipe, key)
        if part is not None and ":" in part.name:
            named[part.name] = key
    return named


def tell_code(recipe: Recipe, where: object, own: Collection[str] = ()) -> None:
    """Say on standard error what code of others runs now, each once.

    Args:
        recipe: that names it.
        where: the file that the recipe is from.
        own: what the user has named on the command line.
    """
    foreign = {name: key for name, key in code_of(recipe).items() if name not in {*own, *_told}}
    if foreign:
        _told.update(foreign)
        words = ", ".join(f"{key} {name}" for name, key in foreign.items())
        print(f"note: {where} runs code: {words}", file=sys.stderr, flush=True)


def same_code(one: Recipe, other: Recipe) -> bool:
    """Return whether two recipes run the same code."""
    return code_of(one) == code_of(other)
