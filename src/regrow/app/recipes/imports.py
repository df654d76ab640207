"""The code of the user's that a recipe names: files to import, and ``package.module:function``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from regrow.app.recipes.schema import Recipe
from regrow.errors import RegrowValueError, closest


def import_files(recipe: Recipe) -> None:
    """Run the files that `recipe` imports, each once.

    Raises:
        RegrowValueError: see `import_file`.
    """
    for file in recipe.imports:
        import_file(Path(file))


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


def import_name(key: str, name: str) -> Callable[..., Any]:
    """Return the function that ``package.module:function`` names, for recipe key `key`.

    Raises:
        RegrowValueError: what cannot be imported, or is not a function.
    """
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
