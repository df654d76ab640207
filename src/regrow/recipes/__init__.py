"""Recipes: what a training run is made of, as YAML, validated whole before anything runs."""

from __future__ import annotations

from regrow.recipes.code import same_code
from regrow.recipes.loading import as_yaml, comment, kept, load, read, shipped
from regrow.recipes.parts import find, import_file, resolve
from regrow.recipes.rates import Rate
from regrow.recipes.schema import Part, Recipe
from regrow.recipes.tickets import KINDS, Plan

__all__ = [
    "KINDS",
    "Part",
    "Plan",
    "Rate",
    "Recipe",
    "as_yaml",
    "comment",
    "find",
    "import_file",
    "kept",
    "load",
    "read",
    "resolve",
    "same_code",
    "shipped",
]
