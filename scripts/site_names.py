"""What mkdocstrings must be told about the sources of regrow: see mkdocs.yml."""

from __future__ import annotations

from typing import Any

import griffe


class PublicNames(griffe.Extension):
    """Bind the names in `regrow/__init__.py` as an import does: `regrow.costs` is the function, not the room."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Look all names up before one is bound: a bound name hides the room that others are found in."""
        rooms = pkg.modules_collection
        found = {name: rooms[path] for name, path in pkg.imports.items() if path != f"{pkg.path}.{name}"}
        for name, public in found.items():
            target = public.final_target if public.is_alias else public
            pkg.set_member(name, griffe.Alias(name, target, parent=pkg))


class Doctests(griffe.Extension):
    """Read the section `Example:` as griffe reads `Examples:`, so that its `>>>` lines are shown as code."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename it."""
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("Example:\n", "Examples:\n")
