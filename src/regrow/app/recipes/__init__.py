"""Recipes: what a training run is made of, as YAML, validated whole before anything runs."""

from __future__ import annotations

from regrow.app.recipes.code import same_code
from regrow.app.recipes.imports import import_file
from regrow.app.recipes.loading import as_yaml, comment, kept, load, read, shipped
from regrow.app.recipes.parts import find, method_of, resolve
from regrow.app.recipes.rates import Rate
from regrow.app.recipes.schema import OWN, Part, Recipe

__all__ = [
    "OWN",
    "Part",
    "Rate",
    "Recipe",
    "as_yaml",
    "comment",
    "find",
    "import_file",
    "kept",
    "load",
    "method_of",
    "read",
    "resolve",
    "same_code",
    "shipped",
]
